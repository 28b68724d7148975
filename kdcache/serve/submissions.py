"""Logits → labels and probabilities, and SuperGLUE's submission files; pure functions, no files."""

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from kdcache.data.metrics import choose, group_rows
from kdcache.data.task import Task
from kdcache.errors import ParamsError

# Task or diagnostic split → the submission file's name, without .jsonl.
SUBMISSION_NAMES = {
    "boolq": "BoolQ",
    "cb": "CB",
    "copa": "COPA",
    "multirc": "MultiRC",
    "record": "ReCoRD",
    "rte": "RTE",
    "wic": "WiC",
    "wsc": "WSC",
    "axb": "AX-b",
    "axg": "AX-g",
}
# Where the benchmark spells labels in another way than the task does.
_SPELLING: dict[str, Sequence[str | int]] = {"copa": (0, 1), "wsc": ("False", "True")}


def csv_text(task: Task, ids: Sequence[str], logits: np.ndarray) -> str:
    """One line per row: id, label, and the probability of each class.

    >>> task = Task("t", ("no", "yes"), "t/1", ("accuracy",))
    >>> print(csv_text(task, ["test-0"], np.array([[0.0, 1.0]])), end="")
    example_id,label,no,yes
    test-0,yes,0.268941,0.731059
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["example_id", "label", *task.labels])
    for example_id, label, probabilities in _predictions(task, ids, logits):
        writer.writerow([example_id, label, *(f"{p:.6f}" for p in probabilities)])
    return out.getvalue()


def jsonl_text(task: Task, ids: Sequence[str], logits: np.ndarray) -> str:
    """The same as JSON lines.

    >>> task = Task("t", ("no", "yes"), "t/1", ("accuracy",))
    >>> print(jsonl_text(task, ["test-0"], np.array([[0.0, 1.0]])), end="")
    {"example_id": "test-0", "label": "yes", "probabilities": {"no": 0.268941, "yes": 0.731059}}
    """
    return _lines(
        {
            "example_id": example_id,
            "label": label,
            "probabilities": dict(zip(task.labels, (round(float(p), 6) for p in probabilities), strict=True)),
        }
        for example_id, label, probabilities in _predictions(task, ids, logits)
    )


def submission_name(task_name: str, split: str) -> str:
    """The submission file of a task's split; diagnostics have files of their own.

    Raises:
        ParamsError: the task is none of SuperGLUE's.

    >>> submission_name("wic", "test"), submission_name("rte", "axb")
    ('WiC.jsonl', 'AX-b.jsonl')
    """
    if task_name not in SUBMISSION_NAMES:
        raise ParamsError(
            f"--format superglue: the task must be one of SuperGLUE's, got {task_name!r}. "
            "Use --format csv or jsonl."
        )
    return f"{SUBMISSION_NAMES.get(split, SUBMISSION_NAMES[task_name])}.jsonl"


def superglue_text(
    task: Task, split: str, ids: Sequence[str], logits: np.ndarray, columns: Mapping[str, Sequence[Any]]
) -> str:
    """The lines of a submission file: the benchmark's idx and its spelling of the labels.

    Args:
        task: one of SuperGLUE's.
        split: whose rows these are; part of their ids.
        ids: example ids, (rows,).
        logits: of shape (rows, num_labels).
        columns: the task's metric columns.
    """
    numbers = [tuple(map(int, example_id.removeprefix(f"{split}-").split("-"))) for example_id in ids]
    if task.name == "record":
        chosen = choose(logits, group_rows(columns["unit"]).values())
        return _lines({"idx": numbers[row][1], "label": columns["candidate"][row]} for row in chosen)
    predicted = logits.argmax(axis=1).tolist()
    if task.name == "multirc":
        return _lines(_nest_answers(numbers, predicted))
    spelling = _SPELLING.get(task.name, task.labels)
    return _lines({"idx": idx, "label": spelling[k]} for (idx,), k in zip(numbers, predicted, strict=True))


def zip_bytes(files: Mapping[str, str]) -> bytes:
    """A zip of named texts; the same texts give the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name], zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _predictions(task: Task, ids: Sequence[str], logits: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    for example_id, row in zip(ids, softmax(logits, axis=1), strict=True):
        yield example_id, task.labels[int(row.argmax())], row


def _nest_answers(numbers: Sequence[tuple[int, ...]], labels: Sequence[int]) -> Iterator[dict[str, Any]]:
    """(passage, question, answer) numbers → one nested line per passage, in the order they come."""
    passages: dict[int, dict[int, list[dict[str, int]]]] = {}
    for (passage, question, answer), label in zip(numbers, labels, strict=True):
        answers = passages.setdefault(passage, {}).setdefault(question, [])
        answers.append({"idx": answer, "label": label})
    for passage, questions in passages.items():
        nested = [{"idx": question, "answers": answers} for question, answers in questions.items()]
        yield {"idx": passage, "passage": {"questions": nested}}


def _lines(values: Any) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
