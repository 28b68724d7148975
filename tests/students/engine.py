"""Builders that the tests of training share: tiny students on tiny rows."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from specs import tiny_spec
from torch.utils._python_dispatch import TorchDispatchMode

from kdcache.cache.cached_rows import CacheRows
from kdcache.data.task import Task
from kdcache.encoder.batching import Encoded, encode
from kdcache.encoder.load import load_tokenizer
from kdcache.encoder.plans import num_batches
from kdcache.encoder.pooling import Pooling
from kdcache.losses import Objective, Term
from kdcache.students.frozen_inputs import FrozenInputs
from kdcache.students.loop import train_students
from kdcache.students.probes import Probes
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.run import Run
from kdcache.students.student import build_student
from kdcache.students.training_rows import StudentRows

TASK = Task("tiny", ("a", "b", "c"), "t/1", ("accuracy",))
TEXTS = [f"{a} {b}" for a in ("bank", "bat", "crane", "match", "seal") for b in ("the", "river", "on a tree")]
KL_GRAM = {"inter_class": Term("kl", 1.0, 2.0), "inter_instance": Term("gram")}


def make_rows(
    encoded: Encoded, labels: list[int], backbone: Backbone, task: Task = TASK, dim: int = 6
) -> StudentRows:
    """Rows with random targets; member 0 of the ensemble says other random things."""
    rng, size = np.random.default_rng(0), (len(labels), task.num_labels)
    ids = [str(i) for i in range(len(labels))]
    logits, other, member = (rng.normal(size=size).astype(np.float32) for _ in range(3))
    features = rng.normal(size=(len(labels), dim)).astype(np.float16)
    label, fold = np.array(labels), np.zeros(len(labels), np.int8)
    cached = CacheRows(ids, ids, label, fold, logits, features, logits_plain=other, members=(member,))
    table = pa.table({"example_id": ids, "label": pa.array(labels, pa.int64()), "group": ids})
    return StudentRows.build(task, "train", table, cached, encoded, backbone)


def probes() -> Probes:
    """Those of one student: nothing is kept of them."""
    return Probes(Path(tempfile.mkdtemp()))


def build_rows(folder: Path, backbone: Backbone | None = None) -> StudentRows:
    """Pairs of sequences, three classes."""
    encoded = encode(load_tokenizer(folder), TEXTS, TEXTS[::-1], max_length=32)
    labels = [i % 3 for i in range(len(TEXTS))]
    return make_rows(encoded, labels, backbone or Backbone.load(folder))


def build_run(
    folder: Path, backbone: Backbone, rows: StudentRows, method: str = "prefix", seed: int = 0,
    tune: StudentRows | None = None, **changes,
) -> Run:  # fmt: skip
    """A student before its first step; ``changes`` are those of ``tiny_spec``; epochs are its own rows'."""
    spec = tiny_spec(method, **changes)
    student = build_student(spec, rows.task.num_outputs, seed, folder, backbone, rows.encoded)
    torch.manual_seed(seed)
    dims = 16 * rows.encoded.num_choices, rows.teacher_features.shape[1]
    objective = Objective(spec.terms, spec.ce_weight, *dims)
    if rows.inputs.backbone is not backbone:
        rows = replace(rows, inputs=FrozenInputs(backbone, rows.inputs.encoded))
    steps = spec.epochs * num_batches(len(rows), spec.batch_size) if student.tuned else 0
    return Run(student, objective, rows, spec, seed, steps, probes().fit(student, rows, spec, tune), tune)


# AdamW's epsilon. A head starts at a solved probe, where AdamW divides small gradients by themselves: after
# 300 steps a change of 1e-15 is one of 0.02, and hides what is tested. With this one it divides by nearly 1.
SMOOTH = 1.0


def double(folder: Path, rows: StudentRows, pooling: Pooling = "cls", **arguments):
    """A run in float64, over a backbone in float64."""
    backbone = Backbone.load(folder, pooling)
    run = build_run(folder, backbone, rows, **arguments)
    backbone.encoder.double()
    run.student.double()
    for group in run.optimizer.param_groups:
        group["eps"] = SMOOTH
    return run


def fit(*runs: Run, checkpoint=None, after_step=None) -> None:
    """Train some runs in one pass."""
    train_students(runs, checkpoint, after_step)


def values(run: Run) -> list[torch.Tensor]:
    """Everything that was trained."""
    return [p.detach().clone() for p in (*run.student.tuned, *run.student.head_parameters)]


def gap(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest difference between two students."""
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def share_off(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference of logits, as a share of their size, which is what rounding grows with."""
    return float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max()))


class Count(TorchDispatchMode):
    """Counts operations below autograd that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not (func.is_view or "detach" in str(func))
        return func(*args, **(kwargs or {}))


def operations_per_step(
    folder: Path, backbone: Backbone, rows: StudentRows, students: Sequence[dict[str, Any]]
) -> float:
    """Operations of a step of one pass, forward and backward, each of which a GPU must launch.

    Args:
        students: the changes of each, see ``build_run``.
    """

    def count(epochs: int) -> int:
        runs = [build_run(folder, backbone, rows, epochs=epochs, **changes) for changes in students]
        for run in runs:
            run.history.append({"step": 0})  # no look
            run._looks = frozenset()
        with Count() as counted:
            train_students(runs)
        return counted.operations

    batches = num_batches(len(rows), build_run(folder, backbone, rows).spec.batch_size)
    return (count(4) - count(1)) / (3 * batches)  # what happens once cancels
