"""Students served from their folders: one, or those of many tasks over one backbone."""

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
from kdcache.serve.requests import (
    BATCH_SIZE,
    LoadedStudent,
    Prediction,
    Request,
    Second,
    compute_logits,
    predict,
)
from kdcache.students.export import find_backbone, load_folder, read_about
from kdcache.students.methods import METHODS
from kdcache.students.prompted import Backbone


def load_student(folder: Path | str, device: torch.device | str = "cpu") -> LoadedStudent:
    """Load a student of any method, references included, to label text with.

    Args:
        folder: of a student; its backbone is found from the current folder, the project's root.
        device: where to compute.

    Raises:
        ModelError: no student there, or its backbone is missing.
    """
    base = find_backbone(Path(folder), read_about(Path(folder)))
    with _quiet():
        student, about = load_folder(Path(folder))
        student.backbone.to(torch.device(device))
        return LoadedStudent(student.to(device).eval(), about, load_tokenizer(base))


class StudentPool:
    """Students of many tasks over one frozen backbone, served in mixed batches.

    A student answers to its folder as given, and to its task's name if it is the only one of
    its task. Rows whose prompts enter the backbone at the same place share forward passes,
    those of heads without prompts with any; over a backbone that counts padding as distance
    (DeBERTa, ModernBERT), only rows with prompts of one length do.

    Args:
        folders: of students over the same backbone.
        device: where to compute.

    Raises:
        ModelError: no student in a folder, two backbones, or a student with weights of its own
            (methods ``lora`` and ``full``).
    """

    def __init__(self, folders: Iterable[Path | str], device: torch.device | str = "cpu") -> None:
        paths = list(dict.fromkeys(Path(folder) for folder in folders))
        first = _check_same_backbone(paths)
        with _quiet():
            backbone = Backbone.load(first).to(torch.device(device))
            tokenizer = load_tokenizer(first)
            self.students = {
                path.as_posix(): LoadedStudent(*load_folder(path, backbone), tokenizer) for path in paths
            }
        self._of_task: dict[str, list[str]] = {}
        for name, student in self.students.items():
            self._of_task.setdefault(student.task.name, []).append(name)

    def predict(
        self, rows: Sequence[tuple[str, str, Second]], batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        """Label rows of many tasks.

        Args:
            rows: (task or student's folder, text, second sequence or choices or None).
            batch_size: sequences per forward pass.

        Returns:
            One per row, in order.

        Raises:
            DataError: a row names no student, or is not as its task wants it.
        """
        return predict(self._requests(rows), batch_size)

    def logits(
        self, rows: Sequence[tuple[str, str, Second]], batch_size: int = BATCH_SIZE
    ) -> list[np.ndarray]:
        """The same rows' logits, each of shape (num_labels,) of its task.

        Raises:
            DataError: as ``predict``.
        """
        return compute_logits(self._requests(rows), batch_size)

    def find(self, name: Any, where: str) -> LoadedStudent:
        """The student that answers to a name.

        Args:
            name: a task, or a student's folder as given.
            where: who asks, for messages.

        Raises:
            DataError: none does, or several do.
        """
        if name in self.students:
            return self.students[name]
        some = self._of_task.get(name, ())
        if len(some) == 1:
            return self.students[some[0]]
        if some:
            raise DataError(
                f"{where}: the task must have one student, got {name} with {', '.join(some)}. "
                "Name one of these instead."
            )
        known = [*self._of_task, *self.students]
        raise DataError(
            f"{where}: the task or student must be one of the pool's, got {shorten(name)}. "
            f"{nearest(str(name), known)}"
        )

    def _requests(self, rows: Sequence[tuple[str, str, Second]]) -> list["Request"]:
        places = [f"row {number}" for number in range(1, len(rows) + 1)]
        return [
            self.find(name, where).request(text, second, where)
            for where, (name, text, second) in zip(places, rows, strict=True)
        ]


def _check_same_backbone(folders: Sequence[Path]) -> Path:
    """Return the backbone of all; read from their folders before any weights are."""
    if not folders:
        raise ModelError("StudentPool: it must hold at least one student, got none. Name their folders.")
    bases: dict[Path, Path] = {}  # → a student over it
    for folder in folders:
        about = read_about(folder)
        if METHODS[about.method].own_weights:
            raise ModelError(
                f"{folder}: a pool's students must have a prompt or a head alone, got one of method "
                f"{about.method} with weights of its own. Serve it by kdcache.load_student."
            )
        bases.setdefault(find_backbone(folder, about), folder)
    if len(bases) > 1:
        got = " and ".join(f"{base} ({folder})" for base, folder in list(bases.items())[:2])
        raise ModelError(
            f"StudentPool: the students must share one backbone, got {got}. Make a pool for each."
        )
    return next(iter(bases))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Loading reports each head as newly initialised, before its weights are put in."""
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
