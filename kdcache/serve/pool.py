"""Students loaded from their folders: one, or a pool of many tasks over one backbone."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from kdcache.encoder.load import load_tokenizer
from kdcache.errors import DataError, ModelError, nearest, shorten
from kdcache.serve.mixed_batches import (
    BATCH_SIZE,
    LoadedStudent,
    Prediction,
    Request,
    Second,
    compute_logits,
    predict_requests,
)
from kdcache.students.about import find_backbone, read_about
from kdcache.students.folder import load_folder
from kdcache.students.methods import METHODS
from kdcache.students.prompted_backbone import Backbone


def load_student(
    folder: Path | str, device: torch.device | str = "cpu", backbone: Path | str | None = None
) -> LoadedStudent:
    """Load a student of any method to label text with.

    Args:
        folder: the student's folder.
        device: where to compute.
        backbone: the folder of its backbone. None finds it by its digest, see ``find_backbone``.

    Raises:
        ModelError: the folder holds no student, or its backbone is missing.
    """
    base = find_backbone(Path(folder), read_about(Path(folder)), backbone)
    with _quiet():
        student, about = load_folder(Path(folder), base=base)
        student.backbone.to(torch.device(device))
        return LoadedStudent(student.to(device).eval(), about, load_tokenizer(base))


class StudentPool:
    """Students of many tasks over one frozen backbone, which label mixed batches.

    A row names its student by folder, or by task if the pool has one student of that task.
    Rows whose students read the backbone in the same way, by [CLS] or by the mean, and whose prompts
    enter it at the same place share forward passes; heads without prompts share with any.

    Args:
        folders: the students' folders.
        device: where to compute.
        backbone: the folder of the backbone that they share. None finds it by its digest.

    Raises:
        ModelError: a folder holds no student, the students have two backbones, or one of several
            has weights of its own (methods ``lora`` and ``full``).
    """

    def __init__(
        self,
        folders: Iterable[Path | str],
        device: torch.device | str = "cpu",
        backbone: Path | str | None = None,
    ) -> None:
        paths = list(dict.fromkeys(Path(folder) for folder in folders))
        if len(paths) == 1:
            self.students = {paths[0].as_posix(): load_student(paths[0], device, backbone)}
        else:
            base = _check_same_backbone(paths, backbone)
            with _quiet():
                shared = Backbone.load(base).to(torch.device(device))
                tokenizer = load_tokenizer(base)
                self.students = {
                    path.as_posix(): LoadedStudent(*load_folder(path, shared, base), tokenizer)
                    for path in paths
                }
        self._of_task: dict[str, list[str]] = {}
        for name, student in self.students.items():
            self._of_task.setdefault(student.task.name, []).append(name)

    def __repr__(self) -> str:
        return f"<{len(self.students)} students of {', '.join(self._of_task)}>"

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of all tasks, without repeats."""
        return tuple(dict.fromkeys(label for student in self.students.values() for label in student.labels))

    def predict(
        self, rows: Sequence[tuple[str, str, Second]], batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        """Label rows of many tasks.

        Args:
            rows: (task or student's folder, text, second sequence or choices or None).
            batch_size: sequences per forward pass.

        Returns:
            One prediction per row, in order.

        Raises:
            DataError: a row names no student of the pool, or does not fit its task.
        """
        return predict_requests(self._requests(rows), batch_size)

    def logits(
        self, rows: Sequence[tuple[str, str, Second]], batch_size: int = BATCH_SIZE
    ) -> list[np.ndarray]:
        """Compute the same rows' logits: one array per row, of shape (num_labels,) of its task.

        Raises:
            DataError: as ``predict``.
        """
        return compute_logits(self._requests(rows), batch_size)

    def find(self, name: Any, where: str) -> LoadedStudent:
        """Return the student of a name.

        Args:
            name: a task, or a student's folder as given.
            where: the row's place, for messages.

        Raises:
            DataError: the name fits no student, or several.
        """
        if isinstance(name, str) and name in self.students:
            return self.students[name]
        some = self._of_task.get(name, ()) if isinstance(name, str) else ()
        if len(some) == 1:
            return self.students[some[0]]
        if some:
            raise DataError(
                f"{where}: The pool has several students of {name}. Name one of them: {', '.join(some)}."
            )
        known = [*self._of_task, *self.students]
        raise DataError(f"{where}: Unknown task or student {shorten(name)}. {nearest(str(name), known)}")

    def _requests(self, rows: Sequence[tuple[str, str, Second]]) -> list[Request]:
        places = [f"row {number}" for number in range(1, len(rows) + 1)]
        return [
            self.find(name, where).request(text, second, where)
            for where, (name, text, second) in zip(places, rows, strict=True)
        ]


def _check_same_backbone(folders: Sequence[Path], named: Path | str | None) -> Path:
    """Return the folder of the backbone that all students share, before any weights are read."""
    if not folders:
        raise ModelError("A pool needs at least one student. Name their folders.")
    bases: dict[str, tuple[Path, Path]] = {}  # digest → the backbone's folder, a student over it
    for folder in folders:
        about = read_about(folder)
        if METHODS[about.method].own_weights:
            raise ModelError(
                f"{folder}: A student of method {about.method} has weights of its own and cannot share a "
                "pool with others. Load it with kdcache.load_student."
            )
        if about.backbone_sha256 not in bases:
            bases[about.backbone_sha256] = find_backbone(folder, about, named), folder
    if len(bases) > 1:
        got = " and ".join(f"{base} ({folder})" for base, folder in list(bases.values())[:2])
        raise ModelError(f"The students of a pool must share one backbone, got {got}. Make a pool for each.")
    return next(iter(bases.values()))[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what loading says of weights that are replaced a moment later."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of prefixes with modules to save
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
