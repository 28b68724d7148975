"""How many students a GPU's memory takes in one pass, and what is done where it takes fewer."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from kdcache.errors import ModelError
from kdcache.students.arms import Name
from kdcache.students.run import Run
from kdcache.students.student import forward

# Of a GPU's free memory, that a step may plan to use: recorded steps keep as much as a computed one takes.
FREE_SHARE = 0.4


def students_that_fit(run: Run) -> int:
    """Return how many students like this one a pass may hold: 1 on a CPU, on a GPU what its memory takes.

    Args:
        run: one of them; it is not changed.
    """
    device = run.student.backbone.device
    if device.type == "cpu" or not run.student.tuned:
        return 1
    padded = run.rows.inputs.padded
    longest = np.argsort(-padded.lengths, kind="stable")[: run.spec.batch_size]
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    batch = padded.batch(longest)
    try:
        logits, _ = forward([run.student], batch, [len(batch["input_ids"])])[0]
        torch.autograd.grad(logits.sum(), run.student.tuned, allow_unused=True)
    except torch.OutOfMemoryError:
        return 1  # and the pass says what to do
    needed = torch.cuda.max_memory_allocated(device) - before
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, int(FREE_SHARE * free / needed))


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
