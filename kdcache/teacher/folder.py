"""The folder of a teacher: its files, the models in it, and the digests that identify them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.data.splits import table_digest
from kdcache.data.task import Task
from kdcache.digests import SEAL, RowsDigest, check_seal, file_digest, value_digest
from kdcache.encoder import adapter_config, adapters
from kdcache.encoder.load import WEIGHTS, config_digest
from kdcache.encoder.mean_pooled import HEAD
from kdcache.encoder.references import resolve
from kdcache.errors import DataError, ModelError
from kdcache.on_disk import open_parquet
from kdcache.places import IDENTITY
from kdcache.project import IDENTITY_DEFAULTS

# Files next to identity.json and what save_pretrained writes.
COST = "cost.json"  # steps and examples of the training
PROBE = "probe.json"  # scores of the linear probe of the pretrained model
FOLDS = "folds.parquet"  # example_id and content_hash of each training row → fold
UNKNOWN = -128  # no fold at all


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


def describe_rows(train: pa.Table, folds: Sequence[int] | np.ndarray) -> dict[str, str]:
    """Compute what ``identity.json`` says of the rows: digests of the training rows, and of the fold of each.

    Args:
        train: with the columns example_id, content_hash and label.
        folds: of its rows.
    """
    dealt = RowsDigest()
    dealt.update(train["example_id"].to_pylist(), train["content_hash"].to_pylist(), map(int, folds))
    return {"train_rows": table_digest(train), "train_folds": dealt.hexdigest()}


def write_folds(train: pa.Table, folds: np.ndarray, folder: Path) -> None:
    """Write the fold of each training row."""
    table = train.select(["example_id", "content_hash"])
    table = table.append_column("fold", pa.array(folds, pa.int8()))
    pq.write_table(table, folder / FOLDS, write_page_checksum=True)


def read_folds(
    folder: Path, train: pa.Table, task: Task, identity: Mapping[str, Any], digest: str | None = None
) -> np.ndarray:
    """Read the fold of training rows, and refuse rows that are not those of the teacher.

    A row in another place, with another text or label, would get logits of a teacher that saw it.

    Args:
        folder: of the teacher.
        train: the prepared training rows, or some of them.
        task: theirs.
        identity: of the teacher.
        digest: of all training rows, where ``train`` has some of them.

    Returns:
        int8 array of shape (rows,), in the order of ``train``.

    Raises:
        DataError: labels, template or rows are not those of the teacher.
        ModelError: the file of folds is not that of the teacher.
    """
    remedy = f"Run: kdcache teach --task {task.name}"

    def refuse(what: str, found: Any, wanted: Any) -> None:
        if found != wanted:
            raise DataError(
                f"data of {task.name}: {what} must be that of the teacher, {wanted!r}, got {found!r}. "
                f"{remedy}"
            )

    refuse("the list of labels", list(task.labels), identity["labels"])
    refuse("the template", task.template, identity["template"])
    refuse("the digest of the training rows", digest or table_digest(train), identity.get("train_rows"))
    where = {example_id: place for place, example_id in enumerate(train["example_id"].to_pylist())}
    folds = np.full(len(train), UNKNOWN, np.int8)
    dealt = RowsDigest()
    try:
        with open_parquet(folder / FOLDS) as file:
            for batch in file.iter_batches():
                ids, numbers = batch["example_id"].to_pylist(), batch["fold"].to_pylist()
                dealt.update(ids, batch["content_hash"].to_pylist(), numbers)
                for example_id, fold in zip(ids, numbers, strict=True):
                    if example_id in where:
                        folds[where[example_id]] = fold
    except (OSError, KeyError, ValueError, TypeError, OverflowError, pa.ArrowException):
        folds[:] = UNKNOWN
    # Both digests cover id and content: each row has one fold, that of its content.
    if (folds == UNKNOWN).any() or dealt.hexdigest() != identity.get("train_folds"):
        raise ModelError(f"{folder / FOLDS}: it must hold the fold of each row as in {IDENTITY}. {remedy}")
    return folds


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
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json" and path.name != SEAL:
            check_seal(path, f"Run: kdcache teach --task {folder.name}", ModelError)
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
    parts = [folder / (adapter_config.WEIGHTS if adapters.is_adapter(folder) else WEIGHTS)]
    if (folder / HEAD).is_file():
        parts.append(folder / HEAD)
    if adapters.is_adapter(folder):
        base = resolve(adapter_config.read_base(folder))
        parts += [path for path in sorted(base.iterdir()) if path.suffix in (".safetensors", ".bin")]
    digests = [file_digest(path) for path in parts]
    return digests[0] if len(digests) == 1 else value_digest(digests)


def _config_digest(folder: Path) -> str:
    if not adapters.is_adapter(folder):
        return config_digest(folder)
    config = json.loads((folder / adapter_config.CONFIG).read_text(encoding="utf-8"))
    config.pop("peft_version", None)
    return value_digest([config, config_digest(resolve(adapter_config.read_base(folder)))])
