"""A teacher's folder: the models in it, and the digests that name them."""

import json
from pathlib import Path
from typing import Any

from kdcache.digests import file_digest, value_digest
from kdcache.encoder import adapters
from kdcache.encoder.load import WEIGHTS, config_digest, resolve
from kdcache.errors import ModelError
from kdcache.project import IDENTITY

ALL_ROWS = -1  # in place of a fold


def part(folder: Path, fold: int, member: int) -> Path:
    """Where one model of a teacher lies.

    Args:
        folder: of the teacher; the first model on all rows lies in it directly.
        fold: which one it never saw, or ``ALL_ROWS``.
        member: which one of the ensemble.
    """
    folder = folder if fold == ALL_ROWS else folder / f"fold-{fold}"
    return folder / f"member-{member}" if member else folder


def describe_teacher(folder: Path, folds: int, ensemble: int) -> dict[str, Any]:
    """The digests in ``identity.json``: of each teacher's weights, of config and tokenizer.

    An adapter's are over its own file and that of the model it adapts, an ensemble's over those
    of its members: they stand for exactly these weights, whatever they are made of.
    """
    members = [
        [_weights_digest(part(folder, fold, member)) for member in range(ensemble)]
        for fold in range(ALL_ROWS, folds)
    ]
    whole, *crossed = [digests[0] if ensemble == 1 else value_digest(digests) for digests in members]
    return {
        "weights_sha256": whole,
        "folds_sha256": crossed,
        "config_sha256": _config_digest(folder),
        "tokenizer_sha256": file_digest(folder / "tokenizer.json"),
    } | ({"members_sha256": members} if ensemble > 1 else {})


def read_identity(folder: Path) -> dict[str, Any]:
    """Read ``identity.json``, and make sure that the weights are still the ones it names.

    Raises:
        ModelError: they are not: a file was changed, or the model that an adapter adapts.
    """
    identity = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    found = describe_teacher(folder, len(identity["folds_sha256"]), identity.get("ensemble", 1))
    for name, value in found.items():
        if identity[name] != value:
            raise ModelError(
                f"{folder}: {name} must be {identity[name]!r} as in {IDENTITY}, got {value!r}. "
                f"Run: kdcache teach --task {identity['task']}"
            )
    return identity


def _weights_digest(folder: Path) -> str:
    if not adapters.is_adapter(folder):
        return file_digest(folder / WEIGHTS)
    base = resolve(adapters.base_of(folder))
    weights = [path for path in sorted(base.iterdir()) if path.suffix in (".safetensors", ".bin")]
    return value_digest([file_digest(path) for path in (folder / adapters.WEIGHTS, *weights)])


def _config_digest(folder: Path) -> str:
    if not adapters.is_adapter(folder):
        return config_digest(folder)
    config = json.loads((folder / adapters.CONFIG).read_text(encoding="utf-8"))
    config.pop("peft_version", None)
    return value_digest([config, config_digest(resolve(adapters.base_of(folder)))])
