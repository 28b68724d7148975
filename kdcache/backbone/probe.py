"""Linear probes of an encoder: whether its pooled states vary, and what a task's head can read from them."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdcache.data.splits import existing_splits, read_split, sequences, table_digest
from kdcache.data.task import TASK, read_task
from kdcache.encoder.batching import Encoded, encode
from kdcache.encoder.forward import pooled_states
from kdcache.encoder.last_layer import finish_only_cls
from kdcache.encoder.linear_probe import fit_probe, one_hot
from kdcache.encoder.pooling import Pooling, pool
from kdcache.errors import ModelError
from kdcache.project import Project

BLIND_BELOW = 0.01
MAX_ROWS = 5000  # per split: probing must not cost more than training
PROBE_BATCH_SIZE = 64


@dataclass(frozen=True)
class Probe:
    """A task's labelled rows: fitted on train, scored on tune, never on validation.

    ``data`` has the digests of these splits, as the manifest of a cache has them.
    """

    train: Encoded
    labels: np.ndarray
    tune: Encoded
    tune_labels: np.ndarray
    classes: int
    data: dict[str, str]

    def accuracy(self, model: PreTrainedModel, pooling: Pooling, device: torch.device) -> float:
        """Fit and score a probe of an encoder; 0 … 1, four digits."""
        train, tune = (encoder_states(model, rows, device, pooling) for rows in (self.train, self.tune))
        return round(probe_accuracy(train, self.labels, tune, self.tune_labels, self.classes), 4)

    def majority(self) -> float:
        """Return the accuracy of always answering the most frequent class of train."""
        return round(float(np.mean(self.tune_labels == np.bincount(self.labels).argmax())), 4)


def encoder_states(
    model: PreTrainedModel, encoded: Encoded, device: torch.device, pooling: Pooling
) -> torch.Tensor:
    """Run rows through an encoder and pool the states of each sequence.

    Args:
        model: an encoder without a head, in eval mode.
        encoded: the rows.
        device: where to compute.
        pooling: of the states. For the mean, segment ids are not read (see ``mean_pooled``).

    Returns:
        float32 tensor of shape (rows, choices, dim), in the order of the rows, on the device.
    """
    model.to(device)  # type: ignore[arg-type]

    def read(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if pooling == "mean":
            batch.pop("token_type_ids", None)
        return pool(model(**batch).last_hidden_state, batch["attention_mask"], pooling)

    with finish_only_cls(model) if pooling == "cls" else nullcontext():
        return pooled_states(read, encoded, PROBE_BATCH_SIZE, device)


def variation(states: torch.Tensor) -> float:
    """Measure how much pooled states depend on the input: standard deviation over inputs ÷ size.

    Args:
        states: of shape (rows, …).

    Returns:
        Root mean square over dims of the standard deviation over rows, divided by the root mean
        square of the states: 0 for a blind encoder, at most 1.

    >>> round(variation(torch.tensor([[1.0, 1.0], [1.0, -1.0]])), 4)
    0.7071
    """
    states = states.double()
    return float((states.var(0, correction=0).mean() / states.square().mean()).sqrt())


def refuse_blind(variation: float, what: str, remedy: str) -> None:
    """Raise ModelError if a pooled state varies by less than ``BLIND_BELOW`` of its size.

    Args:
        variation: of the state, as a share of its size.
        what: the model.
        remedy: what to do, for the message.
    """
    if variation < BLIND_BELOW:
        raise ModelError(
            f"{what}: the state that heads read must vary over inputs by at least {BLIND_BELOW:.1%} of its "
            f"size, got {variation:.2%}, which no prompt can cure. {remedy}"
        )


def probe_accuracy(
    states: torch.Tensor,
    labels: np.ndarray,
    held_out: torch.Tensor,
    held_out_labels: np.ndarray,
    classes: int,
) -> float:
    """Fit a linear probe on pooled states and score it on other rows.

    Its C is chosen by 5-fold cross-validation on the rows that it is fitted on (see ``linear_probe``).

    Args:
        states: of shape (rows, choices, dim), of a task's training rows.
        labels: of shape (rows,).
        held_out: states of other rows.
        held_out_labels: theirs.
        classes: of the task.

    Returns:
        Accuracy on the held-out rows, 0 … 1.
    """
    probe = fit_probe(states, one_hot(torch.tensor(labels), classes).to(states.device))
    return float(np.mean(probe.logits(held_out).argmax(1).cpu().numpy() == held_out_labels))


def prepared_tasks(project: Project) -> list[str]:
    """Tasks of the project that are prepared."""
    return [name for name in project.tasks if (Path(project.paths.data) / name / TASK).is_file()]


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
    probes = {}
    for name in prepared_tasks(project) if names is None else names:
        task = read_task(data / name, name)
        if "tune" not in existing_splits(data / name, task):
            print(f"{name}: no probe, since there is no split tune", flush=True)
            continue
        parts: list[Any] = []
        digests = {}
        for split in ("train", "tune"):
            table = read_split(data / name, split, task)
            digests[split] = table_digest(table)
            labelled = np.flatnonzero(table["label"].to_numpy() >= 0)
            table = table.take(np.random.default_rng(0).permutation(labelled)[:MAX_ROWS])
            texts = sequences(table, task)
            parts += [encode(tokenizer, *texts, max_length, task.truncate, task.num_choices)]
            parts += [table["label"].to_numpy()]
        probe = Probe(*parts, task.num_labels, digests)  # type: ignore[call-arg]  # mypy takes the list for any length
        if len(set(probe.labels)) < 2:
            print(f"{name}: no probe, since train holds rows of one class only", flush=True)
            continue
        probes[name] = probe
    return probes


def tabulate(probes: dict[str, Probe], scores: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Print and return what each model's probes score.

    Args:
        probes: by task.
        scores: ``full``, and ``cut`` where layers were cut → task → accuracy.

    Returns:
        Task → those accuracies, ``majority``, ``kept`` (the last ÷ full), the numbers of rows and the
        digests of the data.
    """
    if probes:
        columns = ("majority", *scores, "kept")
        print(f"{'linear probe, tune':24}" + "".join(f"{column:>10}" for column in columns))
    rows = {}
    for name, probe in probes.items():
        row: dict[str, Any] = {"majority": probe.majority()}
        row |= {which: accuracies[name] for which, accuracies in scores.items()}
        row["kept"] = round(scores[list(scores)[-1]][name] / row["full"], 4) if row["full"] else 1.0
        print(f"{name:24}" + "".join(f"{value:10.1%}" for value in row.values()), flush=True)
        sizes = {"train_rows": len(probe.labels), "tune_rows": len(probe.tune_labels)}
        rows[name] = row | sizes | {"data": probe.data}
    return rows
