"""Exact shortcuts: the last layer of a BERT-like encoder computed for no token that heads do not read.

Heads that read the mean read no virtual token: what follows the last attention is not computed for
those. Heads that read [CLS] read nothing else.

After the last attention no token looks at another, so what follows it is computed for [CLS] only.
In that attention there is a single query, and no token needs a key or a value of its own:
q · (W h) = (Wᵀ q) · h, and a weighted sum of values W h is W times the weighted sum of the h.
This saves nearly all matrix products of the layer.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from types import MethodType
from typing import Any

import torch
from torch import nn

from kdcache.encoder.architectures import has_bert_layers
from kdcache.encoder.mean_pooled import MeanPooledClassifier


def finish_only_cls(model: nn.Module) -> ExitStack:
    """Make a model compute its last layer for [CLS] only, which the head reads.

    The logits are those of plain transformers and peft.

    Args:
        model: a classifier or an encoder, PEFT-wrapped or not. One that is not known to have
            BERT's layers is left as it is, and one that reads the mean of all states.

    Returns:
        A context. Its end undoes the change.
    """
    return attend_from_cls(last_attention(model))


def last_attention(model: nn.Module) -> list[nn.Module]:
    """Return the parts of the last layer's attention, which ``attend_from_cls`` changes.

    Args:
        model: as ``finish_only_cls`` has it; one that it leaves as it is has none.
    """
    config: Any = model.config
    if isinstance(model, MeanPooledClassifier) or not has_bert_layers(config):
        return []
    last = f"encoder.layer.{config.num_hidden_layers - 1}.attention"
    ends = (f"{last}.self", f"{last}.output")
    return [module for name, module in model.named_modules() if name.endswith(ends)]


def attend_from_cls(attention: Sequence[nn.Module]) -> ExitStack:
    """Make a model's last layer compute the first token only, until the stack is closed.

    Args:
        attention: a ``last_attention``. ``finish_only_cls`` searches for it, which takes time.
    """
    undo = ExitStack()
    for module in attention:
        if hasattr(module, "query"):
            module.forward = MethodType(_attend_from_cls, module)
            undo.callback(module.__dict__.pop, "forward", None)
        else:  # it adds the layer's input
            undo.callback(module.register_forward_pre_hook(_keep_cls).remove)
    return undo


def finish_without_first(attention: Sequence[nn.Module], tokens: int) -> ExitStack:
    """Make a model compute no output for the first tokens of each row, which others still attend to.

    Args:
        attention: a ``last_attention``.
        tokens: how many; ``last_hidden_state`` lacks them.

    Returns:
        A context. Its end undoes the change.
    """
    undo = ExitStack()
    for module in attention if tokens else ():
        if not hasattr(module, "query"):
            cut = module.register_forward_pre_hook(lambda _, inputs: tuple(x[:, tokens:] for x in inputs))
            undo.callback(cut.remove)
    return undo


def _keep_cls(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(states[:, :1] for states in inputs)


def _attend_from_cls(
    self: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    past_key_values: Any = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """The forward of BERT's self-attention and its kin, for the first query.

    Args:
        self: the module.
        hidden_states: of shape (batch, tokens, dim).
        attention_mask: of shape (batch, 1, tokens or 1, prefix + tokens): bool, or what is added
            to scores.
        past_key_values: with a prefix, its keys and values per layer.
        other: ignored.

    Returns:
        Of shape (batch, 1, dim), and no attention weights.
    """
    if type(self.key) is not nn.Linear or type(self.value) is not nn.Linear:  # LoRA's, say
        return type(self).forward(self, hidden_states, attention_mask, past_key_values, **other)
    mask = None if attention_mask is None else attention_mask[:, 0, 0]
    prefix = None if past_key_values is None else past_key_values.layers[self.layer_idx]
    own = () if prefix is None else (prefix.keys, prefix.values)
    return attend_from_first(self, hidden_states, mask, *own)[:, None], None


def attend_from_first(
    attention: Any,
    states: torch.Tensor,
    mask: torch.Tensor | None,
    prefix_keys: torch.Tensor | None = None,
    prefix_values: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute what a layer's attention gives the first token of each sequence.

    Args:
        attention: BERT's self-attention, or its kin's, of plain ``nn.Linear``.
        states: that the layer reads, of shape (batch, tokens, dim).
        mask: of shape (batch, prefix + tokens): bool, or what is added to scores.
        prefix_keys, prefix_values: of shape (batch or 1, heads, virtual_tokens, size of a head).

    Returns:
        Of shape (batch, dim).
    """
    # b: batch, h: heads, t: tokens, p: prefix, s: size of a head, d: dim
    heads = (-1, attention.attention_head_size)
    query = attention.query(states[:, 0]).unflatten(1, heads) * attention.scaling
    keys_to_states = attention.key.weight.unflatten(0, heads)
    asked = torch.einsum("bhs,hsd->bhd", query, keys_to_states)
    scores = torch.einsum("bhd,btd->bht", asked, states)
    scores = scores + torch.einsum("bhs,hs->bh", query, attention.key.bias.unflatten(0, heads))[:, :, None]
    if prefix_keys is not None:
        scores = torch.cat([torch.einsum("bhs,bhps->bhp", query, prefix_keys), scores], dim=2)
    if mask is not None:
        mask = mask[:, None]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = attention.dropout(scores.softmax(dim=2, dtype=exact).to(scores.dtype))
    own = weights[:, :, -states.shape[1] :]
    mixed = torch.einsum("bht,btd->bhd", own, states)
    output = torch.einsum("bhd,hsd->bhs", mixed, attention.value.weight.unflatten(0, heads))
    output = output + own.sum(dim=2, keepdim=True) * attention.value.bias.unflatten(0, heads)
    if prefix_values is not None:
        virtual = weights[:, :, : prefix_values.shape[2]]
        output = output + torch.einsum("bhp,bhps->bhs", virtual, prefix_values)
    return output.flatten(1)
