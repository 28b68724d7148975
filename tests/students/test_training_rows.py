"""Rows and their targets: who teaches them, how they join, and what a student is scored against."""

import gc
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import write_params
from engine import build_rows

from kdcache import on_disk
from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.writer import write_cache
from kdcache.data.splits import split_schema, write_split
from kdcache.data.task import Task, write_task
from kdcache.errors import CacheMissing
from kdcache.project import Project
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.training_rows import StudentRows, join_rows, load_rows

WIDTHS = {"logits": 3, "features": 20}


@pytest.fixture(scope="module")
def rows(tiny_model: Path) -> StudentRows:
    return build_rows(tiny_model)


def test_an_arm_is_taught_by_the_teacher_that_its_targets_name(rows):
    cached = rows.cached
    wanted = {"cached": cached.logits, "all_rows": cached.logits_plain, "member": cached.members[0]}
    for targets, logits in wanted.items():
        assert torch.equal(rows.taught_by(targets, 0).teacher_logits, torch.from_numpy(logits))
    with pytest.raises(CacheMissing):
        rows.taught_by("member", 1)


def test_fidelity_is_to_the_teacher_that_taught_the_arm(rows):
    """On logits that agree with exactly one of the teachers everywhere."""
    index = np.arange(len(rows))
    said = np.eye(3, dtype=np.float32)[np.stack([0 * index, 0 * index + 1, 0 * index + 2, index % 3])]
    cached = replace(rows.cached, logits=said[0], logits_plain=said[1], members=(said[2], said[3]))
    rows = replace(rows, cached=cached, teacher_logits=torch.from_numpy(said[0]))
    for right, targets, seed in ((0, "cached", 0), (1, "all_rows", 0), (2, "member", 0), (3, "member", 1)):
        taught = rows.taught_by(targets, seed)
        agreements = [taught.score(logits)["agreement"] for logits in said]
        assert agreements[right] == 1
        assert max(agreements[:right] + agreements[right + 1 :]) < 1


def test_joined_rows_keep_the_targets_of_every_teacher(rows):
    one, other = rows.take(np.array([3, 0])), rows.take(np.array([7]))
    joined = join_rows([one, other])
    for targets in ("cached", "all_rows", "member"):
        parts = [part.taught_by(targets, 0).teacher_logits for part in (one, other)]
        assert torch.equal(joined.taught_by(targets, 0).teacher_logits, torch.cat(parts))
    assert joined.table["example_id"].to_pylist() == ["3", "0", "7"]
    assert joined.encoded.sequences == [rows.encoded.sequences[i] for i in (3, 0, 7)]


def test_the_first_rows_share_the_inputs_of_all(rows):
    first = rows.first(4)
    assert first.inputs is rows.inputs
    assert torch.equal(first.labels, rows.labels[:4])
    assert torch.equal(first.teacher_logits, rows.teacher_logits[:4])
    assert (first.encoded.lengths == rows.encoded.lengths[:4]).all()
    shuffled = rows.shuffled_within_class(0)
    assert torch.equal(shuffled.first(4).teacher_logits, shuffled.teacher_logits[:4])


def write_rows(folder: Path, counts: dict[str, int]) -> None:
    """Write prepared splits of texts of unequal length, and a cache of them in another order."""
    task = Task("cb", ("a", "b", "c"), "cb/1", ("accuracy",), pairs=False)
    (folder / "data" / "cb").mkdir(parents=True)
    write_task(task, folder / "data" / "cb")
    cached = {}
    for split, count in counts.items():
        rng = np.random.default_rng(count)
        ids, hashes = [f"{split}-{i}" for i in range(count)], [f"{i:032x}" for i in range(count)]
        label = rng.integers(0, 3, count) if split != "unlabelled" else np.full(count, -1)
        texts = ["the bank on the river " * (1 + i % 3) for i in range(count)]
        columns = {"group": ids, "text": texts, "text_pair": [""] * count}
        table = pa.table(
            {"example_id": ids, "label": label, "content_hash": hashes, **columns}, split_schema(task)
        )
        write_split([table], folder / "data" / "cb" / f"{split}.parquet")
        logits, features = (rng.normal(size=(count, width)).astype(np.float32) for width in WIDTHS.values())
        rows = CacheRows(ids, hashes, label, np.full(count, -1, np.int8), logits, features)
        cached[split] = rows.take(rng.permutation(count))
    scores = {"validation": {"accuracy": 0.5}}
    identity = {"task": "cb", "labels": ["a", "b", "c"], "num_labels": 3, "kind": "external"}
    write_cache(
        folder / "cache" / "cb", folder / "s" / "k", cached, identity=identity, metrics=scores,
        all_rows_teacher=scores,
    )  # fmt: skip


def load(folder: Path, backbone: Backbone) -> StudentRows:
    project = Project.load([f"paths.{name}={folder / name}" for name in ("data", "cache", "scratch")])
    task = Task("cb", ("a", "b", "c"), "cb/1", ("accuracy",), pairs=False)
    splits = load_rows(project, task, backbone, 32, {})[0]
    return join_rows([splits["train"], splits["unlabelled"]])


@pytest.fixture
def backbone(tmp_path, tiny_model, monkeypatch) -> Backbone:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "backbone").symlink_to(tiny_model)
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    return Backbone.load(tiny_model)


def test_rows_on_disk_are_those_in_memory(tmp_path, backbone, monkeypatch):
    write_rows(tmp_path / "some", {"train": 40, "unlabelled": 30, "validation": 10})
    held = load(tmp_path / "some", backbone)
    monkeypatch.setattr(on_disk, "SMALL", 0)
    found = load(tmp_path / "some", backbone)
    assert found.table.equals(held.table)
    assert found.encoded.sequences == held.encoded.sequences
    for name in ("labels", "teacher_logits", "teacher_features"):
        assert torch.equal(getattr(found, name), getattr(held, name))
    assert torch.equal(found.inputs.states, held.inputs.states)
    shuffled = [rows.shuffled_within_class(1).teacher_logits for rows in (found, held)]
    assert torch.equal(*shuffled)
    some = np.array([69, 3, 41])
    assert torch.equal(found.take(some).teacher_features, held.teacher_features[some])
    assert {path.suffix for path in (tmp_path / "some" / "scratch").rglob("*") if path.is_file()} <= {".lock"}


def test_a_row_takes_a_few_bytes_of_memory(tmp_path, backbone, monkeypatch):
    """All else of it lies on disk. In bytes that NumPy, Python and Arrow hold."""
    monkeypatch.setattr(on_disk, "SMALL", 1000)
    taken = {}
    for count in (200, 200, 1400):  # the first time, libraries take memory of their own
        folder = tmp_path / f"{len(taken)}-{count}"
        write_rows(folder, {"train": count, "unlabelled": count, "validation": 10})
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()
        rows = load(folder, backbone)
        states = rows.inputs.states
        gc.collect()
        taken[count] = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
        tracemalloc.stop()
        assert (len(rows), len(states)) == (2 * count, 2 * count)
    assert (taken[1400] - taken[200]) / 2400 < 16
