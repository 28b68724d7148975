"""Weights in shards, one per process (FSDP), and how they become whole ones again."""

from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from kdcache.encoder.adapters import Trained
from kdcache.encoder.parts import encoder_layers, take_apart


def fsdp_config(model: Trained) -> dict[str, Any]:
    """Return the trainer's settings that shard a model layer by layer.

    Raises:
        ModelError: its encoder has no single stack of layers.
    """
    layers = encoder_layers(take_apart(model)[0])
    names = sorted({type(layer).__name__ for layer in layers})
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": names,
        "state_dict_type": "FULL_STATE_DICT",
    }


def shard_again(model: nn.Module) -> None:
    """Put weights back in shards that a forward pass without a backward one left whole."""
    if isinstance(model, FSDPModule):
        model.reshard()


def full_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights that a model trains; of one in shards, all of them, in the first process only."""
    if isinstance(model, FSDPModule):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: dict[str, Any] = get_model_state_dict(model, options=options)
        return weights
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
