"""A step of training of a pass: its rows are chosen on the host, the rest is operations on the device.

On a GPU such a step is bound by the time that the host takes to start its operations. A step of one
shape is therefore recorded as a CUDA graph, and started as one launch from then on. It computes the
same, to rounding: where no row of a batch is padded, a computed step leaves out the mask, a replayed
one does not. Where recording fails, steps are computed, and this is said.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from kdcache.encoder.batching import Padded
from kdcache.students.row_prompts import RowPrompts
from kdcache.students.run import TermValues, known_prefix
from kdcache.students.stack import Stack

SEEN_BEFORE = 2  # times that a shape came up before it is recorded: it may not come again


class Step:
    """The step of some stacks that share a backbone and the inputs of their rows.

    Args:
        stacks: with prompts at one place, or a single reference.
    """

    records = True  # until a recording fails in this process

    def __init__(self, stacks: Sequence[Stack]) -> None:
        first = stacks[0].runs[0]
        self.stacks = stacks
        self.backbone, self.inputs = first.student.backbone, first.rows.inputs
        self.padded, self.late_layers = self.inputs.padded, first.student.late_layers
        self.replays = (
            Step.records and self.backbone.device.type == "cuda" and all(stack.replayable for stack in stacks)
        )
        self.prefix_tokens = known_prefix([run for stack in stacks for run in stack.runs])
        self._times: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, tuple[Any, torch.Tensor, torch.Tensor]] = {}
        self._names: list[list[str]] = []
        self._pool: Any = None

    def take(self) -> None:
        """Take a step of every student."""
        batches = [stack.next_batches() for stack in self.stacks]
        sizes = tuple(len(some[0]) for some in batches)
        rows = np.concatenate([batch for some in batches for batch in some])
        for stack in self.stacks:
            stack.set_rates()
        values = TermValues(self._values(rows, sizes))
        at = itertools.count()
        for stack, names, size in zip(self.stacks, self._names, sizes, strict=True):
            places = [[next(at) for _ in stack.runs] for _ in names]
            for run, *where in zip(stack.runs, *places, strict=True):
                run.end_step(values, dict(zip(names, where, strict=True)), size)

    def _values(self, rows: np.ndarray, sizes: tuple[int, ...]) -> torch.Tensor:
        """Return the terms of all students after a step, a replay of an earlier one where there is one."""
        on_device = torch.from_numpy(rows).to(self.backbone.device)
        if not self.replays or not isinstance(self.padded, Padded):
            return self._compute(on_device, sizes, self.padded.batch(rows))
        shape = (sizes, self.padded.tokens(rows))
        self._times[shape] += 1
        if self._times[shape] <= SEEN_BEFORE:
            return self._compute(on_device, sizes, self.padded.gather(on_device, shape[1]))
        if shape not in self._recorded and not self._record(shape, on_device):
            return self._compute(on_device, sizes, self.padded.gather(on_device, shape[1]))
        graph, fixed, values = self._recorded[shape]
        fixed.copy_(on_device)
        graph.replay()
        return values.clone()  # the next replay writes over them

    def _record(self, shape: tuple[tuple[int, ...], int], rows: torch.Tensor) -> bool:
        """Record the step of a shape, without taking it. Where that fails, say so and record none any more.

        Args:
            shape: rows per student of each stack, and tokens.
            rows: of all students, one after another.
        """
        graph, fixed, stream = torch.cuda.CUDAGraph(), rows.clone(), torch.cuda.current_stream()
        padded: Any = self.padded
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                values = self._compute(fixed, shape[0], padded.gather(fixed, shape[1]))
        except RuntimeError as error:  # such as too little memory, whose class is not always kept
            self._recorded.clear()
            Step.records = self.replays = False
            name = type(error).__name__
            tqdm.write(f"distill: no step can be recorded ({name}), so they are computed", file=sys.stderr)
            return False
        finally:
            torch.cuda.set_stream(stream)  # torch leaves its own current where the end of a recording fails
        self._pool = graph.pool()
        self._recorded[shape] = graph, fixed, values
        return True

    def _compute(
        self, rows: torch.Tensor, sizes: Sequence[int], batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Take the step on the device.

        Args:
            rows: of all students, one after another.
            sizes: rows per student of each stack.
            batch: the tokens of the rows.

        Returns:
            The terms: stack by stack, term by term, student by student.
        """
        choices = self.stacks[0].runs[0].rows.encoded.num_choices
        counts = [size * choices for size in sizes]
        batch = self.inputs.with_trunk(batch, rows, self.late_layers)
        one = sum(len(stack.runs) for stack in self.stacks) == 1
        batch = self.inputs.with_text(batch, rows, self.prefix_tokens, shared=one)
        self.backbone.train(True)
        try:
            states = self.backbone.pooled(batch, self._prompts(counts))
        finally:  # where memory runs out, the backbone is used again
            self.backbone.train(False)
        of_each = [len(stack.runs) * size for stack, size in zip(self.stacks, sizes, strict=True)]
        of_states = [count * choices for count in of_each]
        terms = [
            stack.terms(some, which.view(len(stack.runs), -1))
            for stack, some, which in zip(
                self.stacks, states.split(of_states), rows.split(of_each), strict=True
            )
        ]
        self._names = [list(some) for some in terms]
        values = torch.cat([value for some in terms for value in some.values()])
        trained = [parameter for stack in self.stacks for parameter in stack.trained]
        gradients = iter(torch.autograd.grad(values.sum(), trained, allow_unused=True))
        for stack in self.stacks:
            stack.update(list(itertools.islice(gradients, len(stack.trained))))
        return values.detach()

    def _prompts(self, counts: Sequence[int]) -> RowPrompts | None:
        """Return the prompt of each sequence of a batch; None for a reference, which has none."""
        values = [
            prompts
            for stack, count in zip(self.stacks, counts, strict=True)
            if (prompts := stack.prompts(count)) is not None
        ]
        if not values:
            return None
        rows = [len(stack.runs) * count for stack, count in zip(self.stacks, counts, strict=True)]
        lengths = [one.shape[1] for one in values]
        longest, device = max(lengths), values[0].device
        places = torch.arange(longest, device=device)
        shown = ((places < n).long().expand(count, -1) for n, count in zip(lengths, rows, strict=True))
        mask = torch.cat(list(shown))
        place = self.stacks[0].runs[0].student.prompt.place  # type: ignore[union-attr]
        if len(values) == 1:
            return RowPrompts(place, values[0], mask, longest)
        values = [one.expand(count, -1, -1) for one, count in zip(values, rows, strict=True)]
        padded = [nn.functional.pad(one, (0, 0, 0, longest - one.shape[1])) for one in values]
        return RowPrompts(place, torch.cat(padded), mask, min(lengths))
