"""Forward passes over all rows, without gradients: logits, features and pooled states in row order."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import get_args

import numpy as np
import torch
from torch import nn

from kdcache.encoder.batching import Encoded, iterate
from kdcache.encoder.last_layer import finish_only_cls
from kdcache.encoder.parts import last_linear
from kdcache.encoder.plans import in_row_order, plan_for
from kdcache.encoder.precision import Dtype, computing_in
from kdcache.errors import ModelError


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
        dtype: of matrix products. Where the hardware has them, ``tf32`` and ``bfloat16`` are faster, but
            logits then move with padding and batch, in bfloat16 by up to a few 1e-2.
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
    plan = plan_for(device, encoded.lengths, batch_size, encoded.num_choices)
    logits, features = [], []
    held = next(model.parameters()).dtype  # bfloat16 weights need no autocast
    computing = computing_in(dtype if held == torch.float32 else "float32", device)
    with capture_features(model, num_labels) as latest, computing, finish_only_cls(model):
        for indices, batch in iterate(plan, encoded, device):
            logits.append(encoded.by_row(model(**batch).logits).float())
            features.append(encoded.by_row(latest[0]).float())
            if after_batch:
                after_batch(len(indices))
    model.train(was_training)
    return in_row_order(logits, plan).cpu().numpy(), in_row_order(features, plan).cpu().numpy()


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
    plan = plan_for(device, encoded.lengths, batch_size, encoded.num_choices)
    states = (
        read(batch).unflatten(0, (-1, encoded.num_choices)) for _, batch in iterate(plan, encoded, device)
    )
    return in_row_order(states, plan, encoded.folder)
