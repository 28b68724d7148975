"""Cutting a pretrained encoder down to some of its layers."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

from kdcache.errors import ModelError, ParamsError


def choose_layers(
    layers: Literal["first", "spread"] | Sequence[int], num_layers: int, have: int
) -> tuple[int, ...]:
    """Choose the layers to keep.

    Args:
        layers: ``first``, ``spread`` evenly from the first to the last, or their numbers from 0.
        num_layers: how many to keep.
        have: how many there are.

    Returns:
        Their numbers, from 0, ascending.

    Raises:
        ParamsError: there are not so many, or they contradict ``num_layers``.

    >>> choose_layers("spread", 3, 6)
    (0, 2, 5)
    """
    if num_layers > have:
        raise ParamsError(
            f"student_backbone.num_layers: it must be at most the model's {have} layers, "
            f"got {num_layers}. Lower it, or set it to all."
        )
    if layers == "first":
        return tuple(range(num_layers))
    if layers == "spread":
        return tuple(int(k) for k in np.linspace(0, have - 1, num_layers).round())
    chosen = tuple(layers)
    if len(chosen) != num_layers or list(chosen) != sorted({k for k in chosen if k < have}):
        raise ParamsError(
            f"student_backbone.layers: they must be {num_layers} ascending numbers from 0 to {have - 1}, "
            f"got {list(chosen)}. Change layers or num_layers."
        )
    return chosen


def cut(full: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """Copy an encoder with some of its layers only.

    Args:
        full: a BERT-like encoder without a head.
        keep: numbers of the layers to keep, from 0, ascending.

    Returns:
        What plain transformers makes of the smaller config, with the kept weights; in eval mode.

    Raises:
        ModelError: its layers cannot be told apart, or those kept do not fit together.
    """
    config: Any = copy.deepcopy(full.config)
    have, model_type = config.num_hidden_layers, config.model_type
    config.num_hidden_layers = len(keep)
    weights = full.state_dict()
    if getattr(config, "num_hidden_groups", 0) != 1:  # ALBERT's single layer is only repeated less often
        weights = _keep_layers(full, keep, have)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[k] for k in keep]
    smaller = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    try:
        smaller.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelError(
            f"student_backbone.layers: the layers kept must make a {model_type} of {len(keep)} layers, "
            f"got {list(keep)} ({reason}). Keep layer 0, or set layers: first."
        ) from None
    return smaller.eval()


def _keep_layers(full: PreTrainedModel, keep: Sequence[int], have: int) -> dict[str, torch.Tensor]:
    """Return the weights of an encoder without the other layers, those kept numbered from 0."""
    stacks = [
        f"{name}." for name, module in full.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == have and name.endswith(("layer", "layers"))
    ]  # fmt: skip
    if len(stacks) != 1 or full.config.is_encoder_decoder:
        raise ModelError(
            f"student_backbone.model: it must be one stack of {have} layers, got {full.config.model_type}, "
            f"which has {len(stacks)} of them. Use a BERT-like encoder, or set num_layers: all."
        )
    stack = stacks[0]
    weights = {}
    for name, value in full.state_dict().items():
        number, _, rest = name.removeprefix(stack).partition(".")
        if not name.startswith(stack):
            weights[name] = value
        elif int(number) in keep:
            weights[f"{stack}{keep.index(int(number))}.{rest}"] = value
    return weights
