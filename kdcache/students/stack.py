"""Students of one kind, trained as one: a parameter of all of them in one tensor, an operation in one call.

On a GPU a small student's step is bound by kernel launches. Students that differ in their seeds,
starts and orders of rows share the launches of prompts, heads, losses and optimizer, as they share
those of the backbone. Each still takes the steps that it would take alone, to rounding.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.utils._pytree import tree_map

from kdcache.encoder.architectures import has_bert_layers
from kdcache.encoder.optimisation import MAX_GRAD_NORM, adamw, set_rates
from kdcache.losses.linear_time import SMALL_BATCH_ROWS
from kdcache.losses.objective import Targets
from kdcache.students.run import Run

# Losses whose Python looks at values, which differ between students; those of large batches do, too.
ONE_BY_ONE = {"dkd", "rkd_distance"}
NOT_REPLAYED = ONE_BY_ONE | {"rkd_angle"}  # its blocks ask for the state of the random numbers

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


class Stack:
    """Some runs of one kind, at the same step.

    Args:
        runs: of one ``kind``. While stacked, the parameters of their students are views into the
            stack's tensors, and their own optimizers rest.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)
        self.alone = len(runs) == 1
        first = runs[0]
        self.optimizer = first.optimizer
        if self.alone:
            return
        self._values: list[dict[str, Any]] = []  # of prompts, heads, objectives
        trained = []
        for modules in zip(*map(_modules, runs), strict=True):
            values, buffers = stack_module_state(list(modules))
            self._values.append(values | buffers)
            trained.append([value for value in values.values() if value.requires_grad])
            for k, module in enumerate(modules):
                for name, parameter in module.named_parameters():
                    parameter.data = values[name].data[k]
        prompt, *rest = trained
        parts = [prompt, [value for part in rest for value in part]]
        groups = first.optimizer.param_groups
        stacked_groups = [{**group, "params": part} for group, part in zip(groups, parts, strict=True)]
        self.optimizer = adamw(stacked_groups, first.student.backbone.device)
        for stacked, singles in self._pairs():
            states = [run.optimizer.state[single] for run, single in zip(runs, singles, strict=True)]
            if all(states):
                self.optimizer.state[stacked] = {
                    key: torch.stack([s[key] for s in states]) for key in MOMENTS
                }
                self.optimizer.state[stacked]["step"] = states[0]["step"].clone()

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """What the optimizer moves, each of shape (students, …) unless the student is alone."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def replayable(self) -> bool:
        """Whether the operations of a step are the same at each step, whatever the values.

        Of encoders, only those with BERT's layers were seen to be.
        """
        run, objective = self.runs[0], self.runs[0].objective
        names = {term.name for term in objective.terms.values()}
        same = run.student.prompt is not None and objective.memory is None and not objective.ramps
        plain = not names & NOT_REPLAYED and has_bert_layers(run.student.backbone.config)
        return same and plain and self._by_shape

    @property
    def _by_shape(self) -> bool:
        """Whether the losses do the same for all values of one shape."""
        run = self.runs[0]
        names = {term.name for term in run.objective.terms.values()}
        return not names & ONE_BY_ONE and run.spec.batch_size < SMALL_BATCH_ROWS

    def _pairs(self) -> list[tuple[Any, list[Any]]]:
        """Return each trained tensor of the stack with the parameters of the runs."""
        singles = [[p for group in run.optimizer.param_groups for p in group["params"]] for run in self.runs]
        return list(zip(self.trained, map(list, zip(*singles, strict=True)), strict=True))

    def give_back_moments(self) -> None:
        """Give each run's optimizer the moments of its own parameters, for a checkpoint."""
        if self.alone:
            return
        for stacked, singles in self._pairs():
            state = self.optimizer.state[stacked]
            if not state:
                continue
            for k, (run, single) in enumerate(zip(self.runs, singles, strict=True)):
                moments = {key: state[key][k].clone() for key in MOMENTS}
                run.optimizer.state[single] = moments | {"step": state["step"].clone()}

    def release(self) -> None:
        """Give each run its own parameters and moments back."""
        if self.alone:
            return
        for modules in zip(*map(_modules, self.runs), strict=True):
            for module in modules:
                for parameter in module.parameters():
                    parameter.data = parameter.data.clone()
        self.give_back_moments()

    def next_batches(self) -> list[np.ndarray]:
        """Return the rows of the next step, for each student as many: they train on as many rows."""
        return [run.next_batch() for run in self.runs]

    def prompts(self, count: int) -> torch.Tensor | None:
        """Return the prompt of each sequence; None for a reference, which has none.

        Args:
            count: sequences per student.

        Returns:
            Of shape (students · count, virtual_tokens, width); of a student alone (1, virtual_tokens, width).
        """
        prompt: Any = self.runs[0].student.prompt
        if prompt is None:
            return None
        if self.alone:
            return prompt()[None]
        each = vmap(lambda values: functional_call(prompt, values, ()))(self._values[0])
        # Expanded, not gathered: see ``RowPrompts.of``.
        return each[:, None].expand(-1, count, -1, -1).flatten(0, 1)

    def terms(self, states: torch.Tensor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the losses of the students.

        Args:
            states: pooled, of shape (students · count, dim).
            rows: indices of theirs, int64 of shape (students, batch), on the device.

        Returns:
            name → one weighted value per student.
        """
        first, head, by_row = self.runs[0], self.runs[0].student.head, self.runs[0].rows.encoded.by_row
        if self.alone:
            logits, features = head(states)
            terms = first.terms(by_row(logits), by_row(features), rows[0])
            return {name: value[None] for name, value in terms.items()}

        def outputs(values: Any, some: torch.Tensor) -> Any:
            logits, features = functional_call(head, values, (some,))
            return by_row(logits), by_row(features)

        states = states.unflatten(0, (len(self.runs), -1))
        logits, features = vmap(outputs)(self._values[1], states)
        return self._terms(logits, features, rows)

    def _terms(
        self, logits: torch.Tensor, features: torch.Tensor, rows: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        objective, progress = self.runs[0].objective, self.runs[0].progress
        given = (self._values[2], logits, features, *self._targets(rows))

        def terms(values: Any, logits: Any, features: Any, *targets: Any) -> Any:
            return functional_call(objective, values, (logits, features, Targets(*targets), progress))

        if self._by_shape:
            return vmap(terms)(*given)
        each = [terms(*tree_map(lambda value, k=k: value[k], given)) for k in range(len(self.runs))]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    def _targets(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Return rows, labels, logits and features to learn from, each with the students first."""
        taught = [run.rows for run in self.runs]
        kinds = ("labels", "teacher_logits", "teacher_features")
        names = ("rows", "labels", "logits", "features")
        if all(getattr(one, kind) is getattr(taught[0], kind) for one in taught for kind in kinds):
            found = taught[0].targets(rows.flatten())
            return [getattr(found, name).unflatten(0, (len(taught), -1)) for name in names]
        each = [one.targets(batch) for one, batch in zip(taught, rows, strict=True)]
        return [torch.stack([getattr(one, name) for one in each]) for name in names]

    def set_rates(self) -> None:
        """Set the learning rates of the next step."""
        first = self.runs[0]
        set_rates(self.optimizer, first.step, first.steps, first.spec.warmup_fraction)

    def update(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Take the optimizer's step of every student; each has a gradient norm of its own.

        Args:
            gradients: of ``trained``; they are changed.
        """
        gradients = [None if gradient is None else gradient.contiguous() for gradient in gradients]
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient
        if self.alone:
            torch.nn.utils.clip_grad_norm_(self.trained, MAX_GRAD_NORM)
        else:
            found = [gradient for gradient in gradients if gradient is not None]
            norms = torch.stack([g.flatten(1).square().sum(1) for g in found]).sum(0).sqrt()
            shares = (MAX_GRAD_NORM / (norms + 1e-6)).clamp(max=1.0)  # as ``clip_grad_norm_`` has it
            for gradient in found:
                gradient.mul_(shares.view(-1, *[1] * (gradient.ndim - 1)))
        self.optimizer.step()
        self.optimizer.zero_grad()


def _modules(run: Run) -> list[Any]:
    return [run.student.prompt, run.student.head, run.objective]


def kind(run: Run) -> Hashable:
    """Return what runs that may share a stack have in common; a run without a like is of its own kind."""
    spec, prompt = run.spec, run.student.prompt
    if prompt is None or run.objective.memory is not None:
        return id(run)
    shapes = [tuple(p.shape) for module in _modules(run) for p in module.parameters()]
    return repr([
        type(prompt).__name__, shapes, spec.terms, spec.ce_weight, spec.label_smoothing, spec.lr,
        spec.head_lr, spec.weight_decay, spec.warmup_fraction, spec.batch_size, run.steps, run.step,
        len(run.rows),
    ])  # fmt: skip


def stacked(runs: Sequence[Run]) -> list[Stack]:
    """Stack runs with those of their kind, in order."""
    kinds: dict[Hashable, list[Run]] = {}
    for run in runs:
        kinds.setdefault(kind(run), []).append(run)
    return [Stack(same) for same in kinds.values()]
