"""config.json of a model folder, checked before a model is built of it: its weights must bear it out."""

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from kdcache.errors import ModelError, reason_of, shorten
from kdcache.plain_json import parse_json, read_json

CONFIG = "config.json"
MAX_TOKENIZER_BYTES = 2**26  # of each file of a tokenizer
MAX_NUMBER = 10**7  # of any kind: vocabularies have some 10⁵ to 10⁶ tokens
REPEATED = re.compile(r"layer|block|group|expert|stage|depth")  # parts that are made one by one
FEW = 200  # of these cost no time to speak of
MAX_LABELS = 10**5
# A head of another size than the file's is fresh, and positions that are computed are not in the file.
RATIO, SLACK = 2, 10**7


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """Read a model's config, or another one in its folder.

    Raises:
        ModelError: it is no JSON object, or one beyond all bounds.
    """
    try:
        found = read_json(folder / name)
        if not isinstance(found, dict):
            raise ValueError(shorten(found))
    except ValueError as error:
        raise ModelError(
            f"{folder / name}: it must be a JSON object, got: {error}. Copy the model's whole folder again."
        ) from None
    return found


def check_config(folder: Path, auto: Any) -> None:
    """Refuse a config that describes another model than the weights are of, before memory is taken for it.

    Args:
        folder: of the model. One without safetensors is left to transformers, which refuses it.
        auto: transformers' class that is to load it.

    Raises:
        ModelError: a number is too large, the model has far more weights than the folder, or its code comes
            from elsewhere.
    """
    config = read_config(folder)
    shapes = [shape for path in sorted(folder.glob("*.safetensors")) for shape in _shapes(path)]
    for name, value in _leaves(config, ""):
        most = MAX_LABELS if name == "num_labels" else MAX_NUMBER
        if REPEATED.search(name):
            most = max(FEW, len(shapes))
        if isinstance(value, int) and abs(value) > most:
            raise ModelError(
                f"{folder / CONFIG}: {name} must be at most {most}, got {shorten(value)}. "
                "Choose another model."
            )
        if "implementation" in name and isinstance(value, str) and "/" in value:
            raise ModelError(
                f"{folder / CONFIG}: {name} must not name code on the hub, got {shorten(value)}. Remove it."
            )
    if not shapes or "model_type" not in config:
        return
    stored = sum(math.prod(shape) for shape in shapes)
    try:
        described = _num_weights(auto, (folder / CONFIG).read_bytes())
    except Exception as error:  # of whatever a config makes of a model's code
        raise ModelError(
            f"{folder}: it must hold an encoder that transformers loads, got: {reason_of(error)}"
        ) from None
    if described > RATIO * stored + SLACK:
        raise ModelError(
            f"{folder / CONFIG}: the model must be that of the weights, got {described} numbers in it and "
            f"{stored} in the files beside it. Copy the model's whole folder again."
        )


def check_tokenizer_files(folder: Path) -> None:
    """Refuse a tokenizer that is too large to be one.

    Raises:
        ModelError: names the file.
    """
    for path in sorted(folder.glob("*")):
        if path.suffix in (".json", ".txt", ".model", ".jinja") and path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ModelError(
                f"{path}: it must have at most {MAX_TOKENIZER_BYTES} bytes, got {path.stat().st_size}. "
                "Choose another model."
            )


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield every value that holds no others, with the name of its key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("label2id", "id2label"):
                yield from _leaves(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, name)
    elif not isinstance(value, bool):
        yield name, value


def _shapes(path: Path) -> list[list[int]]:
    try:
        with safe_open(str(path), "pt") as file:
            return [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError):
        return []  # said when its weights are read


@lru_cache(32)
def _num_weights(auto: Any, content: bytes) -> int:
    """Count what a config describes, on a device that holds no values."""
    said = {key: value for key, value in parse_json(content).items() if key != "auto_map"}
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(**said), trust_remote_code=False)
    return sum(parameter.numel() for parameter in model.parameters())
