"""The parts of a classifier: its encoder, the modules above it, and the Linear that makes the logits."""

from collections.abc import Iterable
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from kdcache.encoder.mean_pooled import MeanPooledClassifier
from kdcache.errors import ModelError

Classifier = PreTrainedModel | MeanPooledClassifier


def take_apart(model: Classifier | PeftModel) -> tuple[PreTrainedModel, list[nn.Module]]:
    """Return the parts of a classifier, which stays whole, without the wrapper that PEFT put around one.

    Returns:
        The encoder, and the modules from the pooled state to logits, in order, dropout left out.
    """
    whole: Any = _unwrap(model)
    if isinstance(whole, MeanPooledClassifier):
        return _unwrap(whole.encoder), [whole.classifier]
    encoder = getattr(whole, whole.base_model_prefix)
    after = [module for module in whole.children() if module is not encoder and list(module.parameters())]
    if whole.config.model_type == "distilbert":
        after.insert(1, nn.ReLU())  # which its forward pass applies by itself
    pooler = getattr(encoder, "pooler", None)
    if pooler is None:
        return encoder, after
    activation = getattr(encoder, "pooler_activation", None)  # ALBERT's pooler is a bare Linear
    return encoder, [pooler, *([activation] if activation else []), *after]


def _unwrap(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def head_names(model: Classifier) -> list[str]:
    """Return the names, within the classifier, of the modules with weights above its encoder, in order."""
    after = with_weights(take_apart(model)[1])
    return [name for module in after for name, other in model.named_modules() if other is module]


def with_weights(chain: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the modules that have weights, without activations."""
    return [module for module in chain if list(module.parameters())]


def encoder_layers(encoder: nn.Module) -> nn.ModuleList:
    """Return the stack of an encoder's layers; ALBERT's holds the groups that its layers share.

    Raises:
        ModelError: there is no single stack.
    """
    config: Any = encoder.config
    sizes = {config.num_hidden_layers, getattr(config, "num_hidden_groups", config.num_hidden_layers)}
    stacks = [
        module for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) in sizes
        and name.endswith(("layer", "layers", "layer_groups")) and "albert_layers" not in name
    ]  # fmt: skip
    if len(stacks) != 1:
        raise ModelError(
            f"{type(encoder).__name__}: an encoder must have one stack of {config.num_hidden_layers} layers, "
            f"got {len(stacks)}. Use a BERT-like encoder."
        )
    return stacks[0]


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
