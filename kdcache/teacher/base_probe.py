"""The linear probe of a teacher's base model: where its head starts, and what the teacher has to beat.

Fine-tuning from a random head distorts what the model knows before the head makes sense. So the head starts
as the linear probe of the frozen model: linear probing, then fine-tuning (LP-FT, Kumar et al., 2022).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from kdcache.data.metrics import compute_metrics
from kdcache.data.splits import TEST, metric_columns, sequences
from kdcache.data.task import Task
from kdcache.encoder.batching import Encoded, encode
from kdcache.encoder.forward import extract
from kdcache.encoder.linear_probe import LinearProbe, fit_probe, one_hot
from kdcache.encoder.parts import Classifier, last_linear

SCORE_BATCH_SIZE = 64


@dataclass(frozen=True)
class TokenisedSplit:
    """A prepared split as a teacher reads it.

    Args:
        task: the task.
        table: its rows.
        encoded: the same, tokenised.
    """

    task: Task
    table: pa.Table
    encoded: Encoded

    @classmethod
    def of(cls, task: Task, table: pa.Table, tokenizer: Any, max_length: int) -> "TokenisedSplit":
        """Tokenise a table."""
        encoded = encode(tokenizer, *sequences(table, task), max_length, task.truncate, task.num_choices)
        return cls(task, table, encoded)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 of shape (rows,); −1 for rows without a label."""
        return self.table["label"].to_numpy()

    def metrics(self, logits: np.ndarray, names: Sequence[str] | None = None) -> dict[str, float]:
        """Score logits of all rows by some metrics, the task's and accuracy if left out."""
        columns = metric_columns(self.table, self.task)
        names = names or list(dict.fromkeys([*self.task.metrics, "accuracy"]))
        return compute_metrics(names, self.labels, logits, columns)

    def score(self, logits: np.ndarray) -> float:
        """The first metric."""
        first = self.task.metrics[0]
        return self.metrics(logits, [first])[first]

    def take(self, rows: Sequence[int]) -> "TokenisedSplit":
        """Return some of the rows, in the given order."""
        return TokenisedSplit(self.task, self.table.take(rows), self.encoded.take(rows))

    def features(self, model: Classifier, device: torch.device) -> torch.Tensor:
        """Compute what the last Linear of a model reads, of shape (rows, choices, dim)."""
        features = extract(model, self.encoded, self.task.num_outputs, SCORE_BATCH_SIZE, device)[1]
        return torch.from_numpy(features).to(device).unflatten(1, (self.task.num_choices, -1))


def start_from_probe(
    model: Classifier, train: TokenisedSplit, tune: TokenisedSplit | None, device: torch.device, seed: int
) -> LinearProbe:
    """Fit a probe of a frozen model and put it into the model's last Linear.

    Args:
        model: pretrained.
        train: the model's own training rows; all are labelled.
        tune: rows on which the probe's C is chosen; without labels there, by cross-validation on ``train``.
        device: where to compute.
        seed: of the folds.
    """
    task = train.task
    features = train.features(model, device)
    targets = one_hot(torch.tensor(train.labels), task.num_labels).to(device)
    if tune is None or not (tune.labels >= 0).any():
        probe = fit_probe(features, targets, seed=seed)
    else:
        probe = fit_probe(features, targets, tune.features(model, device), tune.score)
    probe.copy_to(last_linear(model, task.num_outputs))
    return probe


def score_probe(
    probe: LinearProbe, model: Classifier, splits: Mapping[str, TokenisedSplit], device: torch.device
) -> dict[str, Any]:
    """Score a probe: its C under ``strength``, and split → metrics for splits that have labels, but test."""
    scores: dict[str, Any] = {"strength": probe.strength}
    for name, split in splits.items():
        if name != TEST and (split.labels >= 0).any():
            logits = probe.logits(split.features(model, device))
            scores[name] = split.metrics(logits.cpu().numpy())
    return scores
