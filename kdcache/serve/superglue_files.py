"""SuperGLUE's submission files: their names, nesting and spelling of labels. No files are written here."""

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kdcache.data.metrics import choose, group_rows
from kdcache.data.superglue.score import submission_names
from kdcache.data.task import Task
from kdcache.errors import ParamsError

# Task or diagnostic split → name of its submission file, without .jsonl.
SUBMISSION_NAMES = submission_names()
# Labels that the benchmark spells in another way than the task does.
_SPELLING: dict[str, Sequence[str | int]] = {"copa": (0, 1), "wsc": ("False", "True")}


def submission_name(task_name: str, split: str) -> str:
    """Return the name of a split's submission file.

    Diagnostics have files of their own. Splits that the benchmark does not score have names that
    ``superglue.zip`` does not take.

    Raises:
        ParamsError: SuperGLUE has no such task.

    >>> submission_name("wic", "test"), submission_name("rte", "axb"), submission_name("wic", "validation")
    ('WiC.jsonl', 'AX-b.jsonl', 'WiC-validation.jsonl')
    """
    if task_name not in SUBMISSION_NAMES:
        raise ParamsError(
            f"SuperGLUE has no task {task_name!r}, so there is no submission file for it. "
            "Use --format csv or jsonl."
        )
    name = SUBMISSION_NAMES[task_name]
    return f"{SUBMISSION_NAMES.get(split, name if split == 'test' else f'{name}-{split}')}.jsonl"


def superglue_text(
    task: Task, split: str, ids: Sequence[str], logits: np.ndarray, columns: Mapping[str, Sequence[Any]]
) -> str:
    """Render a submission file: the benchmark's idx and its spelling of the labels.

    Args:
        task: a SuperGLUE task.
        split: the rows' split, which their ids begin with.
        ids: example ids, (rows,).
        logits: of shape (rows, num_labels).
        columns: the task's metric columns.

    Returns:
        JSON lines.
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
    """Zip named texts. The same texts give the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name], zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _nest_answers(numbers: Sequence[tuple[int, ...]], labels: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Nest labels of (passage, question, answer) numbers: one line per passage, in their order."""
    passages: dict[int, dict[int, list[dict[str, int]]]] = {}
    for (passage, question, answer), label in zip(numbers, labels, strict=True):
        answers = passages.setdefault(passage, {}).setdefault(question, [])
        answers.append({"idx": answer, "label": label})
    for passage, questions in passages.items():
        nested = [{"idx": question, "answers": answers} for question, answers in questions.items()]
        yield {"idx": passage, "passage": {"questions": nested}}


def _lines(values: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
