"""A frozen BERT-like encoder behind prefixes, for texts to which its first layer attended before.

Attention sees groups of sequences, and what else a layer does sees their tokens one after the other. So
nothing is computed for padding where each group has sequences of one length.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from kdcache.encoder.last_layer import attend_from_first
from kdcache.encoder.pooling import Pooling, pool
from kdcache.encoder.text_attention import TextAttention, attend_to_prefix
from kdcache.encoder.token_groups import TokenGroups


class KnownText(NamedTuple):
    """What the first layer knows of a batch.

    Args:
        attention: each of its values of shape (tokens, …).
        groups: how the tokens lie.
    """

    attention: TextAttention
    groups: TokenGroups


class PrefixedLayers:
    """The layers of an encoder, without dropout.

    Args:
        layers: BERT's, or its kin's, two or more; their weights do not change any more.
        pooling: how the states of the last one are read.
        fused: whether attention is torch's fused one.
    """

    def __init__(self, layers: nn.ModuleList, pooling: Pooling, fused: bool) -> None:
        self._layers: list[Any] = list(layers)
        self._pooling, self._fused = pooling, fused
        own = self._layers[1 : -1 if pooling == "cls" else None]
        self._projections = [_one_product(layer.attention.self) for layer in own]

    def pooled(self, text: KnownText, prefix: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the pooled states of the last layer, float32 or more, of shape (sequences, dim).

        Args:
            text: of a batch.
            prefix: keys and values of each layer, of shape (2, prefixes, heads, virtual_tokens, size of a
                head): one for all sequences or, where these are one group, one for each.
        """
        groups, states = text.groups, text.attention.states
        virtual = (prefix[0].shape[3], 0)
        # Of each group, the keys that its queries see; None for all.
        seen = [
            None if mask is None else nn.functional.pad(mask, virtual, value=True) for mask in groups.masks
        ]
        for number, (layer, own) in enumerate(zip(self._layers, prefix, strict=True)):
            if number == 0:
                attended = attend_to_prefix(text.attention, *own)
            elif self._pooling == "cls" and layer is self._layers[-1]:
                each = groups.split(states)
                found = [
                    attend_from_first(layer.attention.self, some, keys_seen, *own)
                    for some, keys_seen in zip(each, seen, strict=True)
                ]
                attended, states = torch.cat(found), torch.cat([some[:, 0] for some in each])
            else:
                projected = nn.functional.linear(states, *self._projections[number - 1])
                heads = projected.unflatten(1, (3, own.shape[2], -1))
                found = [
                    self._attend(some, keys_seen, *own)
                    for some, keys_seen in zip(groups.split(heads), seen, strict=True)
                ]
                attended = torch.cat(found)
            states = layer.feed_forward_chunk(layer.attention.output(attended, states))
        if self._pooling == "mean":
            found = [
                pool(some, mask, "mean")
                for some, mask in zip(groups.split(states), groups.masks, strict=True)
            ]
            states = torch.cat(found)
        return groups.in_batch_order(states.to(torch.promote_types(states.dtype, torch.float32)))

    def _attend(
        self,
        projected: torch.Tensor,
        seen: torch.Tensor | None,
        prefix_keys: torch.Tensor,
        prefix_values: torch.Tensor,
    ) -> torch.Tensor:
        """Return a group's attention, of shape (tokens, dim).

        Args:
            projected: queries, keys and values, of shape (sequences, tokens, 3, heads, size of a head).
            seen: keys that its queries see, of shape (sequences, virtual_tokens + tokens); None for all.
            prefix_keys, prefix_values: see ``pooled``.
        """
        queries, keys, values = projected.unbind(2)
        queries = queries.transpose(1, 2)
        keys = _behind(prefix_keys, keys)
        values = _behind(prefix_values, values)
        seen = None if seen is None else seen[:, None, None]
        if self._fused:
            output = nn.functional.scaled_dot_product_attention(queries, keys, values, seen)
        else:
            scores = queries @ keys.transpose(2, 3) * queries.shape[3] ** -0.5
            scores = scores if seen is None else scores.masked_fill(~seen, -torch.inf)
            output = scores.softmax(3) @ values
        return output.transpose(1, 2).flatten(0, 1).flatten(1)


def _behind(prefix: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return torch.cat([prefix.expand(len(own), -1, -1, -1), own.transpose(1, 2)], dim=2)


def _one_product(attention: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights and biases that give queries, keys and values by one product."""
    linears = (attention.query, attention.key, attention.value)
    return torch.cat([one.weight for one in linears]), torch.cat([one.bias for one in linears])
