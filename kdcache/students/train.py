"""The loop: K students over one frozen backbone, each step one forward and one backward for all.

On a GPU a small student's step is bound by launches, and K of them cost little more than one;
on a CPU by arithmetic, and K cost K times as much. Each student is trained as it would be
alone, to rounding.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from kdcache.encoder.batching import Encoded, Padded, fixed_plan
from kdcache.students.frozen import Backbone
from kdcache.students.run import Run
from kdcache.students.student import forward

CHECKPOINT_STEPS = 200
STATES_BATCH_SIZE = 128
FREE_SHARE = 0.8  # of a GPU's free memory, that a pass may plan to use


@torch.no_grad()
def cls_states(backbone: Backbone, encoded: Encoded, padded: Padded) -> torch.Tensor:
    """The [CLS] states that no prompt has changed, which every head start trains on.

    Returns:
        Of shape (rows, choices, dim), in row order.
    """
    plan = fixed_plan(encoded.lengths, STATES_BATCH_SIZE)
    states = torch.cat([backbone.cls_states(padded.batch(rows)) for rows in plan])
    back = torch.from_numpy(np.argsort(np.concatenate(plan))).to(states.device)
    return states.unflatten(0, (len(encoded), encoded.num_choices))[back]


class Checkpoint:
    """The state of some runs on disk, so that a killed pass goes on where it was.

    Args:
        path: a file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, runs: Sequence[Run]) -> None:
        """Write the state whole or not at all."""
        device = runs[0].student.backbone.device
        state = {
            "runs": [run.state() for run in runs],
            "rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.path)

    def restore(self, runs: Sequence[Run]) -> None:
        """Put the state back, where there is one."""
        if not self.path.is_file():
            return
        device = runs[0].student.backbone.device
        state = torch.load(self.path, map_location=device, weights_only=True)
        for run, saved in zip(runs, state["runs"], strict=True):
            run.restore(saved)
        torch.set_rng_state(state["rng"].cpu())
        if state["device_rng"] is not None:
            torch.cuda.set_rng_state(state["device_rng"].cpu(), device)

    def remove(self) -> None:
        """Forget it."""
        self.path.unlink(missing_ok=True)


def train_students(
    runs: Sequence[Run],
    padded: Padded,
    states: torch.Tensor,
    checkpoint: Checkpoint | None = None,
    after_step: Callable[[int], object] | None = None,
) -> None:
    """Train runs in place until each has finished or diverged; the shared backbone stays as it is.

    Args:
        runs: of one backbone, with prompts at one place; or a single reference.
        padded: the rows of all runs; run k trains on the first ``len(run.rows)``.
        states: from ``cls_states``, of the frozen backbone, for the same rows.
        checkpoint: where to save every ``CHECKPOINT_STEPS``.
        after_step: called with the number of students that took a step.
    """
    backbone = runs[0].student.backbone
    steps = 0

    def look(run: Run, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        if run.step <= run.head_steps:
            return run.student.head(states[torch.from_numpy(rows).to(states.device)].flatten(0, 1))
        return together([run], [rows])[0]

    def together(
        live: Sequence[Run], batches: Sequence[np.ndarray]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        choices = live[0].rows.encoded.num_choices
        batch = padded.batch(np.concatenate(batches))
        return forward([run.student for run in live], batch, [len(rows) * choices for rows in batches])

    def saved() -> None:
        nonlocal steps
        steps += 1
        if checkpoint and steps % CHECKPOINT_STEPS == 0:
            checkpoint.save(runs)

    for run in runs:
        while run.in_head_start and not run.finished:
            rows = run.next_batch()
            run.loss(*look(run, rows), rows).backward()
            run.update(look)
            saved()
            if after_step:
                after_step(1)
    while live := [run for run in runs if not run.finished]:
        backbone.train(True)
        batches = [run.next_batch() for run in live]
        results = together(live, batches)
        losses = [run.loss(*out, rows) for run, out, rows in zip(live, results, batches, strict=True)]
        torch.stack(losses).sum().backward()
        backbone.train(False)
        for run in live:
            run.update(look)
        saved()
        if after_step:
            after_step(len(live))
    for run in runs:
        run.finish()


def students_that_fit(run: Run, padded: Padded) -> int:
    """How many students like this one a pass may hold: 1 on a CPU, on a GPU what its memory takes.

    Args:
        run: one of them; it is not changed.
        padded: its rows.
    """
    device = run.student.backbone.device
    if device.type == "cpu" or not run.student.tuned:
        return 1
    longest = np.argsort(-padded.lengths, kind="stable")[: run.settings.batch_size]
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    batch = padded.batch(longest)
    logits, _ = forward([run.student], batch, [len(batch["input_ids"])])[0]
    torch.autograd.grad(logits.sum(), run.student.tuned, allow_unused=True)
    needed = torch.cuda.max_memory_allocated(device) - before
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, int(FREE_SHARE * free / needed))
