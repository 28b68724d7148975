"""Prepared tasks → probes of [CLS] states: fitted on train, scored on tune, never on validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdcache.backbone.probe import cls_states, probe_accuracy
from kdcache.data.splits import existing_splits, read_split, sequences
from kdcache.data.task import TASK, read_task
from kdcache.encoder.batching import Encoded, encode
from kdcache.project import Project

MAX_ROWS = 1000  # of a split at most: probing must not cost more than healing
BATCH_SIZE = 64


@dataclass(frozen=True)
class Probe:
    """A task's labelled rows: what a probe is fitted on, and what it is scored on."""

    train: Encoded
    labels: np.ndarray
    tune: Encoded
    tune_labels: np.ndarray

    def accuracy(self, model: PreTrainedModel, device: torch.device) -> float:
        """Fit and score a probe of an encoder; 0 … 1, four digits."""
        train, tune = (cls_states(model, rows, BATCH_SIZE, device) for rows in (self.train, self.tune))
        return round(probe_accuracy(train, self.labels, tune, self.tune_labels), 4)

    def majority(self) -> float:
        """Return the accuracy of always saying what is most frequent in train."""
        return round(float(np.mean(self.tune_labels == np.bincount(self.labels).argmax())), 4)


def read_probes(
    project: Project, names: Sequence[str] | None, tokenizer: Any, max_length: int
) -> dict[str, Probe]:
    """Read the rows of each task's probe.

    Args:
        project: the project.
        names: tasks; None takes those of the project that are prepared.
        tokenizer: of the encoder.
        max_length: in tokens.

    Returns:
        Task → probe, without tasks that cannot have one; of each such task it prints why.

    Raises:
        DataError: a named task is not prepared.
    """
    data = Path(project.paths.data)
    if names is None:
        names = [name for name in project.tasks if (data / name / TASK).is_file()]
    probes = {}
    for name in names:
        task = read_task(data / name, name)
        if "tune" not in existing_splits(data / name, task):
            print(f"{name}: no probe, since there is no split tune", flush=True)
            continue
        parts: list[Any] = []
        for split in ("train", "tune"):
            table = read_split(data / name, split, task)
            labelled = np.flatnonzero(table["label"].to_numpy() >= 0)
            table = table.take(np.random.default_rng(0).permutation(labelled)[:MAX_ROWS])
            texts = sequences(table, task)
            parts += [encode(tokenizer, *texts, max_length, task.truncate, task.num_choices)]
            parts += [table["label"].to_numpy()]
        probe = Probe(*parts)
        if len(set(probe.labels)) < 2:
            print(f"{name}: no probe, since train holds rows of one class only", flush=True)
            continue
        probes[name] = probe
    return probes


def compare(probes: dict[str, Probe], scores: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Print and return what each model's probes score.

    Args:
        probes: by task.
        scores: ``full``, ``raw`` and, where there was healing, ``healed`` → task → accuracy.

    Returns:
        Task → those accuracies, ``majority``, ``kept`` (the last ÷ full) and the numbers of rows.
    """
    if probes:
        columns = ("majority", *scores, "kept")
        print(f"{'probe of [CLS], tune':24}" + "".join(f"{column:>10}" for column in columns))
    compared = {}
    for name, probe in probes.items():
        row: dict[str, Any] = {"majority": probe.majority()} | {
            which: scores[which][name] for which in scores
        }
        row["kept"] = round(scores[list(scores)[-1]][name] / row["full"], 4)
        print(f"{name:24}" + "".join(f"{value:10.1%}" for value in row.values()), flush=True)
        compared[name] = row | {"train_rows": len(probe.labels), "tune_rows": len(probe.tune_labels)}
    return compared
