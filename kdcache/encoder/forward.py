"""Forward passes over all rows, without gradients: logits, features and pooled states in row order."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from kdcache.encoder.batching import Encoded, fixed_plan, in_row_order, iterate
from kdcache.encoder.last_layer import finish_only_cls
from kdcache.encoder.parts import last_linear
from kdcache.errors import ModelError

Dtype = Literal["float32", "bfloat16"]


@contextmanager
def capture_features(model: nn.Module, num_labels: int) -> Iterator[list[torch.Tensor]]:
    """Record the input of the last Linear at every forward pass inside the block.

    Args:
        model: an encoder with a classification head, PEFT-wrapped or not.
        num_labels: outputs of that head, per sequence.

    Yields:
        A list whose only item is the latest features, of shape (batch · choices, dim).
    """
    latest: list[torch.Tensor] = []

    def record(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        latest[:] = [inputs[0]]

    handle = last_linear(model, num_labels).register_forward_pre_hook(record)
    try:
        yield latest
    finally:
        handle.remove()


@torch.no_grad()
def extract(
    model: nn.Module,
    encoded: Encoded,
    num_labels: int,
    batch_size: int,
    device: torch.device,
    dtype: Dtype = "float32",
    after_batch: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Run every row through a model in eval mode.

    Args:
        model: an encoder with a classification head; its mode is restored afterwards.
        encoded: the rows.
        num_labels: outputs of the head, per sequence.
        batch_size: rows per forward pass.
        device: where to compute.
        dtype: ``float32``, or ``bfloat16`` to compute under autocast: faster where the hardware
            has it, but logits then move by up to a few 1e-2 with padding and batch.
        after_batch: called with the number of rows of each batch that is done.

    Returns:
        float32 logits of shape (rows, choices · num_labels) and features of shape
        (rows, choices · dim).

    Raises:
        ModelError: another dtype.
    """
    if dtype not in get_args(Dtype):
        raise ModelError(f"extract: dtype must be one of {', '.join(get_args(Dtype))}, got {dtype!r}.")
    was_training = model.training
    model.eval().to(device)
    plan = fixed_plan(encoded.lengths, batch_size)
    logits, features = [], []
    half = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    with capture_features(model, num_labels) as latest, half, finish_only_cls(model):
        for indices, batch in iterate(plan, encoded, device):
            logits.append(encoded.by_row(model(**batch).logits).float().cpu())
            features.append(encoded.by_row(latest[0]).float().cpu())
            if after_batch:
                after_batch(len(indices))
    model.train(was_training)
    return in_row_order(logits, plan).numpy(), in_row_order(features, plan).numpy()


@torch.no_grad()
def pooled_states(
    read: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    encoded: Encoded,
    batch_size: int,
    device: torch.device,
) -> torch.Tensor:
    """Compute the pooled state of every sequence.

    Args:
        read: batch of shape (batch · choices, tokens) → pooled states of shape (batch · choices, dim).
        encoded: the rows.
        batch_size: rows per forward pass.
        device: where ``read`` computes.

    Returns:
        Of shape (rows, choices, dim), in the order of the rows.
    """
    plan = fixed_plan(encoded.lengths, batch_size)
    states = [
        read(batch).unflatten(0, (-1, encoded.num_choices)) for _, batch in iterate(plan, encoded, device)
    ]
    return in_row_order(states, plan)
