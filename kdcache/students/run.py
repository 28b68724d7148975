"""One student's course: its own order, optimizer, schedule, losses and best epoch.

Two phases, both on the arm's own objective. First head and pooler alone, on [CLS] states that
are computed once: linear probing before fine-tuning (Kumar et al., 2022). Then prompts, head
and pooler together. The control ``head`` is the first phase alone, so a prompt arm starts
where the control ends, and what it gains is the prompts' doing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from kdcache.encoder.batching import Encoded, num_batches, training_plan
from kdcache.losses.objective import Objective, Targets
from kdcache.students.best import BestEpoch
from kdcache.students.student import Student
from kdcache.students.watch import Watch

Score = Callable[[Student], dict[str, float]]
MAX_GRAD_NORM = 1.0
CHECK_STEPS = 50  # between two looks at the losses: each look makes the device wait


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train.

    Args:
        lr: peak learning rate of prompts, or of a reference's weights (AdamW, linear warm-up
            and decay).
        epochs: passes over the training rows with prompts.
        head_start_lr: peak learning rate of head and pooler alone.
        head_start_epochs: passes of that phase.
        head_lr: peak learning rate of head and pooler beside the prompts.
        batch_size: rows per step.
        weight_decay: on head, pooler and projection, and on a reference's weights; prompts are
            not pulled to zero.
        warmup_fraction: share of each phase's steps that warm up.
    """

    lr: float
    epochs: int
    head_start_lr: float
    head_start_epochs: int
    head_lr: float
    batch_size: int
    weight_decay: float
    warmup_fraction: float


@dataclass(frozen=True)
class TrainingRows:
    """Rows and their targets, aligned.

    Args:
        encoded: the tokenised rows.
        labels: int64 of shape (rows,), −1 = unlabelled.
        teacher_logits, teacher_features: of shape (rows, num_labels) and (rows, dim_t).
    """

    encoded: Encoded
    labels: torch.Tensor
    teacher_logits: torch.Tensor
    teacher_features: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "TrainingRows":
        """The first rows."""
        targets = (self.labels, self.teacher_logits, self.teacher_features)
        return TrainingRows(self.encoded.take(range(count)), *(target[:count] for target in targets))

    def targets(self, indices: np.ndarray) -> Targets:
        """What these rows are taught."""
        rows = torch.from_numpy(indices).to(self.labels.device)
        return Targets(rows, self.labels[rows], self.teacher_logits[rows], self.teacher_features[rows])

    def shuffled_within_class(self, seed: int) -> "TrainingRows":
        """The control: each row gets the teacher's row of another one of its label."""
        order = np.arange(len(self.labels))
        rng = np.random.default_rng(seed)
        labels = self.labels.cpu().numpy()
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            order[members] = rng.permutation(members)
        return replace(
            self, teacher_logits=self.teacher_logits[order], teacher_features=self.teacher_features[order]
        )

    def to(self, device: torch.device) -> "TrainingRows":
        """The targets on a device, once, so that a step only gathers rows."""
        targets = (self.labels, self.teacher_logits, self.teacher_features)
        return TrainingRows(self.encoded, *(target.to(device) for target in targets))


class Run:
    """A student in training.

    Args:
        student: from ``build_student``.
        objective: the arm's total.
        rows: training rows with targets, on the student's device.
        settings: the schedule.
        seed: of the order of batches.
        scores: student → name → score, of the student as it is (after each epoch, and the head
            start's end) and of its head alone (after each epoch of the head start); None where
            there is nothing to score on.
        best_by: the score whose best epoch is kept at the end of each phase; None keeps the last.
    """

    def __init__(
        self,
        student: Student,
        objective: Objective,
        rows: TrainingRows,
        settings: Settings,
        seed: int,
        scores: tuple[Score, Score] | None = None,
        best_by: str | None = None,
    ) -> None:
        self.student, self.objective, self.rows = student, objective, rows
        self.settings, self.seed, self.scores, self.best_by = settings, seed, scores, best_by
        self.steps_per_epoch = num_batches(len(rows), settings.batch_size)
        self.head_steps = settings.head_start_epochs * self.steps_per_epoch
        epochs = settings.epochs if student.tuned else 0
        self.steps = self.head_steps + epochs * self.steps_per_epoch
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.diverged: tuple[int, float | None] | None = None  # step, last finite loss
        self.watch = Watch(len(rows), settings.batch_size)
        self.best = BestEpoch([*student.tuned, *student.head_parameters])
        self.best_head = BestEpoch([*student.head_parameters, *objective.parameters()])
        self.last_finite: float | None = None
        self._losses: list[torch.Tensor] = []
        self._sums: dict[str, torch.Tensor] = {}
        self._plan: list[np.ndarray] = []
        self.optimizer = self._start_phase()

    @property
    def in_head_start(self) -> bool:
        """Whether head and pooler are trained alone."""
        return self.step < self.head_steps

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or none can be any more."""
        return self.step >= self.steps or self.diverged is not None

    @property
    def progress(self) -> float:
        """Share of all steps, of both phases, that are done."""
        return self.step / self.steps

    def next_batch(self) -> np.ndarray:
        """Row indices of the step to come."""
        epoch, number = divmod(self._phase_step, self.steps_per_epoch)
        if number == 0 or not self._plan:
            lengths, size = self.rows.encoded.lengths, self.settings.batch_size
            self._plan = training_plan(lengths, size, self.seed, epoch)
        return self._plan[number]

    def loss(self, logits: torch.Tensor, features: torch.Tensor, indices: np.ndarray) -> torch.Tensor:
        """The objective on a batch; both are of shape (batch · choices, …)."""
        by_row = self.rows.encoded.by_row
        terms = self.objective(by_row(logits), by_row(features), self.rows.targets(indices), self.progress)
        for name, value in terms.items():
            so_far = self._sums.get(name, 0.0)
            self._sums[name] = so_far + value.detach().double() * len(indices)
        total = torch.stack(list(terms.values())).sum()
        self._losses.append(total.detach())
        return total

    def update(self, look: Callable[["Run", np.ndarray], tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Take the optimizer's step, and what an epoch's end brings.

        Args:
            look: (run, row indices) → (logits, features) of the student as it is.
        """
        nn.utils.clip_grad_norm_(self._trained, MAX_GRAD_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self._lr_factor()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        ends_epoch = self._phase_step % self.steps_per_epoch == 0 or self.step == self.head_steps
        if ends_epoch or len(self._losses) >= CHECK_STEPS:
            self._look_at_losses()
        if ends_epoch and self.diverged is None:
            self._end_epoch(look)

    def finish(self) -> None:
        """Put the best epoch back, where one is wanted."""
        self.best.restore()

    @property
    def _phase_step(self) -> int:
        return self.step if self.in_head_start else self.step - self.head_steps

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _start_phase(self) -> torch.optim.Optimizer:
        """A fresh optimizer: of head and pooler, or of these and the prompts."""
        self._plan = []
        settings = self.settings
        head = [*self.student.head_parameters, *self.objective.parameters()]
        own = self.student.tuned
        if self.in_head_start:
            groups = [{"peak": settings.head_start_lr, "params": head, "weight_decay": settings.weight_decay}]
        else:
            decay = 0.0 if self.student.prompt is not None else settings.weight_decay
            groups = [
                {"peak": settings.lr, "params": own, "weight_decay": decay},
                {"peak": settings.head_lr, "params": head, "weight_decay": settings.weight_decay},
            ]
        return torch.optim.AdamW(groups)

    def _lr_factor(self) -> float:
        steps = self.head_steps if self.in_head_start else self.steps - self.head_steps
        warm_up = max(1, round(self.settings.warmup_fraction * steps))
        step = self._phase_step
        return min((step + 1) / warm_up, max(0.0, (steps - step) / max(1, steps - warm_up)))

    def _look_at_losses(self) -> None:
        values = torch.stack(self._losses).tolist() if self._losses else []
        self._losses = []
        for back, value in zip(range(len(values), 0, -1), values, strict=True):
            if not math.isfinite(value):
                self.diverged = (self.step - back + 1, self.last_finite)
                return
            self.last_finite = value

    def _end_epoch(self, look: Callable[["Run", np.ndarray], tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Record what was seen; epoch 0 is the end of the head start, 1 and up are those with prompts."""
        before = self.step <= self.head_steps
        if before and self.best_by and self.scores:
            score = self.scores[1](self.student)[self.best_by]
            self.best_head.see(self.step // self.steps_per_epoch, score)
        if self.in_head_start:
            self._sums = {}
            return
        if before:
            self.best_head.restore()
        epoch = 0 if before else self._phase_step // self.steps_per_epoch
        seen = {f"loss_{name}": float(total) / len(self.rows) for name, total in self._sums.items()}
        self._sums = {}
        watched = self.student.head_parameters if before else self.student.tuned
        logits, features = (self.rows.encoded.by_row(x) for x in look(self, self.watch.batch))
        targets = self.rows.targets(self.watch.batch)
        terms = self.objective(logits, features, targets, self.progress, remember=False)
        seen |= self.watch.see(terms, watched, logits.detach(), targets.logits)
        scores = self.scores[0](self.student) if self.scores else {}
        if self.best_by:
            self.best.see(epoch, scores[self.best_by])
        self.history.append({"epoch": epoch, **seen, **scores})
        if before and not self.finished:
            self.optimizer = self._start_phase()

    def state(self) -> dict[str, Any]:
        """All that going on from here needs, as plain values and tensors."""
        return {
            "step": self.step,
            "trained": [parameter.detach().clone() for parameter in self.best.parameters],
            "objective": self.objective.state_dict(),
            "memory": self.objective.memory.state() if self.objective.memory else None,
            "optimizer": self.optimizer.state_dict(),
            "best": self.best.state(),
            "best_head": self.best_head.state(),
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
        self.best_head.restore_state(state["best_head"])
        self.history, self.last_finite = state["history"], state["last_finite"]
        self._losses, self._sums = state["losses"], state["sums"]
