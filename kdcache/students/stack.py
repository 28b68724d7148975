"""Students of one kind, trained as one: a parameter of all of them in one tensor, an operation in one call.

On a GPU a small student's step is bound by kernel launches. Students that differ in their seeds,
starts and orders of rows share the launches of prompts, heads, losses and optimizer, as they share
those of the backbone. Each still takes the steps that it would take alone, to rounding.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.utils._pytree import tree_map

from kdcache.encoder.optimisation import MAX_GRAD_NORM, lr_factor
from kdcache.losses.linear_time import SMALL_BATCH_ROWS
from kdcache.losses.objective import Targets
from kdcache.students.run import Run

# Losses whose Python looks at values, which differ between students; those of large batches do, too.
ONE_BY_ONE = {"dkd", "rkd_distance"}

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
        if self.alone:
            return
        first = runs[0]
        self._values: list[dict[str, Any]] = []
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
        self.optimizer = torch.optim.AdamW(
            [{**group, "params": part} for group, part in zip(groups, parts, strict=True)]
        )
        for stacked, singles in self._pairs():
            states = [run.optimizer.state[single] for run, single in zip(runs, singles, strict=True)]
            if all(states):
                moments = ("exp_avg", "exp_avg_sq")
                self.optimizer.state[stacked] = {
                    key: torch.stack([s[key] for s in states]) for key in moments
                }
                self.optimizer.state[stacked]["step"] = states[0]["step"].clone()

    def _pairs(self) -> list[tuple[Any, list[Any]]]:
        """Return each trained tensor of the stack with the parameters of the runs."""
        stacked = [p for group in self.optimizer.param_groups for p in group["params"]]
        singles = [[p for group in run.optimizer.param_groups for p in group["params"]] for run in self.runs]
        return list(zip(stacked, map(list, zip(*singles, strict=True)), strict=True))

    def release(self) -> None:
        """Give each run its own parameters and moments back."""
        if self.alone:
            return
        for modules in zip(*map(_modules, self.runs), strict=True):
            for module in modules:
                for parameter in module.parameters():
                    parameter.data = parameter.data.clone()
        for stacked, singles in self._pairs():
            state = self.optimizer.state[stacked]
            if not state:
                continue
            for k, (run, single) in enumerate(zip(self.runs, singles, strict=True)):
                moments = {key: state[key][k].clone() for key in MOMENTS}
                run.optimizer.state[single] = moments | {"step": state["step"].clone()}

    def next_parts(self) -> list["Part"]:
        """Return the rows of the next step, for students whose batches have one size together.

        The last batch of an epoch is smaller, and comes at another step for each seed.
        """
        batches = [run.next_batch() for run in self.runs]
        sizes = [len(rows) for rows in batches]
        parts = []
        for size in dict.fromkeys(sizes):
            which = [k for k, other in enumerate(sizes) if other == size]
            parts.append(Part(self, which, [batches[k] for k in which]))
        return parts

    def values(self, module: int, which: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the parameters of some students, stacked.

        Args:
            module: 0 prompts, 1 heads, 2 objectives.
            which: of the runs.
        """
        found = self._values[module]
        if len(which) == len(self.runs):
            return found
        return {name: torch.stack([value[k] for k in which]) for name, value in found.items()}

    def update(self) -> None:
        """Take the optimizer's step of every student; each has a gradient norm of its own."""
        if self.alone:
            self.runs[0].update()
            return
        first, groups = self.runs[0], self.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        shares = (MAX_GRAD_NORM / (norms + 1e-6)).clamp(max=1.0)  # as ``clip_grad_norm_`` has it
        for gradient in gradients:
            gradient.mul_(shares.view(-1, *[1] * (gradient.ndim - 1)))
        factor = lr_factor(first.step, first.steps, first.spec.warmup_fraction)
        for group in groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        for run in self.runs:
            run.end_step()


@dataclass(frozen=True)
class Part:
    """The batches of one step of some students of a stack, all of one size.

    Args:
        stack: theirs.
        which: of its runs.
        batches: row indices, one array per student.
    """

    stack: Stack
    which: list[int]
    batches: list[np.ndarray]

    @property
    def runs(self) -> list[Run]:
        """The students."""
        return [self.stack.runs[k] for k in self.which]

    @property
    def count(self) -> int:
        """Sequences per student."""
        return len(self.batches[0]) * self.runs[0].rows.encoded.num_choices

    def prompts(self) -> torch.Tensor:
        """Return the prompt of each sequence, of shape (students · count, virtual_tokens, width)."""
        prompt: Any = self.runs[0].student.prompt
        if self.stack.alone:
            return prompt().expand(self.count, -1, -1)
        each = vmap(lambda values: functional_call(prompt, values, ()))(self.stack.values(0, self.which))
        # Expanded, not gathered: see ``RowPrompts.of``.
        return each[:, None].expand(-1, self.count, -1, -1).flatten(0, 1)

    def loss(self, states: torch.Tensor) -> torch.Tensor:
        """Return the sum of the students' losses.

        Args:
            states: pooled, of shape (students · count, dim).
        """
        first, head, by_row = self.runs[0], self.runs[0].student.head, self.runs[0].rows.encoded.by_row
        if self.stack.alone:
            logits, features = head(states)
            return first.loss(logits, features, self.batches[0])

        def outputs(values: Any, some: torch.Tensor) -> Any:
            logits, features = functional_call(head, values, (some,))
            return by_row(logits), by_row(features)

        states = states.unflatten(0, (len(self.which), -1))
        terms = self._terms(*vmap(outputs)(self.stack.values(1, self.which), states))
        for k, (run, rows) in enumerate(zip(self.runs, self.batches, strict=True)):
            run.saw({name: (values, k) for name, values in terms.items()}, len(rows))
        return torch.stack(list(terms.values())).sum()

    def _terms(self, logits: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return name → one value per student."""
        objective, progress = self.runs[0].objective, self.runs[0].progress
        given = (self.stack.values(2, self.which), logits, features, *self._targets())

        def terms(values: Any, logits: Any, features: Any, *targets: Any) -> Any:
            return functional_call(objective, values, (logits, features, Targets(*targets), progress))

        names = {term.name for term in objective.terms.values()}
        if not names & ONE_BY_ONE and logits.shape[1] < SMALL_BATCH_ROWS:
            return vmap(terms)(*given)
        each = [terms(*tree_map(lambda value, k=k: value[k], given)) for k in range(len(self.which))]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    def _targets(self) -> list[torch.Tensor]:
        """Return rows, labels, logits and features to learn from, each with the students first."""
        rows = [run.rows for run in self.runs]
        kinds = ("labels", "teacher_logits", "teacher_features")
        names = ("rows", "labels", "logits", "features")
        if all(getattr(one, kind) is getattr(rows[0], kind) for one in rows for kind in kinds):
            found = rows[0].targets(np.concatenate(self.batches))
            return [getattr(found, name).unflatten(0, (len(rows), -1)) for name in names]
        each = [one.targets(batch) for one, batch in zip(rows, self.batches, strict=True)]
        return [torch.stack([getattr(one, name) for one in each]) for name in names]


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
