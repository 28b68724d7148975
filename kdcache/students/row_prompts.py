"""A prompt for each row of a batch, and where its virtual tokens stand among those of the text."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdcache.encoder.architectures import Place


@dataclass(frozen=True)
class RowPrompts:
    """A prompt for each row of a batch.

    Args:
        place: where they enter.
        values: of shape (batch, virtual_tokens, width), or (1, virtual_tokens, width) where all rows have
            one prompt. The width is layers · 2 · dim for deep ones (per layer key, then value, as PEFT has
            it), the same for late ones with as many layers as have prompts, layers · dim for states, the
            embeddings' dim for input ones.
        mask: int64 of shape (batch, virtual_tokens), 0 where a shorter prompt is padded.
        shortest: tokens of the shortest prompt, 0 where a row has none.
    """

    place: Place
    values: torch.Tensor
    mask: torch.Tensor
    shortest: int = 0

    @classmethod
    def of(cls, place: Place, prompts: Sequence[torch.Tensor | None], counts: Sequence[int]) -> "RowPrompts":
        """Give each of some consecutive groups of rows its prompt.

        Args:
            place: where they enter.
            prompts: one per group, of shape (virtual_tokens, width); None for rows without.
            counts: rows per group.
        """
        some = next(prompt for prompt in prompts if prompt is not None)
        lengths = [0 if prompt is None else len(prompt) for prompt in prompts]
        longest = max(lengths)
        padded = [
            some.new_zeros(longest, some.shape[1]) if prompt is None
            else nn.functional.pad(prompt, (0, 0, 0, longest - len(prompt)))
            for prompt in prompts
        ]  # fmt: skip
        if len(padded) == 1:
            values = padded[0][None]
        else:  # expanded, not gathered: threads add up a gather's gradient in any order, which changes bits
            values = torch.cat([p.expand(count, -1, -1) for p, count in zip(padded, counts, strict=True)])
        mask = (
            torch.arange(longest)[None]
            < torch.tensor(lengths).repeat_interleave(torch.tensor(counts))[:, None]
        )
        return cls(place, values, mask.long().to(some.device), shortest=min(lengths))


class Insertion:
    """Where virtual tokens stand among a batch's own; padding of a shorter prompt stands behind the text.

    There, since some architectures ignore the mask where they count positions.

    Args:
        prompts: one per row.
        own: the text's mask, of shape (batch, tokens).
        at: how many tokens of the text come first.
    """

    def __init__(self, prompts: RowPrompts, own: torch.Tensor, at: int) -> None:
        self.prompts, self.own, self.at = prompts, own, at
        self.order: torch.Tensor | None = None
        if prompts.shortest < prompts.mask.shape[1]:
            mask = self._inserted(own, prompts.mask)
            self.order = mask.argsort(dim=1, descending=True, stable=True)

    def put(self, own: torch.Tensor, virtual: torch.Tensor) -> torch.Tensor:
        """Put values of virtual tokens, of shape (batch, virtual_tokens, …), among those of the text."""
        whole = self._inserted(own, virtual)
        if self.order is None:
            return whole
        return whole.take_along_dim(self.order.view(*self.order.shape, *[1] * (whole.ndim - 2)), dim=1)

    def replace(self, values: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a function that gives virtual tokens these states, of shape (batch, virtual_tokens, dim)."""
        tokens = values.shape[1]
        if self.order is None:
            return lambda states: torch.cat(
                [states[:, : self.at], values.to(states.dtype), states[:, self.at + tokens :]], dim=1
            )
        virtual = self.put(torch.zeros_like(self.own), self.prompts.mask)[:, :, None].bool()
        # Padded, not gathered, as in ``RowPrompts.of``.
        padded = nn.functional.pad(values, (0, 0, self.at, self.own.shape[1] - self.at))
        return lambda states: torch.where(virtual, padded.to(states.dtype), states)

    def _inserted(self, own: torch.Tensor, virtual: torch.Tensor) -> torch.Tensor:
        return torch.cat([own[:, : self.at], virtual, own[:, self.at :]], dim=1)


@contextmanager
def before_each_layer(
    layers: nn.ModuleList, changes: Sequence[Callable[[torch.Tensor], torch.Tensor]]
) -> Iterator[None]:
    """Change the states before each layer, in order of the calls: ALBERT calls one module many times."""
    left = iter(changes)

    def change(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (next(left)(inputs[0]), *inputs[1:])

    handles = [layer.register_forward_pre_hook(change) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def passing(layers: nn.ModuleList) -> Iterator[None]:
    """Let some layers pass on the states that they get."""
    for layer in layers:
        layer.forward = lambda states, *_, **__: states
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
