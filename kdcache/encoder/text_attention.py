"""An exact shortcut: the first layer's attention to a text, computed once for all the prefixes that it meets.

No prefix changes the states that this layer reads. What its attention gives a token is a mix of what it
gives over the text alone and over the prefix alone: with a = Σ exp(sᵢ) over the scores of the text, and
p over those of the prefix, (a · over_text + p · over_prefix) / (a + p). So a step needs no more of the
text than its queries, what attention gives over it, and log a.
"""

from collections.abc import Callable
from contextlib import ExitStack
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn

SCORES_AT_ONCE = 2**22  # numbers held: of long texts there are many, the square of their tokens


class TextAttention(NamedTuple):
    """A layer's attention over the text alone.

    Args:
        queries: scaled, of shape (batch, tokens, heads, size of a head).
        attended: what it gives each token, of the same shape.
        totals: log Σ exp of scores, float32 or more, of shape (batch, tokens, heads).
    """

    queries: torch.Tensor
    attended: torch.Tensor
    totals: torch.Tensor


def attend_to_text(attention: Any, states: torch.Tensor, mask: torch.Tensor) -> TextAttention:
    """Compute a layer's attention without a prefix.

    Args:
        attention: BERT's self-attention, or its kin's.
        states: that the layer reads, of shape (batch, tokens, dim).
        mask: of shape (batch, tokens), 0 for padding.
    """
    size = attention.attention_head_size
    queries, keys, values = (
        linear(states).unflatten(2, (-1, size))
        for linear in (attention.query, attention.key, attention.value)
    )
    queries = queries * attention.scaling
    at_once = max(1, SCORES_AT_ONCE // (queries.shape[2] * queries.shape[1] ** 2))
    parts = (part.split(at_once) for part in (queries, keys, values, mask.bool()))
    found = [_attend(*some) for some in zip(*parts, strict=True)]
    return TextAttention(queries, *map(torch.cat, zip(*found, strict=True)))


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.einsum("bqhs,bkhs->bqhk", queries, keys)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    attended = torch.einsum("bqhk,bkhs->bqhs", scores.softmax(3).to(values.dtype), values)
    return attended, scores.logsumexp(3)


def attend_to_prefix(attention: nn.Module, text: TextAttention) -> ExitStack:
    """Make a layer's attention compute that over prefixes of one length, and mix it with that over the text.

    Args:
        attention: see ``attend_to_text``.
        text: of the batch that is read.

    Returns:
        A context. Its end undoes the change.
    """
    attention.forward = MethodType(_to_prefix(text), attention)
    undo = ExitStack()
    undo.callback(attention.__dict__.pop, "forward", None)
    return undo


def _to_prefix(text: TextAttention) -> Callable[..., tuple[torch.Tensor, None]]:
    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **other: Any,
    ) -> tuple[torch.Tensor, None]:
        """The forward of BERT's self-attention and its kin; the mask of the text is in ``text``."""
        prefix = past_key_values.layers[self.layer_idx]
        keys, values = prefix.keys, prefix.values
        if keys.stride(0) == 0:  # one prefix, expanded: all rows are read as one
            keys, values = keys[:1], values[:1]
        # g: groups of rows that share a prefix, h: heads, t: tokens, p: prefix, s: size of a head
        queries, attended, totals = (
            kept.flatten(0, 1).unflatten(0, (len(keys), -1)).transpose(1, 2) for kept in text
        )
        scores = queries @ keys.transpose(2, 3)  # g h t p
        scores = torch.cat([scores.to(totals.dtype), totals[..., None]], dim=3)
        weights = scores.softmax(3).to(values.dtype)
        output = weights[..., :-1] @ values + weights[..., -1:] * attended  # g h t s
        return output.transpose(1, 2).reshape(hidden_states.shape), None

    return forward
