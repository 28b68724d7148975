"""How many students a GPU's memory takes in one pass, and what is done where it takes fewer."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from kdcache.errors import ModelError
from kdcache.students.arms import Name
from kdcache.students.looks import batch_of, scored_at_once
from kdcache.students.run import Run
from kdcache.students.student import forward
from kdcache.students.training_rows import StudentRows

# Of a GPU's free memory, that a step may plan to use: recorded steps keep as much as a computed one takes.
FREE_SHARE = 0.4
REHEARSED = 2  # students, to learn what each of many takes


def students_that_fit(run: Run) -> int:
    """Return how many students like this one a pass may hold: 1 on a CPU, on a GPU what its memory takes.

    Args:
        run: one of them; it is not changed.
    """
    device = run.student.backbone.device
    if device.type == "cpu" or run.student.prompt is None:
        return 1
    try:
        needed = bytes_per_student(run)
    except torch.OutOfMemoryError:
        return 1  # and the pass says what to do
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, int(FREE_SHARE * free / needed))


def bytes_per_student(run: Run) -> float:
    """Return what a student like this one adds to the memory that a pass takes on a GPU, in bytes."""
    device = run.student.backbone.device
    rehearse(run)  # the first time, libraries and the layers below late prompts take room that stays
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    rehearse(run)
    return (torch.cuda.max_memory_allocated(device) - before) / REHEARSED


def rehearse(run: Run) -> None:
    """Compute what takes most of a pass's memory: gradients of a step, and scores, each on the longest rows.

    Several students take part, because one by itself shares its prompt among the rows of a batch.

    Args:
        run: one of them; it is not changed.
    """
    runs = [run] * REHEARSED
    students = [run.student] * REHEARSED
    backbone = run.student.backbone

    def of_longest(rows: StudentRows, count: int) -> torch.Tensor:
        longest = np.argsort(-rows.inputs.padded.lengths, kind="stable")[:count]
        counts = [len(longest) * rows.encoded.num_choices] * REHEARSED
        outputs = forward(students, batch_of(runs, rows.inputs, np.tile(longest, REHEARSED)), counts)
        return torch.stack([logits.sum() for logits, _ in outputs]).sum()

    backbone.train(True)
    try:
        torch.autograd.grad(of_longest(run.rows, run.spec.batch_size), run.student.tuned, allow_unused=True)
    finally:
        backbone.train(False)
    if run.tune is not None:
        with torch.no_grad():
            of_longest(run.tune, scored_at_once(run))


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
