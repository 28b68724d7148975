"""Tokens: what may be lost to the length and what may not, and rows of more than one sequence."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_tokenizer
from kdcache.encoder.prompt_init import pick_tokens
from kdcache.errors import ModelError, ParamsError

PASSAGE = "the bank on the river and the bat on a tree and a seal on the bank " * 3
QUESTION = "a bat on the river"


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path):
    return load_tokenizer(tiny_model)


def parts(tokenizer, row: dict[str, list[int]]) -> list[str]:
    """The sequences of a row, as text."""
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    return [part.strip() for part in " ".join(tokens[1:]).split("[SEP]")[:-1]]


def test_a_tokenizer_that_names_no_mask_makes_one(tiny_model: Path, tmp_path: Path):
    """A model would read padding as text."""
    shutil.copytree(tiny_model, tmp_path / "m")
    path = tmp_path / "m" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_input_names": ["input_ids"]}))
    batch = encode(load_tokenizer(tmp_path / "m"), [PASSAGE, "a bat"], ["", ""], 16).batch([0, 1], "cpu")
    assert batch["attention_mask"].sum(1).tolist() == [16, 4]


@pytest.mark.parametrize("start", ["separators", "words"])
def test_rows_without_tokens_to_start_from_are_one_line(tiny_model: Path, start):
    tokenizer = load_tokenizer(tiny_model)
    rows = encode(tokenizer, [""], [""], 16)
    if start == "separators":
        tokenizer.sep_token = None
    with pytest.raises(ModelError, match=start):
        pick_tokens(rows, 2, seed=0, start=start)


def test_a_long_passage_loses_tokens_and_its_question_none(tokenizer):
    rows = encode(tokenizer, [PASSAGE, "a bat"], [QUESTION, QUESTION], 16, "first")
    passage, question = parts(tokenizer, rows.sequences[0])
    assert question == QUESTION
    assert PASSAGE.startswith(passage)
    assert rows.lengths[0] == 16
    assert rows.truncated.tolist() == [True, False]
    rows = encode(tokenizer, [QUESTION], [PASSAGE], 16, "second")
    assert parts(tokenizer, rows.sequences[0])[0] == QUESTION


def test_longest_takes_from_whichever_is_longer(tokenizer):
    (row,) = encode(tokenizer, [QUESTION], [PASSAGE], 16).sequences
    assert parts(tokenizer, row)[0] == QUESTION
    (row,) = encode(tokenizer, [PASSAGE], [PASSAGE], 15).sequences
    assert [len(part.split()) for part in parts(tokenizer, row)] == [6, 6]


@pytest.mark.parametrize(
    ("truncate", "texts"), [("first", (PASSAGE, QUESTION)), ("second", (QUESTION, PASSAGE))]
)
def test_a_question_that_does_not_fit_is_refused(tokenizer, truncate, texts):
    fits = encode(
        tokenizer, [texts[0]], [texts[1]], 9, truncate
    )  # 5 tokens, 3 special ones, 1 of the passage
    assert fits.lengths.tolist() == [9]
    with pytest.raises(ParamsError, match=r"^max_length: it must be at least 9 tokens.* got 8\. Raise"):
        encode(tokenizer, [texts[0]], [texts[1]], 8, truncate)


def test_rows_without_second_sequences_are_single(tokenizer):
    single, paired = encode(tokenizer, [QUESTION], [""], 16), encode(tokenizer, [QUESTION], None, 16)
    assert single.sequences == paired.sequences
    assert len(parts(tokenizer, single.sequences[0])) == 1


def test_choices_of_a_row_stay_together(tokenizer):
    texts = ["a bat", "a bat", QUESTION, QUESTION, "money", "money"]
    choices = ["the bank", "the river bank", "a", "b", "we", PASSAGE]
    rows = encode(tokenizer, texts, choices, 16, num_choices=2)
    assert len(rows) == 3
    assert rows.lengths.tolist() == [
        max(len(rows.sequences[i]["input_ids"]) for i in (k, k + 1)) for k in (0, 2, 4)
    ]
    assert rows.truncated.tolist() == [False, False, True]
    batch = rows.batch([2, 0])
    assert batch["input_ids"].shape == (4, 16)
    taken = rows.take([2, 0])
    assert torch.equal(taken.batch([0, 1])["input_ids"], batch["input_ids"])
    assert [parts(tokenizer, row)[1] for row in taken.sequences[2:]] == ["the bank", "the river bank"]


def test_what_the_model_made_is_put_together_by_row(tokenizer):
    rows = encode(tokenizer, ["a", "a", "we", "we"], ["b", "c", "b", "c"], 16, num_choices=2)
    logits, features = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.arange(12.0).reshape(4, 3)
    assert rows.by_row(logits).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert rows.by_row(features).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    single = encode(tokenizer, ["a"], ["b"], 16)
    assert single.by_row(features) is not None
    assert torch.equal(single.by_row(features), features)
