"""Checks of a task before training: counts of labels and lengths, and problems in words."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Context, Decimal
from itertools import pairwise

import numpy as np

from kdcache.data.ids import name_some
from kdcache.data.task import Example, Task

Splits = Mapping[str, Sequence[Example]]

RARE_LABEL_ROWS = 10  # of a label in train; with fewer, folds and the tune split may lack it
SKEWED = 0.8  # share of the largest class above which accuracy says little
EXACT = Context(prec=1000)  # digits of a label that is a number
DELIMITER = re.compile(r"[,;|\t]")
BIN_EDGES = (8, 16, 32, 64, 128, 256, 512)  # of the histogram, in tokens


def label_counts(task: Task, splits: Splits) -> dict[str, dict[str, int]]:
    """Count the rows of each label in each labelled split; the most frequent of train comes first."""
    counts = {split: Counter(e.label for e in rows if e.label >= 0) for split, rows in splits.items()}
    labelled = [split for split, count in counts.items() if count]
    order = sorted(range(task.num_labels), key=lambda index: -counts["train"][index])
    return {task.labels[index]: {split: counts[split][index] for split in labelled} for index in order}


def length_histogram(lengths: Sequence[int]) -> dict[str, int]:
    """Count the rows in each range of lengths, without the empty ranges at either end.

    Args:
        lengths: per row, in tokens.

    >>> length_histogram([5, 20, 20, 70])
    {'1-8': 1, '9-16': 0, '17-32': 2, '33-64': 0, '65-128': 1}
    """
    edges = (0, *BIN_EDGES)
    names = [f"{low + 1}-{high}" for low, high in pairwise(edges)]
    names.append(f"{BIN_EDGES[-1] + 1} and more")
    counts = np.bincount(np.searchsorted(BIN_EDGES, lengths), minlength=len(names))
    first, last = np.flatnonzero(counts)[[0, -1]]
    return {names[i]: int(counts[i]) for i in range(first, last + 1)}


def shown_examples(rows: Sequence[Example], count: int = 3) -> list[Example]:
    """Choose the first rows, of as many labels as possible."""
    firsts = {row.label: row for row in reversed(rows)}
    chosen = sorted(firsts.values(), key=rows.index)[:count]
    rest = (row for row in rows if row not in chosen)
    return chosen + [row for row, _ in zip(rest, range(count - len(chosen)), strict=False)]


def find_problems(
    task: Task, splits: Splits, lengths: Sequence[int] | None = None, max_length: int | None = None
) -> list[str]:
    """Describe the problems of a task's rows, one sentence each. None of them stops a run.

    Args:
        task: the task.
        splits: its examples.
        lengths: of the rows of train, in tokens; None skips the check that needs them.
        max_length: of the teacher's inputs, in tokens.
    """
    train, validation = splits["train"], splits["validation"]
    found = [*_class_problems(task, splits), *_duplicate_problems(train)]
    for split, rows in splits.items():
        found += _swallowed_problems(task, split, rows)
        if split not in ("train", "unlabelled"):
            texts = {_read(row) for row in train}
            shared = sum(_read(row) in texts for row in rows)
            if shared:
                found.append(
                    f"{shared} of {len(rows)} rows of {split} ({shared / len(rows):.1%}) have the text of a "
                    "training row, which inflates scores."
                )
    error = (0.25 / len(validation)) ** 0.5
    if error > 0.02:
        found.append(
            f"validation has {len(validation)} rows: the standard error of an accuracy is up to "
            f"{100 * error:.1f} points, so smaller differences will not show."
        )
    if lengths is not None and max_length is not None:
        cut = sum(length > max_length for length in lengths)
        if cut:
            found.append(
                f"{cut} of {len(lengths)} training rows ({cut / len(lengths):.1%}) are longer than "
                f"train_teacher.max_length = {max_length} tokens and lose their end."
            )
    return found


def _class_problems(task: Task, splits: Splits) -> list[str]:
    counts = label_counts(task, splits)
    found = _alike_problems(counts)
    train = {label: by_split.get("train", 0) for label, by_split in counts.items()}
    none = [label for label, rows in train.items() if rows == 0]
    few = [label for label, rows in train.items() if 0 < rows < RARE_LABEL_ROWS]
    if none:
        found.append(f"No training row has the label {_quote(none)}: it cannot be learned.")
    if few:
        found.append(f"Fewer than {RARE_LABEL_ROWS} training rows have the label {_quote(few)}.")
    share = max(train.values()) / max(1, sum(train.values()))
    if share > SKEWED and task.metrics[0] == "accuracy":
        found.append(
            f"{share:.0%} of the training rows have the label {next(iter(train))!r}: accuracy says little. "
            'Set metrics = ["macro_f1"].'
        )
    absent = [label for label, rows in counts.items() if rows.get("validation", 0) == 0]
    if absent:
        found.append(f"No validation row has the label {_quote(absent)}: no score covers it.")
    return found


def _alike_problems(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Labels that differ in blanks, case, Unicode form or leading zeros only: often one label spelt twice."""
    alike: dict[str, list[str]] = {}
    for label in counts:
        alike.setdefault(_plain(label), []).append(label)
    return [
        "Labels that look alike are classes of their own: "
        + ", ".join(f"{label!r} ({sum(counts[label].values())} rows)" for label in labels)
        + ". Spell them in one way, or name them in labels."
        for labels in alike.values()
        if len(labels) > 1
    ]


def _swallowed_problems(task: Task, split: str, rows: Sequence[Example]) -> list[str]:
    """Rows that hold lines with a label between delimiters, as after a quote that is not closed."""
    labels = set(task.labels)
    swallowed = holding = 0
    for row in rows:
        lines = [DELIMITER.split(line) for text in _read(row) for line in text.split("\n")[1:]]
        inner = sum(len(cells) > 1 and any(cell.strip() in labels for cell in cells) for cells in lines)
        swallowed, holding = swallowed + inner, holding + bool(inner)
    if not swallowed:
        return []
    return [
        f"{split} has {len(rows)} rows from {len(rows) + swallowed} lines: in {holding} of them, lines "
        "look like rows, as after a quote that is not closed. If quotes are text, set read.quotes = false in "
        "the task file."
    ]


def _plain(label: str) -> str:
    """A label without what the eye does not see."""
    text = unicodedata.normalize("NFKC", label).casefold()
    text = "".join(char for char in text if unicodedata.category(char) not in ("Cf", "Cc", "Zs"))
    try:
        return str(EXACT.normalize(Decimal(text)))
    except ArithmeticError:
        return text


def _duplicate_problems(train: Sequence[Example]) -> list[str]:
    labels: dict[tuple[str, ...], set[int]] = {}
    for row in train:
        labels.setdefault(_read(row), set()).add(row.label)
    again = len(train) - len(labels)
    torn = sum(len(different) > 1 for different in labels.values())
    found = []
    if again:
        found.append(
            f"{again} of {len(train)} training rows ({again / len(train):.1%}) repeat the text of another."
        )
    if torn:
        found.append(f"Texts of train that occur with different labels: {torn}.")
    return found


def _read(row: Example) -> tuple[str, ...]:
    """Everything that the model reads of a row."""
    return (row.text, row.text_pair, *row.choices)


def _quote(labels: Sequence[str]) -> str:
    return name_some([repr(label) for label in labels])
