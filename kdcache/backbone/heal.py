"""Healing a cut encoder on unlabelled text, by regression on the full encoder's hidden states.

A raw cut can be blind: its [CLS] state hardly depends on the input, because the layers that would
have filled it are gone. No prompt can cure that. After healing, the cut's last hidden states are
close to those of the full encoder.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from kdcache.encoder.batching import Encoded, fixed_plan, iterate, num_batches, training_plan
from kdcache.encoder.optimisation import MAX_GRAD_NORM, load_checkpoint, lr_factor, save_checkpoint
from kdcache.encoder.pooling import PoolingChoice
from kdcache.errors import ParamsError, TrainingDiverged
from kdcache.params import Count, NonNegativeInt, PositiveFloat, Range

HELD_OUT_FRACTION = 0.05
WARMUP_FRACTION = 0.1
HEALING_CHECKPOINT_STEPS = 100


@dataclass(frozen=True)
class StudentBackboneParams:
    """Section ``student_backbone``.

    Args:
        model: model reference (see ``kdcache.encoder.load``).
        num_layers: how many layers to keep; ``all`` neither cuts nor heals.
        layers: which ones: ``spread`` evenly from the first to the last, the ``first``, or their
            numbers, from 0.
        states: what healing regresses on: the ``last`` states, or ``all``: also the full model's
            states after each layer that is kept.
        text: files of unlabelled text; an empty list takes the training texts of the project's
            tasks.
        column: the column of the text in files that have columns (.csv, .tsv, .jsonl, .parquet);
            files of any other ending hold one text per line.
        epochs: passes over the text; 0 leaves the cut raw.
        lr: peak learning rate of AdamW.
        batch_size: rows per step.
        max_length: in tokens.
        position_shift: heal with positions shifted by up to this many tokens. It should be at
            least the number of virtual tokens that students will use. A model without a table
            of positions ignores it.
        seed: of hold-out, order and shifts.
        pooling: what heads are to read: the state of [CLS], or the mean of the text's states. ``auto``
            asks the model's folder (see ``kdcache.encoder.pooling``). Healing is the same for both.
    """

    model: str
    num_layers: Count | Literal["all"]
    text: tuple[str, ...]
    epochs: NonNegativeInt
    lr: PositiveFloat
    batch_size: Count
    max_length: Annotated[int, Range(8)]
    position_shift: NonNegativeInt
    seed: NonNegativeInt
    layers: Literal["first", "spread"] | tuple[NonNegativeInt, ...] = "spread"
    states: Literal["last", "all"] = "last"
    column: str = "text"
    pooling: PoolingChoice = "auto"


def heal(
    student: PreTrainedModel,
    full: PreTrainedModel,
    keep: Sequence[int],
    encoded: Encoded,
    params: StudentBackboneParams,
    device: torch.device,
    scratch: Path | None = None,
    report: Callable[[str], None] = print,
) -> list[float]:
    """Train a cut encoder to reproduce the full encoder's hidden states.

    loss = mean over states of
    [mean over tokens and dims of (Hs − Ht)² + mean over dims of (Hs[CLS] − Ht[CLS])²]

    Interrupted, the next run goes on from the last checkpoint, to the same bits.

    Args:
        student: the cut encoder; trained in place, its embeddings stay frozen.
        full: the full encoder.
        keep: which of its layers the student has.
        encoded: unlabelled rows; a twentieth is held out to watch the loss.
        params: the settings. Every second batch starts at a position drawn from 0 …
            ``position_shift``, since a prompt shifts all positions by its length, and an encoder
            that knows [CLS] by position 0 only then loses it.
        device: where to compute.
        scratch: folder of the checkpoint, written every ``HEALING_CHECKPOINT_STEPS``; None writes none.
        report: where the held-out loss of each epoch goes.

    Returns:
        The held-out loss after each epoch.

    Raises:
        ParamsError: shifted positions would run out.
        TrainingDiverged: the loss became NaN or infinite.
    """
    first_position = shiftable_from(student, params)
    student.to(device).eval()  # type: ignore[arg-type]  # no dropout: regression wants the exact states
    full.to(device).eval()  # type: ignore[arg-type]
    for name, parameter in student.named_parameters():
        parameter.requires_grad = "embeddings" not in name
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=params.lr)
    held_out, kept = _hold_out(encoded, params.seed)
    per_epoch = num_batches(len(kept), params.batch_size)
    steps = params.epochs * per_epoch
    regressed = keep if params.states == "all" else keep[-1:]

    def loss_of(batch: dict[str, torch.Tensor], shift: int) -> torch.Tensor:
        return _state_loss(student, full, regressed, batch, shift, first_position)

    step, losses = 0, []
    checkpoint = scratch / "healing.pt" if scratch else None
    if checkpoint and (state := load_checkpoint(checkpoint)):
        step, losses = state["step"], state["losses"]
        student.load_state_dict(state["weights"], strict=False)  # embeddings never move
        optimizer.load_state_dict(state["optimizer"])
    with tqdm(total=params.epochs * len(kept), desc="healing", unit="row") as bar:
        for epoch in range(params.epochs):
            plan = training_plan(kept.lengths, params.batch_size, params.seed, epoch)
            shifts = _shifts(len(plan), params, epoch)
            done = min(max(step - epoch * per_epoch, 0), len(plan))
            bar.update(sum(map(len, plan[:done])))
            for shift, rows in zip(shifts[done:], plan[done:], strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = params.lr * lr_factor(step, steps, WARMUP_FRACTION)
                optimizer.zero_grad()
                loss_of(kept.batch(rows, device), int(shift)).backward()
                nn.utils.clip_grad_norm_(trained.values(), MAX_GRAD_NORM)
                optimizer.step()
                step += 1
                bar.update(len(rows))
                if checkpoint and step % HEALING_CHECKPOINT_STEPS == 0:
                    weights = {name: p.detach() for name, p in trained.items()}
                    state = {"weights": weights, "optimizer": optimizer.state_dict()}
                    save_checkpoint(state | {"step": step, "losses": losses}, checkpoint)
            if len(losses) > epoch:
                continue
            losses.append(_held_out_loss(loss_of, held_out, params.batch_size, device))
            if not math.isfinite(losses[-1]):
                raise TrainingDiverged(
                    f"student_backbone: the held-out loss must stay finite, got {losses[-1]} in epoch "
                    f"{epoch + 1}. Lower student_backbone.lr (now {params.lr:g})."
                )
            report(f"healing: epoch {epoch + 1}, held-out loss {losses[-1]:.4f}")
    student.requires_grad_(True)
    return losses


def shiftable_from(model: PreTrainedModel, params: StudentBackboneParams) -> int | None:
    """Find the id of an encoder's first position, where it has a table of positions.

    Unlike ``architectures.first_position`` it looks at the modules, so that encoders that students
    cannot use can still be cut.

    Returns:
        0, or what RoBERTa-like encoders start at. None where positions are relative or rotary, or
        cannot be passed in.

    Raises:
        ParamsError: the last shifted position would lie past the table.
    """
    table = next(
        (module for name, module in model.named_modules()
         if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)), None
    )  # fmt: skip
    if table is None or "position_ids" not in inspect.signature(model.forward).parameters:
        return None
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    room = table.num_embeddings - first
    if params.max_length + params.position_shift > room:
        raise ParamsError(
            f"student_backbone: max_length + position_shift must be at most the model's {room} positions, "
            f"got {params.max_length} + {params.position_shift}. Lower one of them."
        )
    return first


def _shifts(num_batches: int, params: StudentBackboneParams, epoch: int) -> np.ndarray:
    """Draw how far each batch's positions are shifted; every second batch keeps its own."""
    rng = np.random.default_rng([params.seed, 1, epoch])
    return rng.integers(params.position_shift + 1, size=num_batches) * (np.arange(num_batches) % 2)


def _hold_out(encoded: Encoded, seed: int) -> tuple[Encoded, Encoded]:
    order = np.random.default_rng(seed).permutation(len(encoded))
    count = math.ceil(HELD_OUT_FRACTION * len(encoded))
    return encoded.take(order[:count]), encoded.take(order[count:])


def _state_loss(
    student: nn.Module,
    full: nn.Module,
    regressed: Sequence[int],
    batch: dict[str, torch.Tensor],
    shift: int,
    first_position: int | None,
) -> torch.Tensor:
    shifted = batch
    if shift and first_position is not None:
        start, tokens = first_position + shift, batch["input_ids"].shape[1]
        positions = torch.arange(start, start + tokens, device=batch["input_ids"].device)
        shifted = {**batch, "position_ids": positions[None]}
    between = len(regressed) > 1
    got = student(**shifted, output_hidden_states=between)
    with torch.no_grad():
        wanted = full(**batch, output_hidden_states=between)
    pairs = [(got.last_hidden_state, wanted.last_hidden_state)]
    pairs += [(got.hidden_states[i + 1], wanted.hidden_states[k + 1]) for i, k in enumerate(regressed[:-1])]
    real = batch["attention_mask"].float()
    losses = []
    for ours, theirs in pairs:
        error = (ours - theirs).square().mean(dim=-1)
        losses.append((error * real).sum() / real.sum() + error[:, 0].mean())
    return torch.stack(losses).mean()


@torch.no_grad()
def _held_out_loss(
    loss_of: Callable[[dict[str, torch.Tensor], int], torch.Tensor],
    held_out: Encoded,
    batch_size: int,
    device: torch.device,
) -> float:
    total = 0.0
    for indices, batch in iterate(fixed_plan(held_out.lengths, batch_size), held_out, device):
        total += len(indices) * float(loss_of(batch, 0))
    return total / len(held_out)
