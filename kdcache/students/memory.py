"""How many students a GPU's memory takes in one pass, and what is done where it takes fewer."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from kdcache.errors import ModelError
from kdcache.students.arms import Name
from kdcache.students.frozen_inputs import KEPT_SHARE
from kdcache.students.looks import SCORED_AT_ONCE
from kdcache.students.prompted_backbone import TRUNK
from kdcache.students.run import Run
from kdcache.students.student import forward
from kdcache.students.training_rows import StudentRows

# Of a GPU's free memory, that a step may plan to use: recorded steps keep as much as a computed one takes.
FREE_SHARE = 0.4
REHEARSED = 2  # students, to learn what each of many takes
STATES = 5  # of a trained weight: itself among those of its pass, two moments, gradients of a step and a look


def students_that_fit(run: Run) -> int:
    """Return how many students like this one a pass on a GPU may hold.

    Args:
        run: one of them, with a prompt; it is not changed.
    """
    try:
        needed = bytes_per_student(run)
    except torch.OutOfMemoryError:
        return 1  # and the pass says what to do
    torch.cuda.empty_cache()  # what was rehearsed with is free again
    free, _ = torch.cuda.mem_get_info(run.student.backbone.device)
    share = FREE_SHARE * (1 - KEPT_SHARE if run.student.late_layers else 1)
    return max(1, int(share * free / needed))


def bytes_per_student(run: Run) -> float:
    """Return what each student of a pass on a GPU takes, in bytes; see ``students_that_fit``."""
    device = run.student.backbone.device
    rehearse(run)  # the first time, libraries take room that stays
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    rehearse(run)
    return (torch.cuda.max_memory_allocated(device) - before) / REHEARSED


def rehearse(run: Run) -> None:
    """Compute for several students what takes most of a pass's memory: a step, a look, and scores.

    One student by itself would take less, because it shares its prompt among the rows of a batch. What a
    relation of all rows keeps is not counted.

    Args:
        run: one of them, with a prompt; it is not changed.
    """
    student, backbone = run.student, run.student.backbone

    def logits_of(rows: StudentRows, which: np.ndarray) -> torch.Tensor:
        batch = dict(rows.inputs.padded.batch(np.tile(which, REHEARSED)))
        if student.late_layers:
            batch[TRUNK] = backbone.trunk(batch, student.late_layers)
        counts = [len(which) * rows.encoded.num_choices] * REHEARSED
        return torch.cat([logits for logits, _ in forward([student] * REHEARSED, batch, counts)])

    def longest(rows: StudentRows, count: int) -> np.ndarray:
        return np.argsort(-rows.inputs.padded.lengths, kind="stable")[:count]

    trained = [*student.tuned, *student.head_parameters]
    states = [torch.empty_like(some) for some in trained for _ in range(STATES * REHEARSED)]
    backbone.train(True)
    try:
        logits = logits_of(run.rows, longest(run.rows, run.spec.batch_size))
        torch.autograd.grad(logits.sum(), student.tuned, allow_unused=True)
    finally:
        backbone.train(False)
    logits = logits_of(run.rows, run.watch.batch)
    torch.autograd.grad(logits.sum(), student.tuned, retain_graph=True, allow_unused=True)
    del logits
    if run.tune is not None:
        with torch.no_grad():
            logits_of(run.tune, longest(run.tune, SCORED_AT_ONCE))
    del states


def in_what_fits(
    names: Sequence[Name],
    task: str,
    after_step: Callable[[int], object],
    train: Callable[[Sequence[Name], Callable[[int], object]], Any],
) -> None:
    """Train students in one pass; where a GPU's memory runs out, in halves of it, one after the other.

    Args:
        names: of the students.
        task: theirs, for messages.
        after_step: called with the number of students that took a step; with a negative number where
            steps are taken again.
        train: trains some students in one pass, and calls what it is given as ``after_step``.

    Raises:
        ModelError: there is no room for a single student.
    """
    taken: list[int] = []

    def count(steps: int) -> None:
        taken.append(steps)
        after_step(steps)

    try:
        train(names, count)
    except torch.OutOfMemoryError:
        if len(names) == 1:
            raise ModelError(
                f"distill: {names[0][0]} must fit into the GPU's memory, got no room for it. "
                "Lower its batch_size, or distill.max_length, or make room on the GPU."
            ) from None
    else:
        return
    half = -(-len(names) // 2)
    tqdm.write(
        f"distill: {task}: the GPU's memory ran out with {len(names)} students in one pass. They train "
        f"again, {half} at a time.", file=sys.stderr,
    )  # fmt: skip
    after_step(-sum(taken))
    for some in (names[:half], names[half:]):
        in_what_fits(some, task, after_step, train)
