"""Encoders of four layers to cut, and lines to read with them."""

from pathlib import Path
from typing import Any

import torch
from conftest import build_tiny_model

from kdcache.encoder.batching import Encoded, encode
from kdcache.encoder.load import load_tokenizer

CPU = torch.device("cpu")
TEXTS = [
    f"the {a} {b}" for a in ("bank", "bat", "crane", "match") for b in ("", "river", "on a tree", "was long")
]
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {}, "roberta": {}, "electra": {}, "deberta-v2": {},
    "modernbert": {"classifier_pooling": "mean", "global_attn_every_n_layers": 3},
    "distilbert": {"max_position_embeddings": 96, "initializer_range": 0.5}, "mpnet": {}, "albert": {},
}  # fmt: skip


def build(name: str, folder: Path) -> Path:
    """Write a random encoder of four layers and its tokenizer as a plain transformers folder."""
    return build_tiny_model(folder, num_layers=4, architecture=name, **ENCODERS[name])


def read_texts(folder: Path) -> Encoded:
    """The lines as an encoder's tokenizer reads them."""
    return encode(load_tokenizer(folder), TEXTS, None, max_length=16)


def states_of(model: Any, encoded: Encoded, **inputs: Any) -> torch.Tensor:
    """The last hidden states of all rows."""
    with torch.no_grad():
        return model(**encoded.batch(range(len(encoded))), **inputs).last_hidden_state
