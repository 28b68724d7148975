"""A short measurement of this machine: what a batch costs, by its tokens."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdcache.encoder.batching import Encoded
from kdcache.encoder.optimisation import MAX_GRAD_NORM
from kdcache.encoder.precision import Dtype, computing_in

SECONDS = 0.5  # that a batch of each length is repeated for
QUANTILES = (0.1, 0.9)  # of the lengths that are timed

Line = tuple[float, float]  # of a batch, and of each of its tokens


@dataclass(frozen=True)
class Rate:
    """What batches cost: so much each, and so much for each token, padding included.

    Args:
        flops: operations of the matrix products, a multiplication and an addition apart.
        seconds: on this machine.
        held: bytes kept for the backward pass.
        rows, tokens: of the longer batch that was timed, all tokens of it.
    """

    flops: Line
    seconds: Line
    held: Line
    rows: int
    tokens: int

    @property
    def flops_per_second(self) -> float:
        """Of the longer batch."""
        return at(self.flops, 1, self.tokens) / at(self.seconds, 1, self.tokens)


def at(line: Line, batches: float, tokens: float) -> float:
    """Return what some batches cost, of so many tokens in all.

    >>> at((1.0, 0.5), batches=2, tokens=10)
    7.0
    """
    return line[0] * batches + line[1] * tokens


def measure(
    work: Callable[[Encoded], object], model: nn.Module, rows: Encoded, size: int, seconds: float = SECONDS
) -> Rate:
    """Measure a kind of work on a batch of short rows and on one of long rows.

    Args:
        work: computes one batch of the rows that it is given.
        model: that does.
        rows: to choose from, repeated where a batch needs more.
        size: rows of a batch.
        seconds: to repeat each batch for; it is timed once at least.
    """
    order = np.argsort(np.resize(rows.lengths, max(size, len(rows))), kind="stable") % len(rows)
    starts = [round(share * (len(order) - size)) for share in QUANTILES]
    batches = [rows.take(order[first : first + size]) for first in starts]
    tokens = [size * rows.num_choices * int(batch.lengths.max()) for batch in batches]
    each = [_measured(partial(work, batch), model, seconds) for batch in batches]
    flops, taken, held = (_through(tokens, pair) for pair in zip(*each, strict=True))
    return Rate(flops, taken, held, size * rows.num_choices, tokens[-1])


def _measured(batch: Callable[[], object], model: nn.Module, seconds: float) -> tuple[float, float, float]:
    """Return operations, seconds and bytes held of a batch."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        batch()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # it misses fused ones
        batch()
    taken: list[float] = []
    while not taken or sum(taken) < seconds:
        begin = time.perf_counter()
        batch()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    # The faster ones: whatever else runs only slows a batch down.
    return float(counter.get_total_flops()), float(np.quantile(taken, 0.25)), float(sum(held.values()))


def _through(tokens: Sequence[int], values: Sequence[float]) -> Line:
    """Put a line through two points; one through the origin where that would fall, or start below 0."""
    slope = (values[1] - values[0]) / max(1, tokens[1] - tokens[0])
    fixed = values[1] - slope * tokens[1]
    return (fixed, slope) if slope > 0 and fixed >= 0 else (0.0, values[1] / tokens[1])


def training_step(
    logits_of: Callable[[Mapping[str, torch.Tensor]], torch.Tensor], optimizer: torch.optim.Optimizer,
    dtype: Dtype, device: torch.device,
) -> Callable[[Encoded], object]:  # fmt: skip
    """Return a step of training on a batch, for ``measure``.

    Args:
        logits_of: a batch → logits of shape (sequences, outputs).
        optimizer: of what the step moves.
        dtype: of the matrix products.
        device: where they are computed.
    """
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def step(rows: Encoded) -> None:
        with computing_in(dtype, device):
            logits = logits_of(rows.batch(range(len(rows)), device)).float()
        nn.functional.cross_entropy(logits, logits.argmin(1)).backward()
        nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return step
