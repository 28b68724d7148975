"""What every training loop shares: the learning-rate schedule, the gradient's clip, checkpoints."""

import hashlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import torch

from kdcache.places import replacing

MAX_GRAD_NORM = 1.0
CHECKPOINT_SECONDS = 300  # between two; a teacher's takes three times the bytes of the trained weights
DIGEST_BYTES = 32  # of a checkpoint, before what torch wrote


def lr_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Return the share of the peak learning rate at a step: linear warm-up, then linear decay to 0.

    Args:
        step: steps taken so far.
        steps: steps in all.
        warmup_fraction: share of the steps that warm up, 0 … 0.9; at least one step does.

    >>> [round(lr_factor(step, 10, 0.2), 3) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    """
    warmup_steps = max(1, round(warmup_fraction * steps))
    decay = max(0.0, (steps - step) / max(1, steps - warmup_steps))
    return min((step + 1) / warmup_steps, decay)


def adamw(groups: list[dict[str, Any]], device: torch.device) -> torch.optim.AdamW:
    """Return AdamW over groups with a ``peak`` learning rate each.

    On a GPU its step can be part of a CUDA graph: rates and counts of steps are on the device.
    """
    if device.type == "cpu":
        return torch.optim.AdamW(groups, fused=True)
    rates = [{**group, "lr": torch.zeros((), device=device)} for group in groups]
    return torch.optim.AdamW(rates, fused=True, capturable=True)


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps: int, warmup_fraction: float) -> None:
    """Set the learning rates of an ``adamw`` for a step, see ``lr_factor``."""
    factor = lr_factor(step, steps, warmup_fraction)
    for group in optimizer.param_groups:
        rate = group["peak"] * factor
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def save_checkpoint(state: Any, path: Path) -> None:
    """Write a state in one go: a killed process leaves the previous checkpoint, never half of one.

    Args:
        state: plain values and tensors.
        path: a file; its folder exists.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    with replacing(path) as part, part.open("wb") as file:
        file.write(hashlib.sha256(content).digest() + content)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Any | None:
    """Read a state back; None where there is no checkpoint. One that is not whole is dropped with a line."""
    if not path.is_file():
        return None
    whole = path.read_bytes()
    digest, content = whole[:DIGEST_BYTES], whole[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        print(f"{path}: the checkpoint is not whole and dropped.", file=sys.stderr)
        path.unlink()
        return None
    return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
