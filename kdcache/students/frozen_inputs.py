"""What the frozen backbone makes of rows: computed once, and read by all students."""

import math
import shutil
import sys
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from tqdm import tqdm

from kdcache.encoder.batching import Encoded, Padded, iterate
from kdcache.encoder.forward import pooled_states
from kdcache.encoder.plans import plan_for
from kdcache.encoder.pooling import Pooling
from kdcache.on_disk import empty, pieces, release
from kdcache.students.prompted_backbone import TRUNK, Backbone

STATES_BATCH_SIZE = 128
TRUNK_SHARE = 0.4  # of the free memory of a GPU, or of the free disk, that states below late prompts may take


class FrozenInputs:
    """Rows as the frozen backbone reads them, on its device.

    Args:
        backbone: the shared one.
        encoded: the rows.
    """

    def __init__(self, backbone: Backbone, encoded: Encoded) -> None:
        self.backbone, self.encoded = backbone, encoded
        self._others: dict[Pooling, FrozenInputs] = {}
        self._trunks: dict[int, Trunk | None] = {}

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

    def with_trunk(
        self, batch: Mapping[str, torch.Tensor], rows: torch.Tensor, late_layers: int
    ) -> dict[str, torch.Tensor]:
        """Return a batch with the states that late prompts leave as they are, where there is room for all.

        Args:
            batch: of the rows.
            rows: their numbers, on the device.
            late_layers: how many layers have prompts; with 0 the batch stays as it is.
        """
        if late_layers and late_layers not in self._trunks:
            fits = trunk_fits(self.backbone, self.encoded)
            self._trunks[late_layers] = Trunk(self.backbone, self.encoded, late_layers) if fits else None
        trunk = self._trunks.get(late_layers)
        return {**batch, TRUNK: trunk.of(rows, batch["input_ids"].shape[1])} if trunk else dict(batch)


class Trunk:
    """The states of some rows' tokens below late prompts, one sequence after the other.

    On a CPU, many lie in a file, see ``on_disk``; on a GPU, all lie on it.

    Args:
        backbone: the shared one.
        encoded: the rows.
        layers: how many of the last layers have prompts.
    """

    def __init__(self, backbone: Backbone, encoded: Encoded, layers: int) -> None:
        lengths, device = encoded.sequences.lengths, backbone.device
        shape = int(lengths.sum()), backbone.config.hidden_size
        self.num_choices = encoded.num_choices
        self._starts = torch.from_numpy(np.cumsum(lengths) - lengths).to(device)
        self._states = _room(shape, backbone, encoded)
        of_length = torch.from_numpy(lengths).to(device)
        plan = plan_for(device, encoded.lengths, STATES_BATCH_SIZE, encoded.num_choices)
        for rows, batch in iterate(plan, encoded, device):
            states = backbone.trunk(batch, layers)
            which, places = self._places(torch.from_numpy(rows).to(device), states.shape[1])
            inside = torch.arange(states.shape[1], device=device) < of_length[which][:, None]
            self._states[places[inside]] = states[inside]
            release()

    def of(self, rows: torch.Tensor, tokens: int) -> torch.Tensor:
        """Return the states of some rows, of shape (rows · choices, tokens, dim).

        Args:
            rows: their numbers, on the device.
            tokens: of the longest, or more. Padding gets any states; no token attends to it.
        """
        places = self._places(rows, tokens)[1].clamp(max=len(self._states) - 1)
        return torch.cat([self._states[some] for some in pieces(places)])

    def _places(self, rows: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the numbers of the rows' sequences, and where the states of their tokens are."""
        choices = torch.arange(self.num_choices, device=rows.device)
        which = (rows[:, None] * self.num_choices + choices).flatten()
        return which, self._starts[which][:, None] + torch.arange(tokens, device=rows.device)


def trunk_fits(backbone: Backbone, encoded: Encoded) -> bool:
    """Whether there is room for the states of some rows, on a GPU or the disk; say so where there is none."""
    size = (
        int(encoded.sequences.lengths.sum()) * backbone.config.hidden_size * backbone.encoder.dtype.itemsize
    )
    if backbone.device.type != "cpu":
        where, free = "GPU", torch.cuda.mem_get_info(backbone.device)[0]
    elif encoded.folder is not None:
        where, free = "disk", shutil.disk_usage(encoded.folder).free
    else:
        return True
    if fits := size < TRUNK_SHARE * free:
        return fits
    tqdm.write(
        f"distill: the states below late prompts take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free "
        f"on the {where}. They are computed at every step, which takes longer.", file=sys.stderr,
    )  # fmt: skip
    return False


def _room(shape: tuple[int, int], backbone: Backbone, encoded: Encoded) -> torch.Tensor:
    dtype = backbone.encoder.dtype
    if backbone.device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=backbone.device)
    size = math.prod(shape) * dtype.itemsize  # numpy has no bfloat16
    return torch.from_numpy(empty((size,), np.uint8, encoded.folder)).view(dtype).view(shape)
