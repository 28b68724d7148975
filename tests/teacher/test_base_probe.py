"""A teacher starts as the linear probe of its base on its own rows, and the probe's scores are kept."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import run, superglue_task

from kdcache.cache.manifest import read_manifest
from kdcache.data.examples import Example
from kdcache.data.splits import build_table, read_split, write_split
from kdcache.data.task import Task, read_task
from kdcache.encoder import linear_probe
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_classifier, load_tokenizer
from kdcache.encoder.mean_pooled import load_head
from kdcache.teacher import training
from kdcache.teacher.base_probe import TokenisedSplit, score_probe, start_from_probe

CPU = torch.device("cpu")
WORDS = ("bank", "bat", "crane", "match", "seal", "river")
TASK = Task("words", ("a", "b", "c"), "words/1", ("accuracy",))


def rows_of(folder: Path, task: Task = TASK, labelled: bool = True) -> TokenisedSplit:
    """Rows whose label is told by a word; of a task of choices, the right one is on a tree."""
    examples = []
    for i in range(48):
        text, label = f"the {WORDS[i % 6]} was {WORDS[i // 6 % 6]}", i % task.num_labels
        choices = tuple("on a tree" if k == label else text for k in range(2)) if task.num_choices > 1 else ()
        examples.append(Example(str(i), label if labelled else -1, str(i), text, choices=choices))
    return TokenisedSplit.of(task, build_table(examples, task), load_tokenizer(folder), 32)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("task", [TASK, superglue_task("copa")], ids=["classes", "choices"])
def test_the_head_is_the_probe_that_was_fitted(tiny_model, pooling, task):
    rows = rows_of(tiny_model, task)
    model = load_classifier(tiny_model, task.num_outputs, 0, pooling)
    probe = start_from_probe(model, rows, None, CPU, seed=0)
    logits = extract(model, rows.encoded, task.num_outputs, 16, CPU)[0]
    wanted = probe.logits(rows.features(model, CPU)).numpy()
    assert np.abs(logits - wanted).max() < 1e-4
    assert rows.score(logits) > 0.9
    assert score_probe(probe, model, {"tune": rows}, CPU) == {
        "strength": probe.strength, "tune": rows.metrics(wanted),
    }  # fmt: skip


def test_the_strength_is_chosen_on_tune_where_its_labels_are_there(tiny_model):
    rows = rows_of(tiny_model)
    model = load_classifier(tiny_model, 3, 0, "mean")

    def chosen(tune: TokenisedSplit | None) -> float:
        return start_from_probe(model, rows, tune, CPU, seed=0).strength

    # on labels that are all wrong, the weakest of the probes that are all right is no better: the first wins
    wrong = rows.table.set_column(
        rows.table.schema.get_field_index("label"), "label", pa.array([(k + 1) % 3 for k in rows.labels])
    )
    assert chosen(replace(rows, table=wrong)) == linear_probe.STRENGTHS[0]
    alone = chosen(None)
    assert alone != linear_probe.STRENGTHS[0]
    assert chosen(rows_of(tiny_model, labelled=False)) == alone


def test_each_teacher_starts_from_its_own_labelled_rows(built_project, monkeypatch):
    """Not from those of the fold that it must not see."""
    folder = built_project("prepare", train_teacher={"folds": 2})
    task = read_task(folder / "data/cb", "cb")
    train = read_split(folder / "data/cb", "train", task)
    labels = [-1 if i < 4 else k for i, k in enumerate(train["label"].to_pylist())]
    train = train.set_column(train.schema.get_field_index("label"), train.schema.field("label"), [labels])
    write_split([train], folder / "data/cb/train.parquet")
    seen = []

    def spy(model, own, *others):
        seen.append(own.table["example_id"].to_pylist())
        return start_from_probe(model, own, *others)

    monkeypatch.setattr(training, "start_from_probe", spy)
    assert run("teach", "--task", "cb")[0] == 0
    folds = pq.read_table("models/teacher/cb/folds.parquet").to_pydict()
    ids = [(i, fold) for i, fold, k in zip(folds["example_id"], folds["fold"], labels, strict=True) if k >= 0]
    assert seen == [[i for i, fold in ids if fold != out] for out in (None, 0, 1)]


def test_the_probe_of_the_base_is_kept_in_teacher_and_cache(built_project):
    built_project("prepare", "teach --task cb", "cache --task cb", train_teacher={"pooling": "mean"})
    found = json.loads(Path("models/teacher/cb/probe.json").read_text())
    assert read_manifest(Path("cache/cb")).probe == found

    base, data = Path("tiny"), Path("data/cb")
    task, tokenizer = read_task(data, "cb"), load_tokenizer(base)
    splits = {
        split: TokenisedSplit.of(task, read_split(data, split, task), tokenizer, 64)
        for split in ("train", "tune", "validation")
    }
    model = load_classifier(base, 3, 0, "mean")
    random = model.classifier.weight.detach().clone()
    probe = start_from_probe(model, splits["train"], splits["tune"], CPU, seed=0)
    assert found == score_probe(probe, model, {k: splits[k] for k in ("tune", "validation")}, CPU)
    load_head(model.classifier, Path("models/teacher/cb"))  # training went on from there
    trained = model.classifier.weight.detach()
    assert 0 < (trained - probe.weight).norm() < (trained - random).norm()
