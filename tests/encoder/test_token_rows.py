"""Tokens in flat arrays are those of the lists that they were made of, padded as the tokenizer pads them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.encoder import batching
from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_tokenizer
from kdcache.encoder.token_rows import TokenRows

TEXTS = ["a bat on the river", "we", "the bank", "money money money", "a seal on a tree on the bank"]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path):
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def lists(tokenizer) -> list[dict[str, list[int]]]:
    full = tokenizer(TEXTS)
    return [{name: full[name][i] for name in full} for i in range(len(TEXTS))]


def test_they_are_read_back_as_lists(lists):
    rows = TokenRows.of(lists)
    assert list(rows) == lists
    assert rows[1:4] == lists[1:4]
    assert rows == lists
    assert rows != lists[::-1]
    assert rows != lists[:-1]
    order = [3, 0, 3]
    assert list(rows.take(np.array(order))) == [lists[i] for i in order]
    assert list(rows.first(2)) == lists[:2]
    assert np.shares_memory(rows.first(2).flat["input_ids"], rows.flat["input_ids"])
    assert list(TokenRows.joined([rows.first(2), TokenRows.of([]), rows.take(np.array([4]))])) == [
        *lists[:2], lists[4]
    ]  # fmt: skip


@pytest.mark.parametrize("which", [[0, 1, 2, 3, 4], [4, 1], [1], [2, 2, 0]])
def test_they_are_padded_as_the_tokenizer_pads(tokenizer, lists, which):
    wanted = tokenizer.pad([lists[i] for i in which], return_tensors="pt")
    found = TokenRows.of(lists).padded(np.array(which), tokenizer)
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert torch.equal(found[name], values)
        assert found[name].dtype == values.dtype


@pytest.mark.parametrize("truncate", ["longest", "first"])
def test_parts_of_any_size_give_the_same_rows(tokenizer, monkeypatch, truncate):
    pairs = ["", "the river", TEXTS[4], "", "money"]
    whole = encode(tokenizer, TEXTS, pairs, 12, truncate)
    monkeypatch.setattr(batching, "ENCODED_AT_ONCE", 2)
    parts = encode(tokenizer, TEXTS, pairs, 12, truncate)
    assert parts.sequences == whole.sequences
    assert parts.lengths.tolist() == whole.lengths.tolist()
    assert parts.truncated.tolist() == whole.truncated.tolist()
    assert whole.truncated.tolist() == [False, False, True, False, False]
