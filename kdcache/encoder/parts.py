"""The parts of a classifier: its encoder, the modules above it, and the Linear that makes the logits."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from kdcache.errors import ModelError


def take_apart(model: PreTrainedModel) -> tuple[PreTrainedModel, list[nn.Module]]:
    """Return the parts of a classifier, which stays whole.

    Returns:
        The encoder, and the modules from [CLS] state to logits, in order, dropout left out.
    """
    encoder: Any = getattr(model, model.base_model_prefix)
    after = [module for module in model.children() if module is not encoder and list(module.parameters())]
    pooler = getattr(encoder, "pooler", None)
    return encoder, after if pooler is None else [pooler, *after]


def head_names(model: PreTrainedModel) -> list[str]:
    """Return the names, within the classifier, of the modules from [CLS] state to logits, in order."""
    after = take_apart(model)[1]
    return [name for module in after for name, other in model.named_modules() if other is module]


def last_linear(model: nn.Module, num_labels: int) -> nn.Linear:
    """Return the Linear that makes the logits. Its input is what kdcache calls features.

    In a PEFT model this is the trained copy of the head, which comes after the original.

    Raises:
        ModelError: no Linear has ``num_labels`` outputs.
    """
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == num_labels]
    if not found:
        raise ModelError(
            f"{type(model).__name__}: it must end in a Linear of {num_labels} outputs, got none. "
            "Use an encoder with a classification head."
        )
    return found[-1]
