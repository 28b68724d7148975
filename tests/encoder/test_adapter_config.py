"""What an adapter's config claims is checked against its weights, and PEFT sees nothing else of it."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftType

from kdcache.encoder.adapter_config import CONFIG, read_adapter_config, read_base
from kdcache.errors import ModelError

LORA = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], "bias": "none",
    "use_dora": False, "rank_pattern": {}, "base_model_name_or_path": "backbone",
}  # fmt: skip
WEIGHTS = {"base_model.model.layer.0.query.lora_A.weight": torch.zeros(4, 16)}
PREFIX = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3, "prefix_projection": False}
PROMPT = {"prompt_embeddings": torch.zeros(3, 64)}


def read(folder: Path, config: object, kind: PeftType = PeftType.LORA):
    (folder / CONFIG).write_text(config if isinstance(config, str) else json.dumps(config))
    return read_adapter_config(folder, kind, WEIGHTS if kind == PeftType.LORA else PROMPT, ["classifier"])


def test_what_the_weights_bear_out_is_read(tmp_path: Path):
    lora = read(tmp_path, LORA | {"modules_to_save": ["bert"], "auto_mapping": {"x": "y"}})
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (4, 8, {"query", "value"})
    assert lora.modules_to_save == ["classifier"]
    assert lora.auto_mapping is None
    assert read(tmp_path, PREFIX, PeftType.PREFIX_TUNING).num_virtual_tokens == 3


@pytest.mark.parametrize(
    "change",
    [
        {"r": 10**9}, {"r": -4}, {"r": True}, {"r": 4.0}, {"r": "4"}, {"target_modules": "(a+)+$"},
        {"target_modules": ["(a+)+$"]}, {"target_modules": [1]}, {"target_modules": []},
        {"target_modules": None}, {"target_modules": ["a"] * 5000}, {"lora_alpha": "8"},
        {"lora_alpha": 1e300}, {"rank_pattern": {"(a+)+$": 2}},
        {"use_dora": True}, {"layers_to_transform": [0]}, {"peft_type": "IA3"}, {"peft_type": ["LORA"]},
    ],
)  # fmt: skip
def test_a_claim_without_weights_is_refused_by_its_name(tmp_path: Path, change):
    with pytest.raises(ModelError, match=next(iter(change))) as error:
        read(tmp_path, LORA | change)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "change", [{"num_virtual_tokens": 10**9}, {"num_virtual_tokens": None}, {"prefix_projection": True}]
)
def test_a_prompt_of_another_length_is_refused(tmp_path: Path, change):
    with pytest.raises(ModelError, match=next(iter(change))):
        read(tmp_path, PREFIX | change, PeftType.PREFIX_TUNING)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN}', "[" * 9000])
def test_what_is_no_config_is_refused(tmp_path: Path, text):
    with pytest.raises(ModelError, match="JSON object"):
        read(tmp_path, text)
    with pytest.raises(ModelError, match="JSON object"):
        read_base(tmp_path)
