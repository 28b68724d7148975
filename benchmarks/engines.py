"""The parts of a cache by one process, by one actor of Ray and by several: what the engine costs and gains.

    python benchmarks/engines.py PROJECT --task calls [--workers 2] [--rounds 3] [--rows 128]

PROJECT holds data and a teacher, for example a clone after ``dvc repro``. Each round computes all parts three
times, from an empty scratch folder: in this process, by one actor, by several. The start, up to as many parts
as there are actors, is told apart. Threads are 1. Time is that on the wall, so the machine must have
nothing else to do; ratios are within a round. Prints Markdown.
"""

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from kdcache.data.splits import open_tables
from kdcache.encoder.load import setup
from kdcache.project import Project
from kdcache.spread import Engine, spread
from kdcache.store.parts import Parts
from kdcache.teacher.cache_teacher import CacheTeacherParams, open_elsewhere, open_teacher, store_parts
from kdcache.teacher.extraction import CachePart


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project", type=Path)
    parser.add_argument("--task", default="calls")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=128, help="of a part")
    options = parser.parse_args()
    os.chdir(options.project)
    project = Project.load(["threads=1"])
    setup(1)
    task, tables = open_tables(project.paths.data, options.task)
    params = project.section("cache_teacher", CacheTeacherParams)
    teacher = open_teacher(project, task, params, tables)
    parts = [
        part._replace(start=start, stop=min(start + options.rows, part.stop))
        for part in teacher.parts()
        for start in range(part.start, part.stop, options.rows)
    ]

    def seconds(workers: int | None) -> tuple[float, float]:
        """Of the start, and of the parts after it; None computes in this process."""
        with tempfile.TemporaryDirectory(dir=".") as folder:
            stored, times = Parts(Path(folder).absolute(), options.task), list[float]()
            opened = partial(
                open_elsewhere, project.raw, options.task, teacher.identity, teacher.train_folds, stored
            )
            engine = Engine("local", 1) if workers is None else Engine("ray", workers)
            if workers is None:
                opened = partial(store_parts, teacher, stored)

            def after(part: CachePart) -> None:
                times.append(time.perf_counter())

            start = time.perf_counter()
            spread(parts, opened, engine, 1, after)
            first = workers or 1
            return times[first - 1] - start, (times[-1] - times[first - 1]) / (len(parts) - first)

    rounds = [(seconds(None), seconds(1), seconds(options.workers)) for _ in range(options.rounds)]
    print(f"{len(parts)} parts of {options.rows} rows, 1 thread each.\n")
    print("| | median (least … most) |\n|---|---:|")
    overhead = [100 * (one[1] / here[1] - 1) for here, one, _ in rounds]
    gain = [one[1] / several[1] for _, one, several in rounds]
    for name, values in {
        "start of one actor and its first part, s": [one[0] for _, one, _ in rounds],
        "a part in this process, ms": [1000 * here[1] for here, *_ in rounds],
        "one actor above this process, %": overhead,
        f"{options.workers} actors against one, ×": gain,
    }.items():
        print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f} … {max(values):.2f}) |")


if __name__ == "__main__":
    main()
