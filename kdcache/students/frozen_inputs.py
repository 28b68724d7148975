"""What the frozen backbone makes of rows: computed once, and read by all students."""

import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from kdcache.encoder.batching import Encoded, Padded, iterate
from kdcache.encoder.forward import pooled_states
from kdcache.encoder.plans import plan_for
from kdcache.encoder.pooling import Pooling
from kdcache.encoder.prefixed_layers import KnownText
from kdcache.encoder.text_attention import TextAttention
from kdcache.encoder.token_groups import TokenGroups
from kdcache.on_disk import empty, pieces, release
from kdcache.students.prompted_backbone import TEXT, TRUNK, Backbone

STATES_BATCH_SIZE = 128
KEPT_SHARE = 0.4  # of the free memory of a GPU, or of the free disk, that what is kept of rows may take
TEXT_BYTES = 3 * 2**29  # where memory cannot hold a file, reading it may take longer than computing again

Batch = Mapping[str, torch.Tensor]
Compute = Callable[[Batch], Sequence[torch.Tensor]]


class FrozenInputs:
    """Rows as the frozen backbone reads them, on its device.

    Args:
        backbone: the shared one.
        encoded: the rows.
    """

    def __init__(self, backbone: Backbone, encoded: Encoded) -> None:
        self.backbone, self.encoded = backbone, encoded
        self._others: dict[Pooling, FrozenInputs] = {}
        self._known: dict[tuple[str, int], Kept | None] = {}

    def read_by(self, backbone: Backbone) -> "FrozenInputs":
        """Return the same rows as a backbone over the same encoder reads them, sharing what is computed."""
        if backbone.pooling == self.backbone.pooling:
            return self
        if backbone.pooling not in self._others:
            other = self._others[backbone.pooling] = FrozenInputs(backbone, self.encoded)
            other.padded = self.padded
        return self._others[backbone.pooling]

    @cached_property
    def padded(self) -> Encoded | Padded:
        """What gives batches: on an accelerator tensors of all rows, which need no copy from the host."""
        device = self.backbone.device
        return self.encoded if device.type == "cpu" else Padded.of(self.encoded, device)

    @cached_property
    def states(self) -> torch.Tensor:
        """Pooled states without a prompt, of shape (rows, choices, dim): what linear probes read."""
        backbone = self.backbone
        return pooled_states(backbone.pooled, self.encoded, STATES_BATCH_SIZE, backbone.device)

    def states_of(self, rows: np.ndarray) -> torch.Tensor:
        """Return the states of some rows, of shape (rows · choices, dim)."""
        on_device = torch.from_numpy(rows).to(self.states.device)
        return torch.cat([self.states[some] for some in pieces(on_device)]).flatten(0, 1)

    def with_trunk(self, batch: Batch, rows: torch.Tensor, late_layers: int) -> dict[str, Any]:
        """Return a batch with the states that late prompts leave as they are, where there is room for all.

        Args:
            batch: of the rows.
            rows: their numbers, on the device.
            late_layers: how many layers have prompts; with 0 the batch stays as it is.
        """
        if not late_layers:
            return dict(batch)
        kept = self._kept((TRUNK, late_layers), lambda some: [self.backbone.trunk(some, late_layers)])
        return {**batch, TRUNK: kept.padded(rows, batch["input_ids"].shape[1])[0]} if kept else dict(batch)

    def with_text(
        self, batch: Batch, rows: torch.Tensor, virtual_tokens: int, shared: bool
    ) -> dict[str, Any]:
        """Return a batch with the first layer's attention to its text, where there is room for all.

        Args:
            batch, rows: see ``with_trunk``.
            virtual_tokens: of the prefixes; with 0 the batch stays as it is.
            shared: whether all rows have one prompt.
        """
        if not virtual_tokens:
            return dict(batch)
        compute = partial(self.backbone.text, virtual_tokens=virtual_tokens)
        kept = self._kept((TEXT, virtual_tokens), compute, TEXT_BYTES)
        if kept is None:
            return dict(batch)
        # In bfloat16, products of a new shape take longer to prepare than they save.
        values, groups = kept.grouped(rows, cut=shared and self.backbone.dtype != "bfloat16")
        return {**batch, TEXT: KnownText(TextAttention(*values), groups)}

    def _kept(self, what: tuple[str, int], compute: Compute, most: float = math.inf) -> "Kept | None":
        if what not in self._known:
            # Passes whose prompts are alike come one after the other: what earlier ones read can go.
            self._known = {other: kept for other, kept in self._known.items() if other[0] != what[0]}
            self._known[what] = Kept.of_rows(self.encoded, compute, self.backbone.device, most)
        return self._known[what]


class Kept:
    """What is computed once for the tokens of some rows, one sequence after the other as they are computed.

    On a CPU, much of it lies in a file, see ``on_disk``; on a GPU, all lies on it.

    Args:
        encoded: the rows.
        values: each of shape (tokens of all rows, …), on one device.
    """

    def __init__(self, encoded: Encoded, values: Sequence[torch.Tensor]) -> None:
        lengths, device = encoded.sequences.lengths, values[0].device
        self.num_choices, self._values = encoded.num_choices, values
        self._lengths = torch.from_numpy(lengths).to(device)
        self._starts = torch.zeros_like(self._lengths)
        self._filled = 0

    @classmethod
    def of_rows(cls, encoded: Encoded, compute: Compute, device: torch.device, most: float) -> "Kept | None":
        """Compute it, unless there is no room.

        Args:
            encoded: the rows.
            compute: batch → some tensors of shape (batch · choices, tokens, …).
            device: where it computes.
            most: bytes that it may take at most.
        """
        kept: Kept | None = None
        plan = plan_for(device, encoded.lengths, STATES_BATCH_SIZE, encoded.num_choices)
        for rows, batch in iterate(plan, encoded, device):
            found = compute(batch)
            if kept is None:
                if not room_for(found, encoded, most):
                    return None
                kept = cls(encoded, [_room(one, encoded) for one in found])
            kept._put(torch.from_numpy(rows).to(device), found)
            release()
        return kept

    def _put(self, rows: torch.Tensor, found: Sequence[torch.Tensor]) -> None:
        which = self._sequences(rows)
        lengths = self._lengths[which]
        inside = torch.arange(found[0].shape[1], device=rows.device) < lengths[:, None]
        tokens = inside.flatten().nonzero()[:, 0]
        start, self._filled = self._filled, self._filled + len(tokens)
        self._starts[which] = start + lengths.cumsum(0) - lengths
        for kept, new in zip(self._values, found, strict=True):
            torch.index_select(new.flatten(0, 1), 0, tokens, out=kept[start : self._filled])

    def padded(self, rows: torch.Tensor, tokens: int) -> list[torch.Tensor]:
        """Return what is known of some rows, each of shape (rows · choices, tokens, …).

        Args:
            rows: their numbers, on the device.
            tokens: of the longest, or more. Padding gets any values; no token attends to it.
        """
        places = self._starts[self._sequences(rows)][:, None] + torch.arange(tokens, device=rows.device)
        found = self._read(places.flatten(), np.full(len(places), tokens))
        return [values.unflatten(0, places.shape) for values in found]

    def grouped(self, rows: torch.Tensor, cut: bool) -> tuple[list[torch.Tensor], TokenGroups]:
        """Return what is known of some rows, each of shape (tokens, …), and how the tokens lie.

        Args:
            rows: their numbers, on a CPU.
            cut: see ``TokenGroups.of``.
        """
        which = self._sequences(rows)
        groups = TokenGroups.of(self._lengths[which].numpy(), cut)
        places = torch.from_numpy(groups.places(self._starts[which].numpy()))
        return self._read(places, groups.tokens), groups

    def _read(self, places: torch.Tensor, tokens: np.ndarray) -> list[torch.Tensor]:
        """Read tokens at some places.

        Args:
            places: of the tokens of some sequences, one after the other.
            tokens: of each sequence.
        """
        places, ends = places.clamp(max=len(self._values[0]) - 1), tokens.cumsum()
        parts: list[list[torch.Tensor]] = [[] for _ in self._values]
        for some in pieces(np.arange(len(tokens))):
            piece = places[ends[some[0]] - tokens[some[0]] : ends[some[-1]]]
            for part, kept in zip(parts, self._values, strict=True):
                part.append(kept.index_select(0, piece))
        return [part[0] if len(part) == 1 else torch.cat(part) for part in parts]

    def _sequences(self, rows: torch.Tensor) -> torch.Tensor:
        choices = torch.arange(self.num_choices, device=rows.device)
        return (rows[:, None] * self.num_choices + choices).flatten()


def room_for(found: Sequence[torch.Tensor], encoded: Encoded, most: float) -> bool:
    """Whether there is room for what is kept of some rows, on a GPU or the disk; say so where there is none.

    Args:
        found: what is kept of some of them, each of shape (sequences, tokens, …).
        encoded: the rows.
        most: bytes that it may take at most, whatever is free.
    """
    device, tokens = found[0].device, int(encoded.sequences.lengths.sum())
    size = tokens * sum(one[0, 0].nbytes for one in found)
    if size > most:
        return False
    if device.type != "cpu":
        where, free = "GPU", torch.cuda.mem_get_info(device)[0]
    elif encoded.folder is not None:
        where, free = "disk", shutil.disk_usage(encoded.folder).free
    else:
        return True
    if fits := size < KEPT_SHARE * free:
        return fits
    tqdm.write(
        f"distill: what no prompt changes takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free "
        f"on the {where}. It is computed at every step, which takes longer.", file=sys.stderr,
    )  # fmt: skip
    return False


def _room(like: torch.Tensor, encoded: Encoded) -> torch.Tensor:
    shape, dtype = (int(encoded.sequences.lengths.sum()), *like.shape[2:]), like.dtype
    if like.device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=like.device)
    size = math.prod(shape) * dtype.itemsize  # numpy has no bfloat16
    return torch.from_numpy(empty((size,), np.uint8, encoded.folder)).view(dtype).view(shape)
