"""Pooling: how the states of a text's tokens become the one state that a head reads.

An encoder should be read as it was trained. Most small encoders of today are sentence encoders,
trained to be read by the mean of their tokens; their [CLS] state was never trained to mean
anything. docs/concepts/pooling.md has the measurements.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch

from kdcache.encoder.model_config import read_config
from kdcache.errors import ModelError

Pooling = Literal["cls", "mean"]
PoolingChoice = Literal["auto", "cls", "mean"]

FILE = Path("1_Pooling") / "config.json"  # sentence-transformers' own
MODES: dict[str, Pooling] = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean"}


def resolve_pooling(choice: PoolingChoice, folder: Path) -> Pooling:
    """Return the pooling of a parameter: as written, or what ``read_pooling`` finds for ``auto``."""
    return read_pooling(folder) if choice == "auto" else choice


def read_pooling(folder: Path) -> Pooling:
    """Read from a model folder how the encoder was trained to be read.

    sentence-transformers' ``1_Pooling/config.json`` comes first, then ``classifier_pooling`` in the
    config of ModernBERT. A folder that says nothing gives ``cls``.

    Args:
        folder: a model folder.

    Raises:
        ModelError: it was trained to be read in another way, such as by the maximum.
    """
    path = folder / FILE
    if not path.is_file():
        said = read_config(folder).get("classifier_pooling", "cls")
        return MODES.get(said, "cls") if isinstance(said, str) else "cls"
    config = read_config(folder, str(FILE))
    prefix = "pooling_mode_"
    modes = [key.removeprefix(prefix) for key, on in config.items() if key.startswith(prefix) and on is True]
    if isinstance(named := config.get("pooling_mode"), str):  # newer folders name the mode
        modes = [named]
    if len(modes) == 1 and modes[0] in MODES:
        return MODES[modes[0]]
    raise ModelError(
        f"{path}: the pooling must be that of [CLS] or the mean of all tokens, got "
        f"{', '.join(modes) or 'none'}. "
        "Set pooling to cls or mean to read this encoder in another way."
    )


def check_cls_token(pooling: Pooling, tokenizer: Any, where: str) -> None:
    """Refuse to read [CLS] where there is none.

    Args:
        pooling: as resolved.
        tokenizer: of the encoder.
        where: the parameter, for the message.

    Raises:
        ModelError: the tokenizer puts no [CLS] first.
    """
    ids = tokenizer("a")["input_ids"]
    if pooling == "cls" and (tokenizer.cls_token_id is None or ids[:1] != [tokenizer.cls_token_id]):
        raise ModelError(
            f"{where}: with cls, the tokenizer must put {tokenizer.cls_token or 'a [CLS]'} first, got "
            f"{tokenizer.convert_ids_to_tokens(ids)}. Set it to mean."
        )


def write_pooling(folder: Path, pooling: Pooling, dim: int) -> None:
    """Write into a model folder how it is to be read, as sentence-transformers does.

    Args:
        folder: a model folder.
        pooling: of its tokens.
        dim: of its states.
    """
    config: dict[str, Any] = {
        "word_embedding_dimension": dim,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    path = folder / FILE
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def pool(states: torch.Tensor, own: torch.Tensor | None, pooling: Pooling) -> torch.Tensor:
    """Pool the states of a batch, in float32 even where they are bfloat16.

    Args:
        states: of shape (batch, tokens, dim).
        own: of shape (batch, tokens), 1 for the text's own tokens, special ones included; 0 for
            padding and virtual tokens. Each row has at least one. None where all are its own.
        pooling: ``cls`` takes the first state.

    Returns:
        Of shape (batch, dim).

    >>> states = torch.tensor([[[1.0], [3.0], [99.0]]])
    >>> pool(states, torch.tensor([[1, 1, 0]]), "mean").tolist()
    [[2.0]]
    """
    dtype = torch.promote_types(states.dtype, torch.float32)
    if pooling == "cls":
        return states[:, 0].to(dtype)
    if own is None:
        return states.mean(1, dtype=dtype)
    weights = own[:, :, None].to(dtype)
    return (states.to(dtype) * weights).sum(1) / weights.sum(1)
