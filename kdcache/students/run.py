"""One student in training: its batches, optimizer, schedule, losses, scores and best epoch.

Training has two phases, both on the arm's own objective. In the linear-probe warm-up only head and
pooler learn, on [CLS] states that are computed once: linear probing before fine-tuning (Kumar et al.,
2022). Then prompts, head and pooler learn together. The control ``head`` is the first phase only, so
a prompt arm starts where the control ends, and what it gains is due to the prompts.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from kdcache.encoder.batching import num_batches, training_plan
from kdcache.encoder.optimisation import MAX_GRAD_NORM, lr_factor
from kdcache.losses.objective import Objective
from kdcache.students.arms import ArmSpec
from kdcache.students.best_epoch import BestEpoch
from kdcache.students.student import Student, forward, predict
from kdcache.students.training_rows import StudentRows
from kdcache.students.watch import Watch

CHECK_STEPS = 50  # between two looks at the losses: each makes the device wait


class Run:
    """A student in training.

    Args:
        student: from ``build_student``.
        objective: the arm's total.
        rows: training rows, taught as the arm says.
        spec: the arm.
        seed: of the order of batches.
        tune: rows that the student is scored on after each epoch; None where there are none.
    """

    def __init__(
        self,
        student: Student,
        objective: Objective,
        rows: StudentRows,
        spec: ArmSpec,
        seed: int,
        tune: StudentRows | None = None,
    ) -> None:
        self.student, self.objective, self.rows = student, objective, rows
        self.spec, self.seed, self.tune = spec, seed, tune
        self.best_by: str | None = None  # the score whose best epoch is kept at the end of each phase
        if tune is not None and spec.select == "tune":
            self.best_by = f"tune_{tune.task.metrics[0]}"
        self.steps_per_epoch = num_batches(len(rows), spec.batch_size)
        self.probe_steps = spec.probe_epochs * self.steps_per_epoch
        epochs = spec.epochs if student.tuned else 0
        self.steps = self.probe_steps + epochs * self.steps_per_epoch
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.diverged: tuple[int, float | None] | None = None  # step, last finite loss
        self.watch = Watch(len(rows), spec.batch_size)
        self.best = BestEpoch([*student.tuned, *student.head_parameters])
        self.best_probe = BestEpoch([*student.head_parameters, *objective.parameters()])
        self.last_finite: float | None = None
        self._losses: list[torch.Tensor] = []
        self._sums: dict[str, torch.Tensor] = {}
        self._plan: list[np.ndarray] = []
        self.optimizer = self._start_phase()

    @property
    def in_probe(self) -> bool:
        """Whether the linear-probe warm-up goes on, in which only head and pooler learn."""
        return self.step < self.probe_steps

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or none can be any more."""
        return self.step >= self.steps or self.diverged is not None

    @property
    def progress(self) -> float:
        """Share of all steps, of both phases, that are done."""
        return self.step / self.steps

    def next_batch(self) -> np.ndarray:
        """Return the row indices of the next step."""
        epoch, number = divmod(self._phase_step, self.steps_per_epoch)
        if number == 0 or not self._plan:
            lengths, size = self.rows.encoded.lengths, self.spec.batch_size
            self._plan = training_plan(lengths, size, self.seed, epoch)
        return self._plan[number]

    def loss(self, logits: torch.Tensor, features: torch.Tensor, indices: np.ndarray) -> torch.Tensor:
        """Compute the objective of a batch from outputs of shape (batch · choices, …)."""
        by_row = self.rows.encoded.by_row
        terms = self.objective(by_row(logits), by_row(features), self.rows.targets(indices), self.progress)
        for name, value in terms.items():
            so_far = self._sums.get(name, 0.0)
            self._sums[name] = so_far + value.detach().double() * len(indices)
        total = torch.stack(list(terms.values())).sum()
        self._losses.append(total.detach())
        return total

    def outputs(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits, features) of some training rows, of shape (batch · choices, …).

        Until prompts take their first step, the head on the frozen backbone's states gives them.
        """
        inputs = self.rows.inputs
        if self.step <= self.probe_steps:
            states = inputs.states[torch.from_numpy(indices).to(inputs.states.device)]
            return self.student.head(states.flatten(0, 1))
        batch = inputs.padded.batch(indices)
        return forward([self.student], batch, [len(indices) * self.rows.encoded.num_choices])[0]

    def update(self) -> None:
        """Take the optimizer's step, and at an epoch's end record losses and scores."""
        nn.utils.clip_grad_norm_(self._trained, MAX_GRAD_NORM)
        steps = self.probe_steps if self.in_probe else self.steps - self.probe_steps
        factor = lr_factor(self._phase_step, steps, self.spec.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        ends_epoch = self._phase_step % self.steps_per_epoch == 0 or self.step == self.probe_steps
        if ends_epoch or len(self._losses) >= CHECK_STEPS:
            self._check_losses()
        if ends_epoch and self.diverged is None:
            self._end_epoch()

    def finish(self) -> None:
        """Put the best epoch back, where one is wanted."""
        self.best.restore()

    def score(self) -> dict[str, float]:
        """Score the student on ``tune``; empty where there are no such rows."""
        if self.tune is None:
            return {}
        return self._named(self.tune.score(predict(self.student, self.tune.encoded)[0]))

    @torch.no_grad()
    def score_probe(self) -> dict[str, float]:
        """Score the head on the frozen backbone's states of ``tune``, which takes no forward pass."""
        if self.tune is None:
            return {}
        logits, _ = self.student.head(self.tune.inputs.states.flatten(0, 1))
        return self._named(self.tune.score(self.tune.encoded.by_row(logits).cpu().numpy()))

    @staticmethod
    def _named(scores: dict[str, float]) -> dict[str, float]:
        return {f"tune_{name}": score for name, score in scores.items() if name != "rows"}

    @property
    def _phase_step(self) -> int:
        return self.step if self.in_probe else self.step - self.probe_steps

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _start_phase(self) -> torch.optim.Optimizer:
        """Make a fresh optimizer, of head and pooler, or of these and the prompts."""
        self._plan = []
        spec = self.spec
        head = [*self.student.head_parameters, *self.objective.parameters()]
        own = self.student.tuned
        if self.in_probe:
            groups = [{"peak": spec.probe_lr, "params": head, "weight_decay": spec.weight_decay}]
        else:
            decay = 0.0 if self.student.prompt is not None else spec.weight_decay
            groups = [
                {"peak": spec.lr, "params": own, "weight_decay": decay},
                {"peak": spec.head_lr, "params": head, "weight_decay": spec.weight_decay},
            ]
        return torch.optim.AdamW(groups)

    def _check_losses(self) -> None:
        values = torch.stack(self._losses).tolist() if self._losses else []
        self._losses = []
        for back, value in zip(range(len(values), 0, -1), values, strict=True):
            if not math.isfinite(value):
                self.diverged = (self.step - back + 1, self.last_finite)
                return
            self.last_finite = value

    def _end_epoch(self) -> None:
        """Record an epoch: 0 is the end of the linear-probe warm-up, prompts train in those from 1 on."""
        before_prompts = self.step <= self.probe_steps
        if before_prompts and self.best_by:
            self.best_probe.see(self.step // self.steps_per_epoch, self.score_probe()[self.best_by])
        if self.in_probe:
            self._sums = {}
            return
        if before_prompts:
            self.best_probe.restore()
        epoch = 0 if before_prompts else self._phase_step // self.steps_per_epoch
        seen = {f"loss_{name}": float(total) / len(self.rows) for name, total in self._sums.items()}
        self._sums = {}
        watched = self.student.head_parameters if before_prompts else self.student.tuned
        logits, features = map(self.rows.encoded.by_row, self.outputs(self.watch.batch))
        targets = self.rows.targets(self.watch.batch)
        terms = self.objective(logits, features, targets, self.progress, remember=False)
        seen |= self.watch.see(terms, watched, logits.detach(), targets.logits)
        scores = self.score()
        if self.best_by:
            self.best.see(epoch, scores[self.best_by])
        self.history.append({"epoch": epoch, **seen, **scores})
        if before_prompts and not self.finished:
            self.optimizer = self._start_phase()

    def state(self) -> dict[str, Any]:
        """Return all that is needed to go on from here, as plain values and tensors."""
        return {
            "step": self.step,
            "trained": [parameter.detach().clone() for parameter in self.best.parameters],
            "objective": self.objective.state_dict(),
            "memory": self.objective.memory.state() if self.objective.memory else None,
            "optimizer": self.optimizer.state_dict(),
            "best": self.best.state(),
            "best_probe": self.best_probe.state(),
            "history": self.history,
            "diverged": self.diverged,
            "last_finite": self.last_finite,
            "losses": self._losses,
            "sums": self._sums,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned, bit for bit."""
        self.step = state["step"]
        self.diverged = state["diverged"] and tuple(state["diverged"])
        with torch.no_grad():
            for parameter, kept in zip(self.best.parameters, state["trained"], strict=True):
                parameter.copy_(kept)
        self.objective.load_state_dict(state["objective"])
        if self.objective.memory:
            self.objective.memory.restore(state["memory"])
        if not self.finished:
            self.optimizer = self._start_phase()
            self.optimizer.load_state_dict(state["optimizer"])
        self.best.restore_state(state["best"])
        self.best_probe.restore_state(state["best_probe"])
        self.history, self.last_finite = state["history"], state["last_finite"]
        self._losses, self._sums = state["losses"], state["sums"]
