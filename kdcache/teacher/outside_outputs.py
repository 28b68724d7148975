"""Outputs of outside teachers, which kdcache did not run: their files, and the rows in them."""

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from kdcache.cache.exchange import MIN_PROBABILITY, MissingMass, mean_logits, to_logits
from kdcache.cache.join import Batches, Keys, batches_of, name_chosen
from kdcache.cache.manifest import OUTSIDE
from kdcache.cache.read_outputs import FILE_ENDINGS, stream_outputs
from kdcache.cache.spill import Spill
from kdcache.data.ids import hash_ids, more_than_once, name_some, repeated
from kdcache.data.task import Task
from kdcache.digests import file_digest, value_digest
from kdcache.errors import DataError, nearest
from kdcache.on_disk import Growing


@dataclass(frozen=True)
class OutsideTeacher:
    """The outputs of one teacher, read from its file.

    Args:
        path: of the file.
        weight: of this teacher in the mean; those of all teachers sum to 1.
        kind: of its numbers, a key of ``read_outputs.KINDS``.
        keys: its rows by hashes, in the order of the file.
        hashed: whether the file has content hashes.
        logits, features: one vector per row of the file, on disk.
    """

    path: Path
    weight: float
    kind: str
    keys: Keys
    hashed: bool
    logits: Spill
    features: Spill


@dataclass(frozen=True)
class OutsideTeachers:
    """The teachers of a task, one or several.

    Args:
        path: what was imported: the file of one teacher, or the folder of several.
        teachers: by the names of their files.
    """

    path: Path
    teachers: Sequence[OutsideTeacher]

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return for each hash of an id its row in each file, or −1: an array of shape (teachers, ids)."""
        return np.stack([teacher.keys.find(ids) for teacher in self.teachers])

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Return the mean over the teachers, see ``exchange.mean_logits``; of one, its own numbers.

        Args:
            rows: of the files, of shape (teachers, n).
        """
        found = [teacher.logits.take(of) for teacher, of in zip(self.teachers, rows, strict=True)]
        return found[0] if len(found) == 1 else mean_logits(found, [t.weight for t in self.teachers])

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Return the features of a single teacher; several have none in common, so dim is 0."""
        if len(self.teachers) == 1:
            return self.teachers[0].features.take(rows[0])
        return np.empty((rows.shape[1], 0), np.float32)

    def identity(self, task: Task, missing_mass: MissingMass) -> dict[str, Any]:
        """Describe the source: its files and their digests and, of several teachers, their weights."""
        digests = [file_digest(teacher.path) for teacher in self.teachers]
        of = {
            "kind": OUTSIDE, "task": task.name, "template": task.template, "labels": list(task.labels),
            "num_labels": task.num_labels, "source": self.path.name, "missing_mass": missing_mass,
            "floor": MIN_PROBABILITY,
        }  # fmt: skip
        if len(self.teachers) == 1:
            return {**of, "source_sha256": digests[0], "given": self.teachers[0].kind}
        several = {
            "teachers": [teacher.path.name for teacher in self.teachers],
            "teachers_sha256": digests,
            "weights": [teacher.weight for teacher in self.teachers],
            "given": [teacher.kind for teacher in self.teachers],
            "mean_of": "probabilities",
        }
        return {**of, **several, "source_sha256": value_digest(several)}

    def require_rows(self, split: str, data: Batches, keys: Keys, rows: np.ndarray) -> None:
        """Refuse a split of which a file lacks rows, or has other texts, or labels in another order.

        Raises:
            DataError: names the file and some rows.
        """
        for teacher, row in zip(self.teachers, rows, strict=True):
            if (missing := row < 0).any():
                raise DataError(
                    f"{teacher.path}: every row of {split} must be in the file, got none for "
                    f"{name_chosen(data, missing)}."
                )
            if split == "train" and (turned := _other_order(teacher.keys.labels[row], keys.labels)):
                raise DataError(
                    f"{teacher.path}: its numbers are not named by label, and by its column label the labels "
                    f"were in another order when it was written: {turned}. Name the numbers by their labels, "
                    "or export the cache as .csv."
                )
            changed = teacher.keys.texts[row] != keys.texts
            if teacher.hashed and changed.any():
                raise DataError(
                    f"{teacher.path}: the texts must be those of the prepared data, got another content_hash "
                    f"for {name_chosen(data, changed)}."
                )


def _other_order(given: np.ndarray, labels: np.ndarray) -> str:
    """Say which label of a file is which of the data, where one order of labels became another; else "".

    Other differences, such as labels that were corrected or predicted, tell nothing of the order.

    Args:
        given: indices in the file, −1 where there is none.
        labels: those of the data, −1 where there is none.
    """
    both = (given >= 0) & (labels >= 0)
    pairs = np.unique(np.stack([given[both], labels[both]]), axis=1)
    one_to_one = all(len(np.unique(side)) == len(side) for side in pairs)
    if not one_to_one or (pairs[0] == pairs[1]).all():
        return ""
    return name_some([f"{old} is now {new}" for old, new in pairs.T.tolist()])


@contextlib.contextmanager
def open_outside(
    path: Path, weights: Mapping[str, float], task: Task, policy: MissingMass, id_column: str, scratch: Path
) -> Iterator[OutsideTeachers]:
    """Read the file of one teacher, or those of several in a folder; their numbers go to disk.

    Args:
        path: the file or folder. A teacher in a folder has the name of its file, without the ending.
        weights: name → weight; empty weighs all alike.
        task: whose labels the numbers are of.
        policy: for missing mass, see ``exchange.to_logits``.
        id_column: name of the column of ids.
        scratch: a folder for the numbers while the block runs.

    Raises:
        DataError: a file is not as ``read_outputs`` wants it, or the weights are not those of the folder.
    """
    files = _name_files(path, weights)
    total = sum(weights.get(name, 1.0) for name in files)
    if not math.isfinite(total):
        raise DataError(f"{path}: the sum of the weights must be finite, got {total}. Only ratios matter.")
    with contextlib.ExitStack() as spills:

        def read(name: str, file: Path) -> OutsideTeacher:
            logits, features = (spills.enter_context(contextlib.closing(Spill(scratch))) for _ in range(2))
            return _read(file, weights.get(name, 1.0) / total, task, policy, id_column, logits, features)

        yield OutsideTeachers(path, [read(name, file) for name, file in files.items()])


def refuse_unknown(
    outside: OutsideTeachers, data: str, files: Mapping[str, pq.ParquetFile], id_column: str, task: Task
) -> None:
    """Refuse ids that are in none of the prepared splits ``files``.

    Raises:
        DataError: names some, and what ids look like.
    """
    for teacher in outside.teachers:
        strange = np.ones(len(teacher.keys.ids), bool)
        for file in files.values():
            for batch in batches_of(file)():
                row = teacher.keys.find(hash_ids(batch["example_id"].to_pylist()))
                strange[row[row >= 0]] = False
        if not strange.any():
            continue
        first = next(iter(next(iter(files.values())).iter_batches(1, columns=["example_id"])))
        ids: list[str] = []
        start = 0
        for part in stream_outputs(teacher.path, task.labels, id_column):
            end = start + len(part.example_id)
            ids += [part.example_id[i] for i in np.flatnonzero(strange[start:end])]
            start = end
        raise DataError(
            f"{teacher.path}: every id must be in {data}, got unknown {name_some(ids)}. The ids there look "
            f"like {first['example_id'][0].as_py()!r}."
        )


def _name_files(path: Path, weights: Mapping[str, float]) -> dict[str, Path]:
    """Name → file of each teacher, by name."""
    if not path.is_dir():
        if weights:
            raise DataError(
                f"{path}: weights need a folder with a file per teacher, got no folder. Leave them out."
            )
        return {path.stem: path}
    files = [file for file in sorted(path.iterdir()) if file.suffix in FILE_ENDINGS and file.name[0] != "."]
    others = [file.name for file in sorted(path.iterdir()) if file not in files and file.name[0] != "."]
    if files and others:
        print(
            f"{path}: left out, as teachers end in {', '.join(FILE_ENDINGS)}: {name_some(others)}",
            file=sys.stderr,
        )
    if not files:
        raise DataError(
            f"{path}: the folder must hold a file per teacher, ending in {', '.join(FILE_ENDINGS)}, got none."
        )
    if twice := repeated(file.stem for file in files):
        raise DataError(f"{path}: each teacher must have one file, got two for {name_some(twice)}.")
    named = {file.stem: file for file in files}
    for name in weights:
        if name not in named:
            raise DataError(
                f"{path}: a weight must be of a teacher there, got one of {name!r}. {nearest(name, named)}"
            )
    if weights and (without := [name for name in named if name not in weights]):
        raise DataError(
            f"{path}: each teacher must have a weight, got none of {name_some(without)}. Give it one, or "
            "move its file away."
        )
    return named


def _read(
    path: Path, weight: float, task: Task, policy: MissingMass, id_column: str, logits: Spill, features: Spill
) -> OutsideTeacher:
    """Read a file once, a part at a time; its numbers go to disk in the order of the file."""
    ids, texts, labels = (Growing(np.int64, None) for _ in range(3))
    kind, hashed = "", False
    for part in stream_outputs(path, task.labels, id_column):
        logits.append(to_logits(part, policy, str(path)))
        features.append(part.features)
        ids.append(hash_ids(part.example_id))
        texts.append(hash_ids(part.content_hash or [""] * len(part.example_id)))
        labels.append(part.label)
        kind, hashed = part.kind, part.content_hash is not None
    keys = Keys(ids.whole(), texts.whole(), labels.whole())
    if suspects := more_than_once(keys.ids.copy()):
        parts = stream_outputs(path, task.labels, id_column)
        if twice := repeated(i for part in parts for i in part.example_id if hash(i) in suspects):
            raise DataError(f"{path}: ids must be unique, got twice {name_some(twice)}.")
    return OutsideTeacher(path, weight, kind, keys, hashed, logits, features)
