"""A training step of many students on a GPU: computed anew, and replayed from its recording.

    python benchmarks/replay.py [--data FOLDER --task wic] [--model FOLDER] [--dtype bfloat16]

Cross-entropy + KL, 6 layers read by the mean, a prefix of 16 tokens, batch size 16. Heads start at 0: no
probe is fitted. ``computed`` is the mean over some steps without recordings. ``recorded`` is the mean over
the first steps with them, recordings included; ``replayed`` is that of the steps after these. It prints
Markdown.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from student_variants import MODEL, NUM_LABELS, Case, Ours, write_models

from kdcache.encoder.linear_probe import LinearProbe
from kdcache.encoder.load import setup
from kdcache.students import step as step_module
from kdcache.students.stack import stacked

ROWS, LAYERS, BATCH_SIZE, EPOCHS = 1024, 6, 16, 40
COMPUTED, RECORDED, REPLAYED = 64, 128, 64  # steps


def milliseconds(step: step_module.Step, steps: int) -> float:
    """Take some steps → milliseconds of one."""
    _wait()
    start = time.perf_counter()
    for _ in range(steps):
        step.take()
    _wait()
    return 1e3 * (time.perf_counter() - start) / steps


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("sample"), help="SuperGLUE in the official layout")
    parser.add_argument("--task", default="wic")
    parser.add_argument("--model", default=MODEL, help="an encoder of 6 layers")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "tf32", "bfloat16"])
    parser.add_argument("--students", type=int, nargs="+", default=[1, 12, 48])
    parser.add_argument("--steps", type=int, nargs=3, default=[COMPUTED, RECORDED, REPLAYED])
    given = parser.parse_args()
    device = str(setup(1, given.dtype))
    with tempfile.TemporaryDirectory() as folder:
        write_models(given.model, LAYERS, Path(folder))
        ours = Ours(
            Case(
                given.data, given.task, ROWS, BATCH_SIZE, 1, device, Path(folder), LAYERS, "mean",
                given.dtype, EPOCHS,
            )
        )  # fmt: skip
        dim = ours.backbone.config.hidden_size
        nothing = torch.zeros(NUM_LABELS, dim + 1, dtype=torch.float64)
        ours.probes.fit = lambda *_: LinearProbe(nothing[:, 1:], nothing[:, 0], 1.0)  # type: ignore[method-assign]
        print("| students | computed, ms | recorded, ms | replayed, ms |\n|---:|---:|---:|---:|", flush=True)
        usual = step_module.SEEN_BEFORE
        for students in given.students:
            times = []
            for seen_before, parts in ((10**9, given.steps[:1]), (usual, given.steps[1:])):
                step_module.SEEN_BEFORE = seen_before
                runs = [ours.start(seed, epochs=EPOCHS) for seed in range(students)]
                step = step_module.Step(stacked(runs))
                times += [milliseconds(step, steps) for steps in parts]
            print(f"| {students} | {' | '.join(f'{value:.2f}' for value in times)} |", flush=True)


if __name__ == "__main__":
    main()
