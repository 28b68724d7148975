"""Weights from a folder: all that are wanted, no others, of these shapes, and finite."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from kdcache.errors import ModelError, reason_of

SHOWN = 3


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        ModelError: it is missing or broken.
    """
    if not path.is_file():
        raise ModelError(f"{path}: the weights must be there, got no such file. Copy the whole folder again.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: it must be a safetensors file, got: {reason_of(error)}.") from None


def check_weights(path: Path, found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that are not those of the model: what it lacks would be random, and the rest unread.

    Args:
        path: where they lie, for messages.
        found: name → weight.
        wanted: weights of the same names and shapes.

    Raises:
        ModelError: names the first weights that are missing, surplus, of another shape or not finite.
    """
    for what, names in (
        ("hold all weights of the model, got none of", wanted.keys() - found.keys()),
        ("hold the model's weights only, got also", found.keys() - wanted.keys()),
        (
            "hold weights of the model's shapes, got others for",
            {n for n in wanted.keys() & found.keys() if wanted[n].shape != found[n].shape},
        ),
        ("hold finite weights, got others in", {n for n in found if not torch.isfinite(found[n]).all()}),
    ):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise ModelError(
                f"{path}: it must {what} {', '.join(sorted(names)[:SHOWN])}{more}. "
                "Train the model again, or copy its whole folder."
            )
