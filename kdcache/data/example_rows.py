"""Many examples, held on disk as a table, some of them in memory; each is an ``Example`` while it is read."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from kdcache.data.task import Example
from kdcache.on_disk import put_table, release

TABLE_ROWS, TABLE_CHARACTERS = 4096, 2**24  # held at a time, whichever comes first
_TEXTS = pa.list_(pa.string())
_OTHERS = {"label": pa.int64(), "choices": _TEXTS, "answers": _TEXTS}
SCHEMA = pa.schema([(field.name, _OTHERS.get(field.name, pa.string())) for field in fields(Example)])


class ExampleRows(Sequence[Example]):
    """Examples in their order.

    Args:
        table: of ``SCHEMA``.
        chosen: bool array of shape (rows of the table,), which of them these are; None takes all.
        labelled: whether they have their labels; without, all are −1.
    """

    def __init__(self, table: pa.Table, chosen: np.ndarray | None = None, labelled: bool = True) -> None:
        self._table, self._labelled = table, labelled
        self._chosen = np.ones(len(table), bool) if chosen is None else chosen

    @classmethod
    def of(cls, examples: Iterable[Example], folder: Path | None) -> "ExampleRows":
        """Put examples into a table.

        Args:
            examples: read once.
            folder: see ``on_disk``.
        """
        return cls(put_table(_batches(examples), SCHEMA, folder))

    def __len__(self) -> int:
        return int(self._chosen.sum())

    def __iter__(self) -> Iterator[Example]:
        before = ""
        for columns in self._columns(SCHEMA.names):
            for example_id, label, group, text, *others in zip(*columns, strict=True):
                text_pair, choices, unit, candidate, answers = others
                before = before if text == before else text  # held once, however many candidates it has
                yield Example(
                    example_id, label if self._labelled else -1, group, before, text_pair, tuple(choices),
                    unit, candidate, tuple(answers),
                )  # fmt: skip

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        """Return an example, or a list of several, after a walk over all of them: for a few, not for many."""
        return list(self)[at]

    def __eq__(self, other: object) -> bool:
        """Compare example by example."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def column(self, name: str) -> Iterator[list[Any]]:
        """Yield the values of a field of ``Example``, some rows at a time."""
        for (values,) in self._columns([name]):
            yield values if name != "label" or self._labelled else [-1] * len(values)

    def where(self, chosen: np.ndarray) -> "ExampleRows":
        """Return some of the rows, in their order, which share the table of all.

        Args:
            chosen: bool array of shape (rows,).
        """
        of_all = np.zeros(len(self._table), bool)
        of_all[self._chosen] = chosen
        return ExampleRows(self._table, of_all, self._labelled)

    def without_labels(self) -> "ExampleRows":
        """Return the same rows as unlabelled ones."""
        return ExampleRows(self._table, self._chosen, labelled=False)

    def _columns(self, names: Sequence[str]) -> Iterator[list[list[Any]]]:
        start = 0
        for batch in self._table.select(list(names)).to_batches(TABLE_ROWS):
            kept = batch.filter(pa.array(self._chosen[start : start + len(batch)]))
            start += len(batch)
            yield [column.to_pylist() for column in kept.columns]
            release()


def _batches(examples: Iterable[Example]) -> Iterator[pa.RecordBatch]:
    some: list[Example] = []
    characters = 0
    for example in examples:
        some.append(example)
        characters += len(example.text) + len(example.text_pair) + sum(map(len, example.choices))
        if len(some) == TABLE_ROWS or characters > TABLE_CHARACTERS:
            yield _batch(some)
            some, characters = [], 0
    if some:
        yield _batch(some)


def _batch(some: Sequence[Example]) -> pa.RecordBatch:
    columns = {name: [getattr(example, name) for example in some] for name in SCHEMA.names}
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)
