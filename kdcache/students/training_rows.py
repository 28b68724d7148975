"""The rows that a student trains on and is scored on: prepared data and cache, joined by id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.join import batches_of
from kdcache.cache.manifest import Manifest, check_identity, read_identity_of, read_manifest
from kdcache.cache.reader import load_cache
from kdcache.cache.schema import ROW_GROUP_ROWS
from kdcache.cache.teacher_pooling import check_teacher_pooling
from kdcache.data.metrics import compute_metrics
from kdcache.data.splits import (
    TEST,
    digest_of,
    existing_splits,
    metric_columns,
    open_split,
    split_schema,
)
from kdcache.data.task import Task
from kdcache.encoder.batching import Encoded, concatenate
from kdcache.encoder.encode_file import encode_file
from kdcache.encoder.load import load_tokenizer
from kdcache.encoder.plans import in_parts, in_row_order
from kdcache.errors import CacheCorrupt, CacheMissing, ParamsError
from kdcache.losses.objective import Targets
from kdcache.on_disk import join_arrays, pieces, put_table
from kdcache.project import Project
from kdcache.store.location import Location
from kdcache.students.arms import ArmSpec
from kdcache.students.frozen_inputs import FrozenInputs
from kdcache.students.prompted_backbone import Backbone

READ_IN_PARTS = ("text", "text_pair", "choices", "content_hash")


@dataclass(frozen=True)
class StudentRows:
    """Rows as a student reads them, and what it is taught about each, in one order.

    Args:
        task: whose rows they are.
        split: of the task.
        table: the prepared rows without their texts: ids, labels, groups.
        cached: all targets that the cache holds of them, see ``CachedSplit.targets``.
        encoded: the tokenised sequences.
        inputs: what the frozen backbone makes of these rows, or of more rows after them.
        labels: int64 of shape (rows,), −1 = unlabelled.
        teacher_logits: of shape (rows, num_labels).
        teacher_features: of shape (rows, dim_t), as they are stored: float16.

    Tensors are on the backbone's device, so that a training step only gathers rows.
    """

    task: Task
    split: str
    table: pa.Table
    cached: CacheRows
    encoded: Encoded
    inputs: FrozenInputs
    labels: torch.Tensor
    teacher_logits: torch.Tensor
    teacher_features: torch.Tensor

    @classmethod
    def build(
        cls, task: Task, split: str, table: pa.Table, cached: CacheRows, encoded: Encoded, backbone: Backbone
    ) -> "StudentRows":
        """Put rows and targets of the same order onto the backbone's device."""
        labels = join_arrays([np.array(chunk) for chunk in table["label"].chunks], encoded.folder)
        tensors = (
            torch.from_numpy(labels),
            torch.from_numpy(cached.logits),
            torch.from_numpy(cached.features),
        )
        inputs = FrozenInputs(backbone, encoded)
        on_device = (tensor.to(backbone.device) for tensor in tensors)
        return cls(task, split, table, cached, encoded, inputs, *on_device)

    def __len__(self) -> int:
        return len(self.labels)

    def targets(self, rows: torch.Tensor) -> Targets:
        """Return what some of the rows are taught; their indices are on the device."""
        kinds = self.labels, self.teacher_logits, self.teacher_features
        labels, logits, features = (torch.cat([kind[some] for some in pieces(rows)]) for kind in kinds)
        return Targets(rows, labels, logits, features.float())

    def taught_by(self, targets: str, seed: int) -> "StudentRows":
        """Return the same rows with the teacher's logits that an arm's ``targets`` name.

        Args:
            targets: of an arm. Shuffled targets are for training only, see ``shuffled_within_class``.
            seed: of the student, which ``member`` gives the ensemble's member of that number.

        Raises:
            CacheMissing: the cache does not hold these logits.
        """
        if targets not in ("all_rows", "member"):
            return self
        taught = self.cached.all_rows_teacher() if targets == "all_rows" else self.cached.member(seed)
        return replace(self, teacher_logits=torch.from_numpy(taught.logits).to(self.labels.device))

    def read_by(self, backbone: Backbone) -> "StudentRows":
        """Return the same rows, as a backbone over the same encoder reads them."""
        return replace(self, inputs=self.inputs.read_by(backbone))

    def shuffled_within_class(self, seed: int) -> "StudentRows":
        """Return the control: each row gets the teacher's values of another row of its label.

        The only row of a label keeps its own.
        """
        order = np.arange(len(self))
        rng = np.random.default_rng(seed)
        labels = self.labels.cpu().numpy()
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            order[members] = np.roll(members, 1)  # no row keeps its own

        def moved(values: torch.Tensor) -> torch.Tensor:
            plan = in_parts(len(self))
            return in_row_order((values[order[part]] for part in plan), plan, self.encoded.folder)

        logits, features = moved(self.teacher_logits), moved(self.teacher_features)
        return replace(self, teacher_logits=logits, teacher_features=features)

    def take(self, indices: np.ndarray) -> "StudentRows":
        """Return some of the rows, in the given order."""
        return StudentRows.build(
            self.task, self.split, self.table.take(pa.array(indices)), self.cached.take(indices),
            self.encoded.take(indices), self.inputs.backbone,
        )  # fmt: skip

    def first(self, count: int) -> "StudentRows":
        """Return the first rows, which share the inputs and the memory of all."""
        if count == len(self):
            return self
        return replace(
            self, table=self.table.slice(0, count), cached=self.cached.between(0, count),
            encoded=self.encoded.first(count), labels=self.labels[:count],
            teacher_logits=self.teacher_logits[:count], teacher_features=self.teacher_features[:count],
        )  # fmt: skip

    def score(self, logits: np.ndarray) -> dict[str, float]:
        """Score a student's logits.

        Args:
            logits: of shape (rows, num_labels).

        Returns:
            The task's metrics, ``rows``, and ``agreement``: the share of rows where the student
            has the argmax of what taught it.
        """
        columns = metric_columns(self.table, self.task)
        labels, taught = self.labels.cpu().numpy(), self.teacher_logits.cpu().numpy()
        agreement = float(np.mean(logits.argmax(1) == taught.argmax(1)))
        scores = compute_metrics(self.task.metrics_of(self.split), labels, logits, columns)
        return scores | {"agreement": agreement}


def join_rows(parts: Sequence[StudentRows]) -> StudentRows:
    """Put the rows of several splits one after another."""
    first = parts[0]
    if len(parts) == 1:
        return first
    table = pa.concat_tables([part.table for part in parts])
    cached = CacheRows.joined([part.cached for part in parts], first.encoded.folder)
    encoded = concatenate([part.encoded for part in parts])
    return StudentRows.build(first.task, first.split, table, cached, encoded, first.inputs.backbone)


def load_rows(
    project: Project,
    task: Task,
    backbone: Backbone,
    max_length: int,
    expect: Mapping[str, Any],
    unlabelled: bool = True,
) -> tuple[dict[str, StudentRows], Manifest]:
    """Read all splits but test; refuse a cache of other data or another teacher; join by id.

    On a CPU, what takes much memory goes to files in the project's scratch folder, see ``on_disk``.

    Args:
        project: where data, cache, teacher and backbone lie.
        task: which one.
        backbone: which the students share.
        max_length: of the student's inputs, in tokens.
        expect: fields that the teacher's identity must have.
        unlabelled: whether to read the split of that name.

    Returns:
        split → rows, and the cache's manifest.

    Raises:
        DataError, CacheError, ParamsError, ModelError: see ``read_split``, ``load_cache``,
            ``check_identity``, ``check_teacher_pooling``.
    """
    data = Path(project.paths.data) / task.name
    left_out = {TEST} if unlabelled else {TEST, "unlabelled"}
    there = [split for split in existing_splits(data, task) if split not in left_out]
    files = {split: open_split(data, split, task) for split in there}
    location = Location.parse(project.paths.cache, task.name)
    manifest = read_manifest(location)
    if lost := [split for split in files if split not in manifest.data]:
        without = "Add: --set distill.unlabelled=false, or make" if lost == ["unlabelled"] else "Make"
        raise CacheMissing(
            f"{location}: the cache must hold the splits {', '.join(files)}, got none of the rows of "
            f"{' and '.join(lost)}. {without} the cache of all rows. {manifest.rebuild}"
        )
    cached = {split: load_cache(location, split) for split in files}
    teacher = read_identity_of(Path(project.paths.teacher) / task.name)
    keys = {split: batches_of(file) for split, file in files.items()}
    digests = {split: digest_of(batches()) for split, batches in keys.items()}
    check_identity(manifest, task.name, task.labels, digests, teacher, expect)
    check_teacher_pooling(project, task.name, manifest.identity)
    for scores in (manifest.metrics, manifest.all_rows_teacher):  # students are compared with them
        if lost := [name for name in task.metrics if name not in scores.get("validation", {})]:
            raise CacheCorrupt(
                f"{location}: the manifest must hold the teacher's {', '.join(lost)} on validation, got "
                f"none. {manifest.rebuild}"
            )
    tokenizer = load_tokenizer(Path(project.paths.backbone))
    splits, scratch = {}, Path(project.paths.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    folder = scratch if backbone.device.type == "cpu" else None  # on a GPU all rows lie on it
    held = pa.schema([field for field in split_schema(task) if field.name not in READ_IN_PARTS])
    for split, file in files.items():
        encoded = encode_file(tokenizer, file, task, max_length, folder)
        table = put_table(file.iter_batches(ROW_GROUP_ROWS, columns=held.names), held, folder)
        taught = cached[split].targets(keys[split], folder)
        splits[split] = StudentRows.build(task, split, table, taught, encoded, backbone)
    return splits, manifest


def check_targets(spec: ArmSpec, seeds: Sequence[int], cached: CacheRows) -> None:
    """Refuse targets that the cache does not hold.

    Args:
        spec: the arm.
        seeds: of its students.
        cached: the training rows.

    Raises:
        ParamsError, CacheMissing: there are no such targets.
    """
    where = f"distill.arms.{spec.name}"
    if "feature" in spec.terms and not cached.features.shape[1]:
        raise ParamsError(
            f"{where}.feature: the cache must hold features, got logits only. "
            "Remove the term, or choose other arms with --arm."
        )
    if spec.targets == "all_rows":
        cached.all_rows_teacher()  # refuses where there are none
    if spec.targets != "member":
        return
    if "feature" in spec.terms:
        raise ParamsError(
            f"{where}.targets: it must not be member with a loss on features, of which the cache "
            "keeps only the ensemble's mean, got member. Remove one of the two."
        )
    if max(seeds) >= len(cached.members):
        raise ParamsError(
            f"{where}.targets: with member, seeds must be below the ensemble's {len(cached.members)} "
            f"members, a teacher for each, got {max(seeds)}. Raise train_teacher.ensemble, or take "
            "fewer seeds."
        )
