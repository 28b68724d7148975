"""One student in training: its batches, optimizer, schedule, losses, scores and best step.

Its head starts as the linear probe of the frozen backbone, solved before the first step: linear
probing before fine-tuning (Kumar et al., 2022). Then prompts, head and pooler learn together. The
control ``head`` is the probe itself, so what a prompt arm gains over it is due to the prompts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kdcache.encoder.linear_probe import LinearProbe
from kdcache.encoder.optimisation import adamw
from kdcache.encoder.parts import last_linear
from kdcache.encoder.plans import TrainingPlan, num_batches
from kdcache.losses.objective import Objective
from kdcache.students.arms import ArmSpec
from kdcache.students.best_step import BestStep
from kdcache.students.student import Student
from kdcache.students.training_rows import StudentRows
from kdcache.students.watch import Watch

CHECK_STEPS = 50  # between two looks at the losses: each makes the device wait
# At the student on tune, beside the one before the first step. Each costs a pass over tune.
LOOKS = {"tune": 10, "last": 4}


def steps_to_look_at(steps: int, select: str) -> list[int]:
    """Return the steps after which a student is scored: at equal distances, the last one among them.

    >>> steps_to_look_at(25, "tune"), steps_to_look_at(25, "last"), steps_to_look_at(3, "tune")
    ([3, 5, 8, 10, 13, 15, 18, 20, 23, 25], [7, 13, 19, 25], [1, 2, 3])
    """
    looks = LOOKS[select]
    return sorted({-(-steps * k // looks) for k in range(1, looks + 1)} - {0})


class TermValues:
    """Some numbers on the device, read when first asked for: reading makes the host wait."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values
        self._read: list[float] = []

    def read(self) -> list[float]:
        """Return them."""
        if not self._read:
            self._read = self._values.tolist()
        return self._read


class Run:
    """A student in training.

    Args:
        student: from ``build_student``.
        objective: the arm's total.
        rows: training rows, taught as the arm says.
        spec: the arm.
        seed: of the order of batches.
        steps: of the optimizer; 0 where nothing but the probe is wanted.
        probe: what the last Linear of the head starts from.
        tune: rows that the student is scored on; None where there are none.
    """

    def __init__(
        self,
        student: Student,
        objective: Objective,
        rows: StudentRows,
        spec: ArmSpec,
        seed: int,
        steps: int,
        probe: LinearProbe,
        tune: StudentRows | None = None,
    ) -> None:
        self.student, self.objective, self.rows = student, objective, rows
        self.spec, self.seed, self.steps, self.probe, self.tune = spec, seed, steps, probe, tune
        probe.copy_to(last_linear(student.head, rows.task.num_outputs))
        self.best_by: str | None = None  # the score whose best step is kept
        if tune is not None and spec.select == "tune":
            self.best_by = f"tune_{tune.task.metrics[0]}"
        self.step = 0
        self.examples = 0  # rows of all batches so far
        self.history: list[dict[str, float]] = []
        self.diverged: tuple[int, float | None] | None = None  # step, last finite loss
        self.watch = Watch(len(rows), spec.batch_size)
        self.best = BestStep([*student.tuned, *student.head_parameters])
        self.last_finite: float | None = None
        self._looks = {0, *steps_to_look_at(steps, spec.select)}
        # Of steps that were not read yet: the values of all students, where this one's terms are, and rows.
        self._seen: list[tuple[TermValues, Mapping[str, int], int]] = []
        self._sums: dict[str, float] = {}  # since the last look
        self._summed = 0  # how many rows they are over
        self._plan: Sequence[np.ndarray] = []
        decay = 0.0 if student.prompt is not None else spec.weight_decay
        head = [*student.head_parameters, *objective.parameters()]
        self.optimizer = adamw([
            {"peak": spec.lr, "params": student.tuned, "weight_decay": decay},
            {"peak": spec.head_lr, "params": head, "weight_decay": spec.weight_decay},
        ], student.backbone.device)  # fmt: skip

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or none can be any more."""
        return self.step >= self.steps or self.diverged is not None

    @property
    def progress(self) -> float:
        """Share of all steps that are done."""
        return self.step / max(1, self.steps)

    @property
    def due(self) -> bool:
        """Whether a look is due: before the first step and after some others."""
        return self.step in self._looks and (not self.history or self.history[-1]["step"] < self.step)

    def next_batch(self) -> np.ndarray:
        """Return the row indices of the next step; batches run on over epochs of the run's own rows."""
        epoch, number = divmod(self.step, num_batches(len(self.rows), self.spec.batch_size))
        if number == 0 or not self._plan:
            lengths, size = self.rows.encoded.lengths, self.spec.batch_size
            self._plan = TrainingPlan(lengths, size, self.seed, epoch)
        return self._plan[number]

    def terms(
        self, logits: torch.Tensor, features: torch.Tensor, rows: torch.Tensor, remember: bool = True
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted terms of the objective.

        Args:
            logits: of shape (batch, num_labels).
            features: of shape (batch, dim).
            rows: indices of the batch's rows, on the device.
            remember: see ``Objective``.
        """
        return self.objective(logits, features, self.rows.targets(rows), self.progress, remember)

    def end_step(self, values: TermValues, where: Mapping[str, int], rows: int) -> None:
        """Count a step that was taken, and read the losses now and then.

        Args:
            values: the terms of some students.
            where: name of each term → which of the values is this student's.
            rows: of the batch.
        """
        self._seen.append((values, where, rows))
        self.examples += rows
        self.step += 1
        if self.due or len(self._seen) >= CHECK_STEPS:
            self._read_seen()

    def finish(self) -> None:
        """Put the best step back, where one is wanted."""
        self.best.restore()

    def score(self, logits: np.ndarray) -> dict[str, float]:
        """Score logits of ``tune``."""
        scores = self.tune.score(logits) if self.tune else {}
        return {f"tune_{name}": score for name, score in scores.items() if name != "rows"}

    def record(self, seen: Mapping[str, float], scores: Mapping[str, float]) -> None:
        """Record a look, with the mean losses since the last one.

        Args:
            seen: by the watch.
            scores: on tune.
        """
        means = {f"loss_{name}": total / self._summed for name, total in self._sums.items()}
        self._sums, self._summed = {}, 0
        if self.best_by:
            self.best.see(self.step, scores[self.best_by])
        self.history.append({"step": self.step, **means, **seen, **scores})

    def _read_seen(self) -> None:
        """Add up the terms of the steps since the last time, and stop where a loss is not finite."""
        seen, self._seen = self._seen, []
        if not seen:
            return
        for back, (values, where, rows) in zip(range(len(seen), 0, -1), seen, strict=True):
            read = values.read()
            step = {name: read[at] for name, at in where.items()}
            loss = sum(step.values())
            if not math.isfinite(loss):
                self.diverged = (self.step - back + 1, self.last_finite)
                return
            self.last_finite = loss
            self._summed += rows
            for name, value in step.items():
                self._sums[name] = self._sums.get(name, 0.0) + value * rows

    def state(self) -> dict[str, Any]:
        """Return all that is needed to go on from here, as plain values and tensors."""
        self._read_seen()
        return {
            "step": self.step,
            "examples": self.examples,
            "trained": [parameter.detach().clone() for parameter in self.best.parameters],
            "objective": self.objective.state_dict(),
            "memory": self.objective.memory.state() if self.objective.memory else None,
            "optimizer": self.optimizer.state_dict(),
            "best": self.best.state(),
            "history": self.history,
            "diverged": self.diverged,
            "last_finite": self.last_finite,
            "sums": self._sums,
            "summed": self._summed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned, bit for bit."""
        self.step, self.examples = state["step"], state["examples"]
        self.diverged = state["diverged"] and tuple(state["diverged"])
        with torch.no_grad():
            for parameter, kept in zip(self.best.parameters, state["trained"], strict=True):
                parameter.copy_(kept)
        self.objective.load_state_dict(state["objective"])
        if self.objective.memory:
            self.objective.memory.restore(state["memory"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best.restore_state(state["best"])
        self.history, self.last_finite = state["history"], state["last_finite"]
        self._sums, self._summed = state["sums"], state["summed"]


def known_prefix(runs: Sequence[Run]) -> int:
    """Return the length of all prefixes of a pass, if it pays to know the attention to texts; else 0.

    To compute it for a row costs about what it saves in one or two steps.
    """
    often = all(run.steps * run.spec.batch_size >= len(run.rows.inputs.encoded) for run in runs)
    lengths = {run.student.prefix_tokens for run in runs}
    return lengths.pop() if often and len(lengths) == 1 else 0
