"""The linear probes of students: where their heads start, and all of the method ``head``."""

import hashlib
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from kdcache.digests import value_digest
from kdcache.encoder.linear_probe import AsShares, LinearProbe, fit_probe, one_hot, soft
from kdcache.encoder.optimisation import load_checkpoint, save_checkpoint
from kdcache.encoder.parts import last_linear
from kdcache.encoder.plans import AT_ONCE, in_parts, in_row_order
from kdcache.on_disk import release
from kdcache.students.arms import ArmSpec
from kdcache.students.student import Student, features_of
from kdcache.students.training_rows import StudentRows


class Probes:
    """The probes fitted so far, one for each start and target.

    Students share a probe where they start alike and fit the same targets: arms of one method and
    seed do, and with mean pooling all seeds without a prompt.

    Args:
        folder: where they are kept, for other processes too; it belongs to one backbone and one cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fit(
        self, student: Student, rows: StudentRows, spec: ArmSpec, tune: StudentRows | None
    ) -> LinearProbe:
        """Fit a probe on what the last Linear of a student's head reads before the first step.

        It fits the labels. Where the arm gives them no weight, it fits the teacher's probabilities.

        Args:
            student: before its first step.
            rows: those it learns from, taught as its arm says.
            spec: the arm.
            tune: rows on which C is chosen by the task's first metric; None chooses it on 5 folds.
        """
        as_shares: AsShares
        if spec.ce_weight == 0:
            which, taught, as_shares = None, rows.teacher_logits, soft
        else:
            labelled = rows.labels >= 0
            which = None if labelled.all() else np.flatnonzero(labelled.cpu().numpy())
            taught = rows.labels if which is None else rows.labels[labelled]
            as_shares = partial(one_hot, num_labels=rows.task.num_labels)
        start = [taught, *_start(student, rows)]
        ids = [_ids_digest(rows.table, which)]
        ids += [_ids_digest(tune.table)] if tune is not None else []
        key = value_digest([spec.method, spec.pooling, *ids, *map(_bytes_digest, start)])
        path, device = self.folder / f"probe-{key[:16]}.pt", student.backbone.device
        kept = load_checkpoint(path, device)
        if kept is not None:
            return LinearProbe(**kept)
        features = starting_features(student, rows, which)
        if tune is None:
            probe = fit_probe(features, taught, as_shares=as_shares)
        else:
            metric, held_out = tune.task.metrics[0], starting_features(student, tune)
            probe = fit_probe(
                features, taught, held_out, lambda logits: tune.score(logits)[metric], as_shares=as_shares
            )
        save_checkpoint(asdict(probe), path)
        return probe


def _start(student: Student, rows: StudentRows) -> list[torch.Tensor]:
    """Return all that decides what the last Linear reads of a row, beside the frozen backbone."""
    last = set(last_linear(student.head, rows.task.num_outputs).parameters())
    prompt = [] if student.prompt is None else list(student.prompt.state_dict().values())
    return [*prompt, *(p for p in student.head.parameters() if p not in last)]


def _bytes_digest(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for part in tensor.detach().flatten().split(2**20):
        digest.update(part.cpu().numpy())
        release()
    return digest.hexdigest()


def _ids_digest(table: pa.Table, which: np.ndarray | None = None) -> str:
    ids = table["example_id"]
    if which is None:
        parts = (ids.slice(start, AT_ONCE) for start in range(0, len(ids), AT_ONCE))
    else:
        parts = (ids.take(which[part]) for part in in_parts(len(which)))
    digests = []
    for some in parts:
        digests.append(value_digest(some.to_pylist()))
        release()
    return value_digest(digests)


@torch.no_grad()
def starting_features(student: Student, rows: StudentRows, which: np.ndarray | None = None) -> torch.Tensor:
    """Return what the last Linear reads before the first step, of shape (rows, choices, dim).

    A prompt is in place as it starts, since it moves the states: with the probe of states without
    it, a student would start below the control.

    Args:
        student: before its first step.
        rows: to read.
        which: indices of some of them; None reads all.
    """
    choices = rows.encoded.num_choices
    if student.prompt is None:  # no forward pass
        plan = in_parts(len(rows) if which is None else len(which))
        states = (rows.inputs.states_of(part if which is None else which[part]) for part in plan)
        features = (student.head(part)[1].unflatten(0, (-1, choices)) for part in states)
        return in_row_order(features, plan, rows.encoded.folder)
    encoded = rows.encoded if which is None else rows.encoded.take(which)
    return features_of(student, encoded).unflatten(1, (choices, -1))
