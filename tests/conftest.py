"""Tiny models built from a config, never downloaded, and a project folder around them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from kdcache.params import read_params
from kdcache.tasks.official import SAMPLE

ROOT = Path(__file__).parent.parent


def sample_words() -> list[str]:
    """The words of the sample corpus: the vocabulary of the tiny tokenizer."""
    pieces = pre_tokenizers.BertPreTokenizer()
    text = " ".join(path.read_text(encoding="utf-8") for path in sorted(SAMPLE.rglob("*.jsonl")))
    return sorted({word for word, _ in pieces.pre_tokenize_str(text.lower())})


def build_tiny_model(folder: Path, num_layers: int = 2, seed: int = 0) -> Path:
    """Write a random BERT of 16 dims, and a word tokenizer, as a plain transformers folder."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {word: i for i, word in enumerate([*special, *sample_words()])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocab), hidden_size=16, num_hidden_layers=num_layers, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=96, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(str(folder))
    fast.save_pretrained(str(folder))
    return folder


def tiny_params(model: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """params.yaml as shipped, made tiny: 32 rows, 1 epoch, 2 folds, one thread."""
    params = read_params(ROOT / "params.yaml")
    params["threads"] = 1
    params["prepare"] |= {"max_rows": 32, "tune_fraction": 0.25}
    params["train_teacher"] |= {"model": model, "epochs": 1, "folds": 2, "max_length": 64, "lr": 1e-3}
    params["student_backbone"] |= {
        "model": model, "num_layers": 1, "epochs": 1, "max_length": 64, "position_shift": 4,
    }  # fmt: skip
    params["distill"] |= {"epochs": 1, "num_virtual_tokens": 4, "seeds": [0, 1], "max_length": 64}
    for name, values in sections.items():
        params[name] = {**params[name], **values}
    return params


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT of 16 dims."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make a tiny project in a fresh folder and go there; keyword arguments change sections."""

    def make(name: str = "project", **sections: dict[str, Any]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copytree(tiny_model, folder / "tiny")
        params = tiny_params("tiny", **sections)
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        monkeypatch.chdir(folder)
        return folder

    return make


@pytest.fixture
def write_jsonl() -> Callable[[Path, list[Any]], Path]:
    """Write rows (or raw lines) as JSON lines, making folders on the way."""

    def write(path: Path, rows: list[Any]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write
