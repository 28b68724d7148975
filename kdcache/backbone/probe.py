"""Linear probes of an encoder: whether its [CLS] states vary, and what a task's head can read from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdcache.data.splits import existing_splits, read_split, sequences
from kdcache.data.task import TASK, read_task
from kdcache.encoder.batching import Encoded, encode
from kdcache.encoder.forward import pooled_states
from kdcache.encoder.last_layer import finish_only_cls
from kdcache.errors import ModelError
from kdcache.project import Project

BLIND_BELOW = 0.01
REGULARISATION = 0.1  # C of the probe, the same for all models: a middle for tasks of 2 to 77 classes
MAX_ROWS = 1000  # per split: probing must not cost more than healing
PROBE_BATCH_SIZE = 64


@dataclass(frozen=True)
class Probe:
    """A task's labelled rows: fitted on train, scored on tune, never on validation."""

    train: Encoded
    labels: np.ndarray
    tune: Encoded
    tune_labels: np.ndarray

    def accuracy(self, model: PreTrainedModel, device: torch.device) -> float:
        """Fit and score a probe of an encoder; 0 … 1, four digits."""
        train, tune = (
            encoder_states(model, rows, PROBE_BATCH_SIZE, device) for rows in (self.train, self.tune)
        )
        return round(probe_accuracy(train, self.labels, tune, self.tune_labels), 4)

    def majority(self) -> float:
        """Return the accuracy of always answering the most frequent class of train."""
        return round(float(np.mean(self.tune_labels == np.bincount(self.labels).argmax())), 4)


def encoder_states(
    model: PreTrainedModel, encoded: Encoded, batch_size: int, device: torch.device
) -> np.ndarray:
    """Run rows through an encoder and keep the state of each sequence's first token.

    Args:
        model: an encoder without a head, in eval mode.
        encoded: the rows.
        batch_size: rows per forward pass.
        device: where to compute.

    Returns:
        float64 array of shape (rows, choices · dim), in the order of the rows.
    """
    model.to(device)  # type: ignore[arg-type]

    def read(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).last_hidden_state[:, 0].double().cpu()

    with finish_only_cls(model):
        return pooled_states(read, encoded, batch_size, device).flatten(1).numpy()


def variation(states: np.ndarray) -> float:
    """Measure how much [CLS] states depend on the input: standard deviation over inputs ÷ size.

    Args:
        states: shape (rows, dim).

    Returns:
        Root mean square over dims of the standard deviation over rows, divided by the root mean
        square of the states: 0 for a blind encoder, at most 1.

    >>> variation(np.array([[1.0, 1.0], [1.0, -1.0]]))
    0.7071067811865476
    """
    return float(np.sqrt(states.var(axis=0).mean() / np.square(states).mean()))


def refuse_blind(variation: float, what: str) -> None:
    """Raise ModelError if a [CLS] state varies by less than ``BLIND_BELOW`` of its size."""
    if variation < BLIND_BELOW:
        raise ModelError(
            f"student_backbone: the [CLS] state of {what} must vary over inputs by at least "
            f"{BLIND_BELOW:.1%} of its size, got {variation:.2%}, which no prompt can cure. "
            "Raise student_backbone.epochs or num_layers, or give it more text."
        )


def probe_accuracy(
    states: np.ndarray, labels: np.ndarray, held_out_states: np.ndarray, held_out_labels: np.ndarray
) -> float:
    """Fit a logistic regression on states and score it on other rows.

    States are centred and divided by one number, the root mean square of all of them. They are not
    standardised dim by dim: that would magnify the last traces in a blind encoder's states beyond
    what a head trained by gradient descent can use (docs/reference/shrink.md).

    Args:
        states: shape (rows, dim), of a task's training rows.
        labels: shape (rows,), at least two classes.
        held_out_states: shape (held-out rows, dim).
        held_out_labels: shape (held-out rows,).

    Returns:
        Accuracy on the held-out rows, 0 … 1.
    """
    from sklearn.linear_model import LogisticRegression  # slow import

    centre, size = states.mean(axis=0), np.sqrt(np.square(states).mean())
    regression = LogisticRegression(C=REGULARISATION, max_iter=2000).fit((states - centre) / size, labels)
    return float(regression.score((held_out_states - centre) / size, held_out_labels))


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
        Task → probe. Tasks that cannot have one are left out, and it prints why.

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


def tabulate(probes: dict[str, Probe], scores: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
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
    rows = {}
    for name, probe in probes.items():
        row: dict[str, Any] = {"majority": probe.majority()}
        row |= {which: accuracies[name] for which, accuracies in scores.items()}
        row["kept"] = round(scores[list(scores)[-1]][name] / row["full"], 4)
        print(f"{name:24}" + "".join(f"{value:10.1%}" for value in row.values()), flush=True)
        rows[name] = row | {"train_rows": len(probe.labels), "tune_rows": len(probe.tune_labels)}
    return rows
