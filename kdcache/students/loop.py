"""The training loop: K students over one frozen backbone, one forward and backward pass per step for all.

On a GPU, a small student's step is bound by kernel launches, and K of them cost little more than
one. On a CPU it is bound by arithmetic, and K cost K times as much. Each student ends up as if it
were trained by itself, to rounding. ``stack`` says what K students share beside the backbone.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from kdcache.encoder.optimisation import CHECKPOINT_SECONDS, load_checkpoint, save_checkpoint
from kdcache.students.looks import look
from kdcache.students.run import Run
from kdcache.students.stack import Stack, stacked
from kdcache.students.step import Step


def train_students(
    runs: Sequence[Run], checkpoint: Path | None = None, after_step: Callable[[int], object] | None = None
) -> None:
    """Train runs in place until each has finished or diverged; the shared backbone stays as it is.

    Args:
        runs: of one backbone, with prompts at one place, whose rows share their inputs; or a
            single reference.
        checkpoint: a file for the state of the runs, written every ``CHECKPOINT_SECONDS``.
        after_step: called with the number of students that took a step.
    """
    look([run for run in runs if run.due])
    stacks: list[Stack] = []
    saved = time.monotonic()
    while live := [run for run in runs if not run.finished]:
        if {id(run) for stack in stacks for run in stack.runs} != set(map(id, live)):
            for stack in stacks:
                stack.release()
            stacks = stacked(live)
            step = Step(stacks)
        step.take()
        look([run for run in live if run.due])
        if checkpoint and time.monotonic() - saved >= CHECKPOINT_SECONDS:
            for stack in stacks:
                stack.give_back_moments()
            save_runs(runs, checkpoint)
            saved = time.monotonic()
        if after_step:
            after_step(len(live))
    for stack in stacks:
        stack.release()
    for run in runs:
        run.finish()


def save_runs(runs: Sequence[Run], path: Path) -> None:
    """Write the state of some runs, so that a killed pass goes on where it was."""
    device = runs[0].student.backbone.device
    state = {
        "runs": [run.state() for run in runs],
        "rng": torch.get_rng_state(),
        "device_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    save_checkpoint(state, path)


def restore_runs(runs: Sequence[Run], path: Path) -> None:
    """Put the state back, where there is one."""
    device = runs[0].student.backbone.device
    state = load_checkpoint(path, device)
    if state is None:
        return
    for run, saved in zip(runs, state["runs"], strict=True):
        run.restore(saved)
    torch.set_rng_state(state["rng"].cpu())
    if state["device_rng"] is not None:
        torch.cuda.set_rng_state(state["device_rng"].cpu(), device)
