"""Passes of many students: what their probes take of the whole, and the memory that was predicted.

    python benchmarks/passes.py [--data FOLDER --task wic] [--model FOLDER] [--dtype bfloat16]

A third of the students learn by cross-entropy, a third by KL too, a third by KL and ``gram``; 6 layers read
by the mean, a prefix of 16 tokens, batch size 16. Times are on the wall: of all that comes before the first
step, of the probes in it, and of the steps. On a GPU, predicted memory is what ``students_per_pass: auto``
counts for so many students, and measured memory the peak of the pass above what was there before. Prints
Markdown.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from student_variants import KL, MODEL, Case, Ours, write_models

from kdcache.encoder.load import setup
from kdcache.losses import Term
from kdcache.students.loop import train_students
from kdcache.students.memory import FREE_SHARE, students_that_fit

ROWS, LAYERS, BATCH_SIZE, EPOCHS = 1024, 6, 16, 10
OBJECTIVES: tuple[dict[str, Any], ...] = ({}, KL, {**KL, "inter_instance": Term("gram", 1.0, 1.0)})


def measure(case: Case, students: int) -> tuple[float, ...]:
    """Seconds before the first step, of probes and of steps; predicted and measured MiB, 0 on a CPU."""
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
    runs = [
        ours.start(seed // len(OBJECTIVES), OBJECTIVES[seed % len(OBJECTIVES)], case.epochs)
        for seed in range(students)
    ]
    before_steps = case.clock() - start
    predicted = held = 0.0
    cuda = case.device == "cuda"
    if cuda:
        predicted = students * FREE_SHARE * torch.cuda.mem_get_info()[0] / students_that_fit(runs[-1])
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    start = case.clock()
    train_students(runs)
    steps = case.clock() - start
    peak = torch.cuda.max_memory_allocated() - held if cuda else 0.0
    return before_steps, in_probes, steps, predicted / 2**20, peak / 2**20


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
            before, probes, steps, predicted, measured = measure(case, students)
            memory = f"{predicted:.0f} | {measured:.0f}" if device == "cuda" else "– | –"
            share = probes / (before + steps)
            print(
                f"| {students} | {before:.1f} | {probes:.1f} | {steps:.1f} | {share:.0%} | {memory} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
