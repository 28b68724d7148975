"""Your own training loop: each row gets its own target, and a dropped target is an error."""

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset

import kdcache
from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.writer import write_cache
from kdcache.encoder.load import load_tokenizer
from kdcache.errors import CacheStale, DataError

ROOT = Path(__file__).parent.parent.parent
datasets.disable_progress_bars()


@pytest.fixture
def cache(tmp_path: Path):
    rows = CacheRows(
        ["a", "b", "c"], ["ha", "hb", "hc"], np.array([0, 1, -1]), np.full(3, -1, np.int8),
        np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.1]], np.float32), np.eye(3, 4),
    )  # fmt: skip
    write_cache(
        tmp_path / "wic",
        tmp_path / "s" / "key",
        {"train": rows},
        identity={"task": "wic", "labels": ["false", "true"]},
    )
    return kdcache.load_cache(tmp_path / "wic", split="train")


def test_join_is_by_id_in_any_order_after_any_filter(cache):
    dataset = Dataset.from_dict({"example_id": ["c", "a", "b"], "label": [0, 0, 1]})
    dataset = kdcache.join(
        dataset.shuffle(seed=1).filter(lambda row: row["label"] == 0), cache, features=True
    )
    wanted = {"a": [1.0, 2.0], "c": [5.0, np.float32(6.1)]}
    assert {row["example_id"]: row["teacher_logits"] for row in dataset} == wanted
    assert {row["example_id"]: row["teacher_features"].index(1) for row in dataset} == {"a": 0, "c": 2}


def test_join_refuses_what_does_not_belong(cache):
    with pytest.raises(DataError) as error:
        kdcache.join(Dataset.from_dict({"id": ["a"]}), cache)
    assert str(error.value) == (
        "join: the dataset must have the ids in a column 'example_id', got columns id. "
        "Name it with id_column."
    )
    assert kdcache.join(Dataset.from_dict({"id": ["b"]}), cache, "id")[0]["teacher_logits"] == [3.0, 4.0]
    with pytest.raises(CacheStale, match="got unknown z"):
        kdcache.join(Dataset.from_dict({"example_id": ["z"]}), cache)
    with pytest.raises(CacheStale, match="got another text for b"):
        kdcache.join(Dataset.from_dict({"example_id": ["a", "b"], "content_hash": ["ha", "x"]}), cache)
    ids = {"example_id": ["a", "b", "c"]}
    with pytest.raises(CacheStale, match=r"0 false, 1 true, got others for a\."):
        kdcache.join(Dataset.from_dict(ids | {"label": [1, 1, 0]}), cache)
    for labels in ([0, 1, 1], [-1, 1, 0], ["x", "y", "z"]):
        assert len(kdcache.join(Dataset.from_dict(ids | {"label": labels}), cache)) == 3
    for column, labels in (("labels", [1, 0, 0]), ("label", [1.0, 0.0, 0.0])):
        dataset = Dataset.from_dict(ids | {column: labels}).with_format("torch", [column], True)
        with pytest.raises(CacheStale, match="got others for a, b"):
            kdcache.join(dataset, cache)


def test_collator_pads_inputs_stacks_targets_and_leaves_the_rest_out(tiny_model: Path):
    tokenizer = load_tokenizer(tiny_model)
    rows = [
        {**tokenizer(text), "label": k, "example_id": "a", "text": text, "teacher_logits": [k, 0.5]}
        for k, text in enumerate(["the bank", "a bat"])
    ]
    batch = kdcache.KDCollator(tokenizer)(rows)
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels", "teacher_logits"}
    assert batch["labels"].tolist() == [0, 1]
    assert batch["teacher_logits"].dtype == torch.float32
    assert batch["teacher_logits"].tolist() == [[0.0, 0.5], [1.0, 0.5]]
    del rows[0]["teacher_logits"]
    with pytest.raises(
        DataError, match=r"got input_ids, .*set remove_unused_columns=False in TrainingArguments"
    ):
        kdcache.KDCollator(tokenizer)(rows)


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [([0, -1], [0, -100]), ([None, 1], [-100, 1]), ([-100, -1], [-100, -100]), (["absent", 1], [-100, 1])],
)
def test_rows_without_a_label_get_the_index_that_losses_ignore(tiny_model: Path, labels, wanted):
    tokenizer = load_tokenizer(tiny_model)
    rows = [{**tokenizer("a bat"), "label": label, "teacher_logits": [0.0, 1.0]} for label in labels]
    for row in rows:
        if row["label"] == "absent":
            del row["label"]
    assert kdcache.KDCollator(tokenizer)(rows)["labels"].tolist() == wanted


def example(**changes: str) -> str:
    """The example's code, with some of its arguments changed."""
    page = (ROOT / "docs" / "reference" / "trainer.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0]
    for name, value in changes.items():
        code = re.sub(rf"\b{name}=[^,)\n]+", f"{name}={value}", code)
    return code


def steps_of(batch: int, accumulate: int) -> list[torch.Tensor]:
    """The weights after one epoch of the example, where every third row and rows 0 … 9 have no label."""
    code = example(
        per_device_train_batch_size=f"{batch}, use_cpu=True, optim='sgd'",
        save_strategy=f'"no", gradient_accumulation_steps={accumulate}',
        num_labels="2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0",
        learning_rate="0.5",
    )
    code = code.replace("trainer =", "rows = rows.map(without_label, with_indices=True)\ntrainer =")
    names = {"without_label": lambda row, i: {"label": -1 if i % 3 == 0 or i < 10 else row["label"]}}
    exec(code, names)
    return [p.detach() for p in names["trainer"].model.parameters()]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
def test_the_example_takes_the_steps_of_one_big_batch(cached_project, monkeypatch):
    """Also where a batch has no label at all, and where the last one is smaller."""
    folder = cached_project("wic", train_teacher={"folds": 0})
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "hf")
    start = steps_of(1000, 1)
    for whole, (batch, accumulate) in ((16, (8, 2)), (18, (6, 3)), (15, (5, 3))):
        one, split = steps_of(whole, 1), steps_of(batch, accumulate)
        assert max((a - b).abs().max().item() for a, b in zip(one, start, strict=True)) > 1e-3
        assert max((a - b).abs().max().item() for a, b in zip(one, split, strict=True)) < 1e-5


# the Trainer asks for pinned memory on machines without an accelerator too
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
def test_the_example_in_the_docs_runs_and_its_trap_is_an_error(cached_project, monkeypatch, capsys):
    folder = cached_project("wic", train_teacher={"folds": 0})
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "hf")
    code = example()
    exec(compile(code, "docs/reference/trainer.md", "exec"), {})
    assert 0 < float(capsys.readouterr().out.splitlines()[-1]) < 5
    with pytest.raises(DataError, match="KDCollator: each row must hold teacher_logits, got "):
        exec(code.replace("remove_unused_columns=False", "remove_unused_columns=True"), {})
