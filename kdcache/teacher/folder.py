"""The folder of a teacher: its files, the models in it, and the digests that identify them."""

import json
from pathlib import Path
from typing import Any

from kdcache.digests import file_digest, value_digest
from kdcache.encoder import adapters
from kdcache.encoder.load import WEIGHTS, config_digest, resolve
from kdcache.encoder.mean_pooled import HEAD
from kdcache.errors import ModelError
from kdcache.project import IDENTITY, IDENTITY_DEFAULTS

# Files next to identity.json and what save_pretrained writes.
COST = "cost.json"  # steps and examples of the training
PROBE = "probe.json"  # scores of the linear probe of the pretrained model
FOLDS = "folds.parquet"  # example_id → fold


def teacher_folds(num_folds: int) -> tuple[int | None, ...]:
    """List the teachers of a task, each by the fold that it was trained without.

    None means the teacher trained on all rows.

    >>> teacher_folds(2)
    (None, 0, 1)
    """
    return (None, *range(num_folds))


def model_folder(folder: Path, fold: int | None, member: int) -> Path:
    """Return the folder of one model.

    Args:
        folder: of the teacher. The first model trained on all rows lies directly in it.
        fold: see ``teacher_folds``.
        member: number of the model in its ensemble, from 0.
    """
    folder = folder if fold is None else folder / f"fold-{fold}"
    return folder / f"member-{member}" if member else folder


def describe_teacher(folder: Path, num_folds: int, ensemble: int) -> dict[str, Any]:
    """Compute what ``identity.json`` says of the models: pooling, digests of weights, config and tokenizer.

    The digest of an adapter is over its own file and the weights of its base model. A mean-pooled model has
    its head in a file of its own, which the digest covers too. The digest of an ensemble is over those of
    its members. So each digest identifies exactly these weights.
    """
    members = [
        [_weights_digest(model_folder(folder, fold, member)) for member in range(ensemble)]
        for fold in teacher_folds(num_folds)
    ]
    all_rows, *folds = [digests[0] if ensemble == 1 else value_digest(digests) for digests in members]
    return {
        "pooling": adapters.saved_pooling(folder),
        "weights_sha256": all_rows,
        "folds_sha256": folds,
        "config_sha256": _config_digest(folder),
        "tokenizer_sha256": file_digest(folder / "tokenizer.json"),
    } | ({"members_sha256": members} if ensemble > 1 else {})


def read_identity(folder: Path) -> dict[str, Any]:
    """Read ``identity.json`` and check that the weights have the digests in it.

    Raises:
        ModelError: a file has changed, or the base model of an adapter.
    """
    identity = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    found = describe_teacher(folder, len(identity["folds_sha256"]), identity.get("ensemble", 1))
    for name, value in found.items():
        if (wanted := identity.get(name, IDENTITY_DEFAULTS.get(name))) != value:
            raise ModelError(
                f"{folder}: {name} must be {wanted!r} as in {IDENTITY}, got {value!r}. "
                f"Run: kdcache teach --task {identity['task']}"
            )
    return identity


def _weights_digest(folder: Path) -> str:
    parts = [folder / (adapters.WEIGHTS if adapters.is_adapter(folder) else WEIGHTS)]
    if (folder / HEAD).is_file():
        parts.append(folder / HEAD)
    if adapters.is_adapter(folder):
        base = resolve(adapters.base_of(folder))
        parts += [path for path in sorted(base.iterdir()) if path.suffix in (".safetensors", ".bin")]
    digests = [file_digest(path) for path in parts]
    return digests[0] if len(digests) == 1 else value_digest(digests)


def _config_digest(folder: Path) -> str:
    if not adapters.is_adapter(folder):
        return config_digest(folder)
    config = json.loads((folder / adapters.CONFIG).read_text(encoding="utf-8"))
    config.pop("peft_version", None)
    return value_digest([config, config_digest(resolve(adapters.base_of(folder)))])
