"""CPU time to an accuracy: SetFit on the students' backbone, and kdcache's commands.

    python benchmarks/setfit_time.py PROJECT [--task calls] [--steps 25 50 100 200] [--seeds 3]

PROJECT is a clone after ``dvc repro``. SetFit tunes all weights of the backbone in PROJECT, as
benchmarks/peers.py does, for each number of steps from the start. kdcache runs ``teach``, ``cache`` and then
``distill``, one student at a time, in an empty copy of the project. All have the same rows and one thread;
SetFit has no use for rows without labels. Times are CPU time of one student, with the start of its process.
Prints Markdown, with accuracy on validation; means over seeds.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from peers import Rows, read_rows, regression, setfit
from sentence_transformers import SentenceTransformer

from kdcache.data.task import read_task

ARMS = ("head", "head+kl", "ce", "kl")
RATE = 2e-5  # SetFit's default


def time_setfit(model: str, rows: Rows, steps: int, seeds: int) -> tuple[float, float]:
    """CPU seconds of a seed, and accuracy in percent; means over seeds."""
    answers, before, right = rows["validation"][1], time.process_time(), []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as scratch:
            classes = (
                setfit(model, rows, seed, RATE, Path(scratch), steps)[1] if steps else regression(model, rows)
            )
        right.append(100 * float(np.mean(classes == answers)))
    return (time.process_time() - before) / seeds, float(np.mean(right))


def run_kdcache(project: Path, *command: str) -> float:
    """CPU seconds of a command and of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "kdcache", *command, "--set", "threads=1"],
        cwd=project, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project", type=Path)
    parser.add_argument("--task", default="calls")
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    model, data = str(given.project / "models" / "backbone"), given.project / "data" / given.task
    rows = read_rows(data, read_task(data, given.task), SentenceTransformer(model).tokenizer.sep_token)
    print(f"| {given.task} | CPU s | accuracy |\n|---|---:|---:|")
    for steps in (0, *given.steps):
        seconds, accuracy = time_setfit(model, rows, steps, given.seeds)
        name = f"SetFit, {steps} steps" if steps else "logistic regression"
        print(f"| {name} | {start + seconds:.0f} | {accuracy:.1f} |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        for name in ("params.yaml", "data", "tasks", "sample"):
            (project / name).symlink_to((given.project / name).resolve())
        (project / "models").mkdir()
        (project / "models" / "backbone").symlink_to((given.project / "models" / "backbone").resolve())
        teacher = sum(run_kdcache(project, stage, "--task", given.task) for stage in ("teach", "cache"))
        print(f"| kdcache, teach and cache | {teacher:.0f} | |", flush=True)
        for arm in ARMS:
            taken, right = [], []
            for seed in range(given.seeds):
                taken.append(
                    run_kdcache(project, "distill", "--task", given.task, "--arm", arm, "--seed", str(seed))
                )
                found = json.loads(
                    (project / "runs" / "metrics" / f"{given.task}.json").read_text(encoding="utf-8")
                )
                right.append(100 * found["arms"][arm]["validation"]["accuracy"]["seeds"][str(seed)])
            print(
                f"| kdcache, {arm}, from the cache | {np.mean(taken):.0f} | {np.mean(right):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
