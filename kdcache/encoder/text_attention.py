"""An exact shortcut: the first layer's attention to a text, computed once for all the prefixes that it meets.

No prefix changes the states that this layer reads. What its attention gives a token is a mix of what it
gives over the text alone and over the prefix alone: with a = Σ exp(sᵢ) over the scores of the text, and
p over those of the prefix, (a · over_text + p · over_prefix) / (a + p). So a step needs no more of the
text than its queries, what attention gives over it, and log a.
"""

from typing import Any, NamedTuple

import torch

SCORES_AT_ONCE = 2**22  # numbers held: of long texts there are many, the square of their tokens


class TextAttention(NamedTuple):
    """A layer's attention over the text alone.

    Args:
        states: that the layer reads, of shape (…, dim).
        queries: scaled, of shape (…, heads, size of a head).
        attended: what it gives each token, of the same shape.
        totals: log Σ exp of scores, float32 or more, of shape (…, heads).
    """

    states: torch.Tensor
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
    return TextAttention(states, queries, *map(torch.cat, zip(*found, strict=True)))


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.einsum("bqhs,bkhs->bqhk", queries, keys)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    weights = scores.softmax(3)
    attended = torch.einsum("bqhk,bkhs->bqhs", weights.to(values.dtype), values)
    top, where = scores.max(3)
    return attended, top - weights.gather(3, where[..., None])[..., 0].log()  # as logsumexp, in half the time


def attend_to_prefix(text: TextAttention, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Compute a layer's attention to prefixes of one length, and mix it with that to the text.

    Args:
        text: of the tokens of a batch, each of its values of shape (tokens, …).
        keys: of the prefixes, of shape (prefixes, heads, virtual_tokens, size of a head). Each is that of
            as many tokens, one after the other.
        values: the same.

    Returns:
        Of shape (tokens, heads · size of a head).
    """
    # g: prefixes, h: heads, t: tokens of each, p: virtual tokens, s: size of a head
    queries, attended, totals = (kept.unflatten(0, (len(keys), -1)).transpose(1, 2) for kept in text[1:])
    scores = queries @ keys.transpose(2, 3)  # g h t p
    scores = torch.cat([scores.to(totals.dtype), totals[..., None]], dim=3)
    weights = scores.softmax(3).to(values.dtype)
    output = weights[..., :-1] @ values + weights[..., -1:] * attended  # g h t s
    return output.transpose(1, 2).flatten(0, 1).flatten(1)
