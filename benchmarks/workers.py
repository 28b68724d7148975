"""Students of one task, trained by one process and side by side by several; each process has one thread.

    python benchmarks/workers.py PROJECT --task calls [--workers 2] [--seeds 4] [--steps 100] [--rounds 3]

PROJECT holds data, cache and backbone, for example a clone after ``dvc repro``. Each round runs ``kdcache
distill`` with one process and with several, from empty runs. With four seeds of each arm, two or four
processes have as many students each. Time is that on the wall, so the machine must have nothing else to do:
of the whole command, and without its start, which is the time of the command for one student of the arm
``head``, which takes no step. Prints Markdown.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project", type=Path)
    parser.add_argument("--task", default="calls")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        for name in ("params.yaml", "data", "cache", "models", "tasks"):
            if (options.project / name).exists():
                (project / name).symlink_to((options.project / name).resolve())

        def seconds(workers: int, *more: str) -> float:
            for left in ("runs", ".kdcache"):
                shutil.rmtree(project / left, ignore_errors=True)
            command = [sys.executable, "-m", "kdcache", "distill", "--task", options.task]
            command += more or [part for seed in range(options.seeds) for part in ("--seed", str(seed))]
            values = [f"threads={workers}", f"distill.workers={workers}"]
            values += [f"distill.steps={options.steps}", "distill.epochs=null"]
            command += [part for value in values for part in ("--set", value)]
            start = time.perf_counter()
            subprocess.run(command, cwd=project, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - start

        rounds = []
        for _ in range(options.rounds):
            start = seconds(1, "--arm", "head", "--seed", "0")
            rounds.append((start, seconds(1), seconds(options.workers)))
    what = f"{options.task}, {options.steps} steps"
    print(f"| {what} | 1 process, s | {options.workers} processes, s | ratio (least … most) |")
    print("|---|---:|---:|---:|")
    for name, less in (("whole command", 0), ("without its start", 1)):
        one = [alone - less * start for start, alone, _ in rounds]
        many = [beside - less * start for start, _, beside in rounds]
        ratios = sorted(a / b for a, b in zip(one, many, strict=True))
        middle = statistics.median(ratios)
        print(
            f"| {name} | {statistics.median(one):.1f} | {statistics.median(many):.1f} "
            f"| {middle:.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f}) |"
        )


if __name__ == "__main__":
    main()
