"""What is planned: the prepared rows as models read them, and what a stage costs on them."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kdcache.analysis.rates import Rate, at
from kdcache.data.splits import count_rows, open_tables, rows_at, sequences
from kdcache.data.task import Task
from kdcache.encoder.batching import Encoded, concatenate, encode
from kdcache.encoder.plans import TrainingPlan
from kdcache.project import Project

SAMPLED_ROWS = 20_000  # of a task, which are tokenised; the others are taken to be like them


@dataclass
class Stage:
    """What a stage will cost on one task; ``read`` adds to it.

    Args:
        stage, task: which; a stage of all tasks has the task ``all``.
        rows: prepared rows that it reads.
        start: seconds before the first batch, which each worker takes.
        memory: peak bytes of a process, on a GPU those of the device.
        parallel: processes that share the work on one machine.
        units: that workers may share.
        bytes: written.
        tokens: that models read, padding included, each time anew.
        flops: floating-point operations of the matrix products.
        work: seconds of one process, after the start.
    """

    stage: str
    task: str
    rows: int
    start: float
    memory: float = 0.0
    parallel: int = 1
    units: int = 1
    bytes: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    work: float = 0.0

    @property
    def seconds(self) -> float:
        """On one machine."""
        return self.start + self.work / self.parallel

    def on(self, workers: int) -> float:
        """Return the seconds that some workers take, each with the processors of one.

        >>> Stage("cache_teacher", "wic", rows=1, start=10, work=80, units=8).on(4)
        30.0
        """
        if min(workers, self.units) == 1:
            return self.seconds
        return self.start + self.work / self.units * math.ceil(self.units / workers)

    def read(self, rate: Rate, batches: tuple[float, float], times: float = 1.0) -> None:
        """Add batches, of so many tokens in all, some times."""
        count, tokens = times * batches[0], times * batches[1]
        self.tokens += tokens
        self.flops += at(rate.flops, count, tokens)
        self.work += at(rate.seconds, count, tokens)


@dataclass(frozen=True)
class Split:
    """The rows of a split, as a model reads them.

    Args:
        rows: how many are prepared.
        labelled: of them.
        sample: some of them, tokenised.
        labels: of the sample, int64 of shape (rows,), −1 = unlabelled.
    """

    rows: int
    labelled: int
    sample: Encoded
    labels: np.ndarray

    def batches(
        self, plan: Callable[[np.ndarray, int], Sequence[np.ndarray]], size: int, rows: float | None = None
    ) -> tuple[float, float]:
        """Return the batches and the padded tokens of a pass over all rows, or over so many of them."""
        lengths = self.sample.lengths
        some = plan(lengths, size)
        scale = (self.rows if rows is None else rows) / max(1, len(lengths))
        tokens = sum(len(batch) * int(lengths[batch].max()) for batch in some)
        return scale * len(some), scale * tokens * self.sample.num_choices


Rows = Mapping[str, tuple[Task, Mapping[str, Split]]]  # by task


def read_prepared(project: Project, names: Sequence[str], tokenizer: Any, max_length: int) -> Rows:
    """Read the prepared splits of tasks, of large ones a sample that a fixed seed draws.

    Raises:
        DataError: a task is not prepared; the message says how to.
    """
    found = {}
    for name in names:
        task, files = open_tables(project.paths.data, name)
        total, splits = sum(map(count_rows, files.values())), {}
        for split, file in files.items():
            rows = count_rows(file)
            some = np.arange(rows)
            if total > SAMPLED_ROWS:
                some = np.random.default_rng(0).permutation(rows)[: -(-rows * SAMPLED_ROWS // total)]
            table, labels = rows_at(file, some), file.read(["label"])["label"].to_numpy()
            sample = encode(tokenizer, *sequences(table, task), max_length, task.truncate, task.num_choices)
            splits[split] = Split(rows, int((labels >= 0).sum()), sample, labels[some])
        found[name] = task, splits
    return found


def in_windows(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut rows into batches as students draw them."""
    return list(TrainingPlan(lengths, size, seed=0, epoch=0))


def shuffled(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut rows into batches in a random order, as the Trainer does."""
    order = np.random.default_rng(0).permutation(len(lengths))
    return [order[start : start + size] for start in range(0, len(order), size)]


def longest_row(splits: Mapping[str, Split]) -> int:
    """Return the tokens of the longest row, of all its choices."""
    found = [part.sample for part in splits.values()]
    return max(int(sample.lengths.max(initial=0)) * sample.num_choices for sample in found)


def pool_rows(tasks: Rows) -> tuple[Encoded, int]:
    """Put the sequences of all tasks together, each as a row; and count the outputs of the widest head."""
    some = [split.sample for _, splits in tasks.values() for split in splits.values()]
    alone = [
        replace(one, lengths=one.sequences.lengths, truncated=one.sequences.lengths < 0, num_choices=1)
        for one in some
    ]
    return concatenate(alone), max([2, *(task.num_outputs for task, _ in tasks.values())])


def timed_build(build: Callable[[], Any]) -> tuple[Any, float]:
    """Return what is built, and the seconds that it took."""
    begin = time.perf_counter()
    return build(), time.perf_counter() - begin


def weight_bytes(model: Any) -> tuple[int, int]:
    """Return the bytes of all weights, and of those that are trained."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
