"""A smaller backbone from a pretrained one: its first layers, healed on unlabelled text.

A raw cut can be blind: its [CLS] state hardly depends on the input, because no layer after
it is left to fill it, and no prompt can cure that. Healing regresses the full backbone's
last hidden states; the cut then ends where the full backbone does.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoModel, PreTrainedModel

from kdcache.batching import Encoded, fixed_plan, iterate, num_batches, training_plan
from kdcache.errors import ModelError, TrainingDiverged

BLIND_BELOW = 0.01
HELD_OUT_FRACTION = 0.05
WARMUP_FRACTION = 0.1


def load_encoder(folder: Path, num_layers: int | None = None) -> PreTrainedModel:
    """Load an encoder without a head, float32, in eval mode, perhaps its first layers only.

    Raises:
        ModelError: more layers are asked for than there are.
    """
    model = AutoModel.from_pretrained(str(folder), dtype=torch.float32)
    if num_layers is None:
        return model.eval()
    have = model.config.num_hidden_layers
    if num_layers > have:
        raise ModelError(
            f"student_backbone.num_layers: it must be at most the {have} layers of {folder}, "
            f"got {num_layers}. Lower it, or set it to all."
        )
    return AutoModel.from_pretrained(str(folder), dtype=torch.float32, num_hidden_layers=num_layers).eval()


@torch.no_grad()
def cls_variation(model: nn.Module, encoded: Encoded, batch_size: int, device: torch.device) -> float:
    """How much the [CLS] state depends on the input.

    Args:
        model: an encoder without a head.
        encoded: rows to look at.
        batch_size: rows per forward pass.
        device: where to compute.

    Returns:
        The standard deviation over inputs, root mean square over dims, divided by the root
        mean square of the states: 0 for a blind encoder, at most about 1.
    """
    model.to(device)
    plan = fixed_plan(encoded.lengths, batch_size)
    states = torch.cat([
        model(**batch).last_hidden_state[:, 0].double().cpu()
        for _, batch in iterate(plan, encoded, device)
    ])  # fmt: skip
    spread = states.var(dim=0, unbiased=False).mean().sqrt()
    return float(spread / states.square().mean().sqrt())


def refuse_blind(variation: float, what: str) -> None:
    """Raise ModelError if a [CLS] state varies by less than ``BLIND_BELOW`` of its size."""
    if variation < BLIND_BELOW:
        raise ModelError(
            f"student_backbone: the [CLS] state of {what} must vary over inputs by at least "
            f"{BLIND_BELOW:.1%} of its size, got {variation:.2%}: no prompt can make it see. "
            "Raise student_backbone.epochs or num_layers, or give it more text."
        )


def heal(
    student: nn.Module,
    full: nn.Module,
    encoded: Encoded,
    epochs: int,
    lr: float,
    batch_size: int,
    position_shift: int,
    seed: int,
    device: torch.device,
    report: Callable[[str], None] = print,
) -> float:
    """Train a cut encoder to reproduce the full encoder's last hidden states.

    loss = mean over tokens and dims of (Hs − Ht)² + mean over dims of (Hs[CLS] − Ht[CLS])²

    Args:
        student: the cut encoder; trained in place, its embeddings stay frozen.
        full: the full encoder.
        encoded: unlabelled rows; a twentieth is held out to watch the loss.
        epochs: passes over the text.
        lr: peak learning rate of AdamW, linear warm-up and decay.
        batch_size: rows per step.
        position_shift: every second batch starts at a position drawn from 0 … this, since a
            prompt shifts all positions by its length, and an encoder that knows [CLS] by
            position 0 alone then loses it. 0 shifts nothing.
        seed: of hold-out, order and shifts.
        device: where to compute.
        report: where the held-out loss of each epoch goes.

    Returns:
        The last held-out loss.

    Raises:
        TrainingDiverged: the loss became NaN or infinite.
    """
    student.to(device).eval()  # no dropout: regression wants the exact states
    full.to(device).eval()
    for name, parameter in student.named_parameters():
        parameter.requires_grad = "embeddings" not in name
    order = np.random.default_rng(seed).permutation(len(encoded))
    held_out = encoded.take(order[: math.ceil(HELD_OUT_FRACTION * len(encoded))])
    kept = encoded.take(order[len(held_out) :])
    steps = epochs * num_batches(len(kept), batch_size)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _warm_up_and_decay(s, steps))
    shifts = np.random.default_rng([seed, 1])
    loss = math.inf
    with tqdm(total=epochs * len(kept), desc="healing", unit="row") as bar:
        for epoch in range(epochs):
            plan = training_plan(kept.lengths, batch_size, seed, epoch)
            for number, (indices, batch) in enumerate(iterate(plan, kept, device)):
                shift = int(shifts.integers(position_shift + 1)) if number % 2 else 0
                optimizer.zero_grad()
                _state_loss(student, full, batch, shift).backward()
                nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                bar.update(len(indices))
            loss = _held_out_loss(student, full, held_out, batch_size, device)
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"student_backbone: the held-out loss must stay finite, got {loss} in epoch "
                    f"{epoch + 1}. Lower student_backbone.lr (now {lr:g})."
                )
            report(f"healing: epoch {epoch + 1}, held-out loss {loss:.4f}")
    student.requires_grad_(True)
    return loss


def _state_loss(
    student: nn.Module, full: nn.Module, batch: dict[str, torch.Tensor], shift: int = 0
) -> torch.Tensor:
    with torch.no_grad():
        wanted = full(**batch).last_hidden_state
    shifted = batch
    if shift:
        tokens = batch["input_ids"].shape[1]
        shifted = {**batch, "position_ids": torch.arange(shift, shift + tokens, device=wanted.device)[None]}
    error = (student(**shifted).last_hidden_state - wanted).square().mean(dim=-1)
    real = batch["attention_mask"].to(error.dtype)
    return (error * real).sum() / real.sum() + error[:, 0].mean()


@torch.no_grad()
def _held_out_loss(
    student: nn.Module, full: nn.Module, held_out: Encoded, batch_size: int, device: torch.device
) -> float:
    total = 0.0
    for indices, batch in iterate(fixed_plan(held_out.lengths, batch_size), held_out, device):
        total += len(indices) * float(_state_loss(student, full, batch))
    return total / len(held_out)


def _warm_up_and_decay(step: int, steps: int) -> float:
    warm_up = max(1, round(WARMUP_FRACTION * steps))
    return min((step + 1) / warm_up, max(0.0, (steps - step) / max(1, steps - warm_up)))
