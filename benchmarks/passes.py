"""Passes of many students: what their probes take of the whole, and the memory that was predicted.

    python benchmarks/passes.py [--data FOLDER --task wic] [--model FOLDER] [--dtype bfloat16]

A third of the students learn by cross-entropy, a third by KL too, a third by KL and ``gram``; 6 layers read
by the mean, a prefix of 16 tokens, batch size 16. Times are on the wall: of all that comes before the first
step, of the probes in it, and of the steps. Predicted memory is what ``students_per_pass: auto`` counts for
so many students on a GPU, and measured memory the peak of a pass above what was there before. That pass has
64 rows, one epoch, dropout and scores on ``tune``; the pass that is timed has none of these. Prints Markdown.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from allocator import peak_bytes
from student_variants import KL, MODEL, Case, Ours, write_models

from kdcache.encoder.load import setup
from kdcache.losses import Term
from kdcache.students.loop import train_students
from kdcache.students.memory import REHEARSED, bytes_per_student, rehearse
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.run import Run

DROPOUT, FEW_ROWS = 0.1, 64
ROWS, LAYERS, BATCH_SIZE, EPOCHS = 1024, 6, 16, 10
OBJECTIVES: tuple[dict[str, Any], ...] = ({}, KL, {**KL, "inter_instance": Term("gram", 1.0, 1.0)})


def time_pass(case: Case, students: int) -> tuple[float, float, float]:
    """Seconds before the first step, of probes in them, and of steps."""
    ours = Ours(case)
    in_probes = 0.0
    fit = ours.probes.fit

    def timed(*arguments: Any) -> Any:
        nonlocal in_probes
        start = case.clock()
        probe = fit(*arguments)
        in_probes += case.clock() - start
        return probe

    ours.probes.fit = timed  # type: ignore[method-assign]
    start = case.clock()
    runs = start_runs(ours, students)
    before_steps = case.clock() - start
    start = case.clock()
    train_students(runs)
    return before_steps, in_probes, case.clock() - start


def start_runs(ours: Ours, students: int) -> list[Run]:
    """The students of a pass."""
    return [
        ours.start(seed // len(OBJECTIVES), OBJECTIVES[seed % len(OBJECTIVES)], ours.case.epochs)
        for seed in range(students)
    ]


def memory_of(case: Case, students: int) -> tuple[float, float]:
    """Predicted and measured MiB of a pass."""
    case = replace(case, rows=FEW_ROWS, epochs=1)  # for a CPU's allocator, whose record is long
    backbone = Backbone.load(case.models / "student", case.pooling, case.dtype, DROPOUT)
    runs = start_runs(Ours(case, backbone), students)
    for run in runs:
        run.tune = run.rows
    if case.device == "cuda":
        predicted = bytes_per_student(runs[-1])
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train_students(runs)
        measured = torch.cuda.max_memory_allocated() - before
    else:
        predicted = peak_bytes(lambda: rehearse(runs[-1])) / REHEARSED
        measured = peak_bytes(lambda: train_students(runs))
    return students * predicted / 2**20, measured / 2**20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("sample"), help="SuperGLUE in the official layout")
    parser.add_argument("--task", default="wic")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--model", default=MODEL, help="an encoder of 6 layers")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "tf32", "bfloat16"])
    parser.add_argument("--students", type=int, nargs="+", default=[12, 48])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    given = parser.parse_args()
    device = str(setup(1, given.dtype))
    print(
        "| students | before steps, s | probes, s | steps, s | probes' share | predicted MiB | measured MiB |"
    )
    print(f"|{'---:|' * 7}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_models(given.model, LAYERS, Path(folder))
        case = Case(
            given.data, given.task, given.rows, BATCH_SIZE, 2, device, Path(folder), LAYERS, "mean",
            given.dtype, given.epochs,
        )  # fmt: skip
        for students in given.students:
            before, probes, steps = time_pass(case, students)
            predicted, measured = memory_of(case, students)
            share = probes / (before + steps)
            print(
                f"| {students} | {before:.1f} | {probes:.1f} | {steps:.1f} | {share:.0%} | {predicted:.0f} | "
                f"{measured:.0f} |", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
