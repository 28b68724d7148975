"""What kdcache sets on a CPU, against what PyTorch does otherwise: steps of students that tune all weights.

Usage: python benchmarks/cpu_settings.py [--data FOLDER --task wic]

FOLDER holds SuperGLUE in the official layout; default is the shipped sample. Six layers of
all-MiniLM-L6-v2 read by the mean, cross-entropy + KL, batches of 16 rows, bfloat16, one thread, CPU time. One
setting at a time is undone, and the variants take turns; ratios are within a turn. Prints Markdown.

- kdcache: as it is
- AdamW not fused; fused attention: each undone

Then the product of a feed-forward layer's backward pass in float32, whose results are nearer to 0 than 1e-38,
and flushed to 0 or not. Cross-entropy has such gradients where a student's logits are some 80 apart.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from student_variants import MODEL, Case, Ours, write_models

from kdcache.encoder.load import setup
from kdcache.students.run import Run
from kdcache.students.stack import stacked
from kdcache.students.step import Step

TURNS, LAYERS, BATCH_SIZE, TOKENS, DIM = 12, 6, 16, 400, 384
KDCACHE, ADAMW, ATTENTION = "kdcache", "AdamW not fused", "fused attention"
NAMES = (KDCACHE, ADAMW, ATTENTION)


def undo(name: str, run: Run) -> None:
    """Undo one setting in a run that has not begun."""
    if name == ADAMW:
        for group in run.optimizer.param_groups:
            group["fused"] = False
    if name == ATTENTION:
        run.student.backbone.encoder.set_attn_implementation("sdpa")


def product_times(clock: Callable[[], float]) -> list[float]:
    """Seconds of a product of small numbers, in turns: not flushed, over flushed."""
    gradient, weight = torch.full((TOKENS, 4 * DIM), 1e-37), 0.0005 * torch.randn(4 * DIM, DIM)
    ratios = []
    for _ in range(TURNS):
        seconds = {}
        for flushed in (True, False):
            torch.set_flush_denormal(flushed)
            start = clock()
            gradient @ weight
            seconds[flushed] = clock() - start
        ratios.append(seconds[False] / seconds[True])
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("sample"), help="SuperGLUE in the official layout")
    parser.add_argument("--task", default="wic")
    given = parser.parse_args()
    setup(threads=1)
    with tempfile.TemporaryDirectory() as models:
        case = Case(
            given.data, given.task, 256, BATCH_SIZE, 1, "cpu", Path(models), LAYERS, "mean", "bfloat16", 2
        )  # fmt: skip
        write_models(MODEL, LAYERS, case.models)
        ours = Ours(case)
        runs = {name: ours.start(epochs=case.epochs, method="full") for name in NAMES}
    for name, run in runs.items():
        undo(name, run)
    steps = {name: Step(stacked([run])) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn in range(TURNS + 2):
        for name in NAMES[turn % len(NAMES) :] + NAMES[: turn % len(NAMES)]:
            start = case.clock()
            steps[name].take()
            if turn >= 2:
                seconds[name].append(case.clock() - start)
    print("| | ms per step | × kdcache |\n|---|---:|---:|")
    for name, some in seconds.items():
        ratios = [mine / base for mine, base in zip(some, seconds[KDCACHE], strict=True)]
        print(
            f"| {name} | {1000 * statistics.median(some):.0f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f}) |"
        )
    small = product_times(case.clock)
    print(
        f"\nA product with results nearer to 0 than 1e-38 takes {statistics.median(small):.1f} times as long "
        f"({min(small):.1f} … {max(small):.1f}) where they are not flushed to 0."
    )


if __name__ == "__main__":
    main()
