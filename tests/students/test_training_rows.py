"""Rows and their targets: who teaches them, how they join, and what a student is scored against."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine import build_rows

from kdcache.errors import CacheMissing
from kdcache.students.training_rows import StudentRows, join_rows


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
