"""The loop: one student, one objective, the same batches in the same order for every arm.

Two phases, both on the arm's own objective. First head and pooler alone, on [CLS] states that
are computed once: linear probing before fine-tuning (Kumar et al., 2022). Then prompts, head
and pooler together. The control ``head`` is the first phase alone, so a prompt arm starts
where the control ends, and what it gains is the prompts' doing.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from kdcache.batching import Encoded, fixed_plan, iterate, num_batches, training_plan
from kdcache.errors import TrainingDiverged
from kdcache.extract import capture_features
from kdcache.losses.objective import Objective, Targets
from kdcache.students.watch import Watch

MAX_GRAD_NORM = 1.0

# Row indices → (logits, features) of these rows.
Forward = Callable[[np.ndarray], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train.

    Args:
        lr: peak learning rate of the prompts (AdamW, linear warm-up and decay).
        epochs: passes over the training rows with prompts.
        head_start_lr: peak learning rate of head and pooler alone.
        head_start_epochs: passes of that phase.
        head_lr: peak learning rate of head and pooler beside the prompts.
        batch_size: rows per step.
        weight_decay: on head, pooler and projection; prompts are not pulled to zero.
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
        teacher_logits: of shape (rows, num_labels).
        teacher_features: of shape (rows, dim_t).
    """

    encoded: Encoded
    labels: torch.Tensor
    teacher_logits: torch.Tensor
    teacher_features: torch.Tensor

    def targets(self, indices: np.ndarray) -> Targets:
        """What these rows are taught."""
        rows = torch.from_numpy(indices).to(self.labels.device)
        return Targets(rows, self.labels[rows], self.teacher_logits[rows], self.teacher_features[rows])

    def shuffled_within_class(self, seed: int) -> "TrainingRows":
        """The control: each row gets the teacher's row of another one of its label."""
        order = np.arange(len(self.labels))
        rng = np.random.default_rng(seed)
        for label in np.unique(self.labels.numpy()):
            members = np.flatnonzero(self.labels.numpy() == label)
            order[members] = rng.permutation(members)
        return replace(
            self, teacher_logits=self.teacher_logits[order], teacher_features=self.teacher_features[order]
        )

    def to(self, device: torch.device) -> "TrainingRows":
        """The targets on a device, once, so that a step only gathers rows."""
        targets = (self.labels, self.teacher_logits, self.teacher_features)
        return TrainingRows(self.encoded, *(target.to(device) for target in targets))


def train_student(
    student: PeftModel,
    objective: Objective,
    rows: TrainingRows,
    settings: Settings,
    seed: int,
    device: torch.device,
    after_epoch: Callable[[int, dict[str, float]], None],
) -> dict[str, int]:
    """Train head, pooler and prompts in place; the backbone stays frozen and in eval mode.

    Args:
        student: from ``prompts.build_student``.
        objective: the arm's total.
        rows: training rows with targets.
        settings: the schedule.
        seed: of the order of batches.
        device: where to compute.
        after_epoch: called with the epoch and what was seen: the mean of each weighted term
            (``loss_…``) and what ``Watch`` tells. Epoch 0 is the end of the head start, 1 and
            up are those with prompts.

    Returns:
        Counts: ``head_steps`` and ``steps``.

    Raises:
        TrainingDiverged: a loss became NaN or infinite; names step and last finite loss.
    """
    student.to(device)
    objective.to(device)
    rows = rows.to(device)
    num_outputs = rows.teacher_logits.shape[1] // rows.encoded.num_choices
    prompts, head = trained_parameters(student)
    head += objective.parameters()
    head_start = {"lr": settings.head_start_lr, "params": head, "weight_decay": settings.weight_decay}
    together = [
        {"lr": settings.lr, "params": prompts, "weight_decay": 0.0},
        {"lr": settings.head_lr, "params": head, "weight_decay": settings.weight_decay},
    ]
    epochs = settings.epochs if prompts else 0
    loop = _Loop(objective, rows, settings, seed, settings.head_start_epochs + epochs)
    by_row = rows.encoded.by_row
    with capture_features(student, num_outputs) as latest:
        head_logits = _head_forward(student, rows.encoded, settings.batch_size, device)

        def head_only(indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            return by_row(head_logits(indices)), by_row(latest[0])

        def whole(indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            logits = student(**rows.encoded.batch(indices, device)).logits
            return by_row(logits), by_row(latest[0])

        *_, (_, seen) = loop.run(head_only, [head_start], settings.head_start_epochs)
        after_epoch(0, seen)
        head_steps = loop.step
        if prompts:
            for epoch, seen in loop.run(whole, together, epochs):
                after_epoch(epoch, seen)
    return {"head_steps": head_steps, "steps": loop.step - head_steps}


def trained_parameters(student: PeftModel) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return (prompts, head and pooler): what has a gradient, in two groups."""
    prompts: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            (prompts if name.startswith("prompt_encoder.") else head).append(parameter)
    return prompts, head


def head_modules(student: PeftModel) -> list[nn.Module]:
    """What comes after the encoder, in order: the pooler if there is one, then the head."""
    model: Any = student.get_base_model()
    pooler = getattr(getattr(model, model.base_model_prefix), "pooler", None)
    return [module for module in (pooler, model.classifier) if module is not None]


@torch.no_grad()
def _head_forward(
    student: PeftModel, encoded: Encoded, batch_size: int, device: torch.device
) -> Callable[[np.ndarray], torch.Tensor]:
    """The forward from the [CLS] state on; the states, which no head can change, are computed here."""
    first, *rest = head_modules(student)
    states: list[torch.Tensor] = []
    handle = first.register_forward_pre_hook(lambda _module, inputs: states.append(inputs[0][:, :1]))
    plan = fixed_plan(encoded.lengths, batch_size)
    try:
        for _, batch in iterate(plan, encoded, device):
            student(**batch)
    finally:
        handle.remove()
    order = torch.from_numpy(np.argsort(np.concatenate(plan)))
    by_row = torch.cat(states).unflatten(0, (len(encoded), encoded.num_choices))
    in_row_order = by_row[order.to(device)]

    def logits(indices: np.ndarray) -> torch.Tensor:
        hidden = first(in_row_order[torch.from_numpy(indices).to(device)].flatten(0, 1))
        for module in rest:
            hidden = module(hidden)
        return hidden

    return logits


class _Loop:
    """Batches → loss → step, over the phases of one student."""

    def __init__(
        self, objective: Objective, rows: TrainingRows, settings: Settings, seed: int, epochs: int
    ) -> None:
        self.objective, self.rows, self.settings, self.seed = objective, rows, settings, seed
        self.steps_per_epoch = num_batches(len(rows.encoded.lengths), settings.batch_size)
        self.steps = epochs * self.steps_per_epoch
        self.watch = Watch(len(rows.encoded.lengths), settings.batch_size)
        self.step, self.last = 0, math.nan

    def run(
        self, forward: Forward, groups: list[dict[str, Any]], epochs: int
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Train one phase; yield (epoch from 1, means of the weighted terms and what was watched)."""
        lengths, batch_size = self.rows.encoded.lengths, self.settings.batch_size
        optimizer = torch.optim.AdamW(groups)
        steps = epochs * self.steps_per_epoch
        warm_up = max(1, round(self.settings.warmup_fraction * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda s: min((s + 1) / warm_up, max(0.0, (steps - s) / max(1, steps - warm_up)))
        )
        for epoch in range(epochs):
            sums: dict[str, float] = {}
            for indices in training_plan(lengths, batch_size, self.seed, epoch):
                for name, value in self._step(forward, indices, optimizer).items():
                    sums[name] = sums.get(name, 0.0) + value * len(indices)
                schedule.step()
            seen = {f"loss_{name}": total / len(lengths) for name, total in sums.items()}
            yield epoch + 1, seen | self._watch(forward, groups[0]["params"])

    @property
    def progress(self) -> float:
        """Share of all steps, of both phases, that are done."""
        return self.step / self.steps

    def _step(
        self, forward: Forward, indices: np.ndarray, optimizer: torch.optim.Optimizer
    ) -> dict[str, float]:
        terms = self.objective(*forward(indices), self.rows.targets(indices), self.progress)
        loss = torch.stack(list(terms.values())).sum()
        self.step += 1
        if not torch.isfinite(loss):
            raise TrainingDiverged(
                f"the loss must stay finite, got {loss.item()} at step {self.step} "
                f"(last finite: {self.last:.4g}). Lower distill.lr (now {self.settings.lr:g})."
            )
        self.last = loss.item()
        optimizer.zero_grad()
        loss.backward()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        return {name: value.item() for name, value in terms.items()}

    def _watch(self, forward: Forward, parameters: list[nn.Parameter]) -> dict[str, float]:
        logits, features = forward(self.watch.batch)
        targets = self.rows.targets(self.watch.batch)
        terms = self.objective(logits, features, targets, self.progress, remember=False)
        return self.watch.see(terms, parameters, logits.detach(), targets.logits)
