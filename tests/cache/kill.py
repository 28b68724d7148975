"""Kill builds at random moments, let the next run go on, compare bytes.

Usage: python tests/cache/kill.py FOLDER KILLS   (one JSON line per build killed unfinished)

The source is a function of the row number alone; nothing but NumPy and pyarrow is imported.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kdcache.cache import schema, split_files, writer
from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.reader import load_cache
from kdcache.cache.writer import CacheWriter
from kdcache.errors import CacheMissing

ROWS, PART_ROWS = 600, 50
IDS = [f"train-{i}" for i in range(ROWS)]
IDENTITY = {"task": "wic", "labels": ["a", "b", "c"], "num_labels": 3}


def compute(rows: slice) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows.start)
    shape = rows.stop - rows.start
    return {"logits": rng.normal(size=(shape, 3)), "features": rng.normal(size=(shape, 8))}


def build(folder: Path) -> None:
    with CacheWriter(folder / "wic", folder / "scratch" / "key") as cache:
        for split in ("train", "validation"):
            parts = cache.resume(split, ROWS, compute)
            cache.write(split, (chunk(rows, part) for rows, part in parts))
        cache.finish(IDENTITY)


def chunk(rows: slice, part: dict[str, np.ndarray]) -> CacheRows:
    ids = IDS[rows]
    zeros = np.zeros(len(ids), np.int64)
    return CacheRows(ids, ids, zeros, zeros.astype(np.int8), part["logits"], part["features"])


def fork(work: Callable[[], object]) -> int:
    if pid := os.fork():
        return pid
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)


def succeeded(pid: int) -> bool:
    return os.waitpid(pid, 0)[1] == 0


def never_half_made(folder: Path) -> None:
    """A reader at this moment finds no cache, or the whole of it."""
    with contextlib.suppress(CacheMissing):
        assert len(load_cache(folder / "wic", "train").rows) == ROWS


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "wic").iterdir())}


def main(base: Path, kills: int) -> None:
    assert "torch" not in sys.modules
    writer.PART_ROWS, writer.FILE_ROWS = PART_ROWS, 240  # so a split has three files
    schema.ROW_GROUP_ROWS = split_files.ROW_GROUP_ROWS = writer.ROW_GROUP_ROWS = 120
    build(base / "first")  # what is imported on first use is then there in every child
    start = time.perf_counter()
    assert succeeded(fork(lambda: build(base / "whole")))
    seconds = time.perf_counter() - start
    wanted = content(base / "whole")
    assert len(wanted) == 7
    rng = random.Random(0)
    number = 0
    while number < kills:
        folder = base / str(number)
        child = fork(lambda folder=folder: build(folder))
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        if succeeded(child):  # done before the signal came: the machine is faster than a moment ago
            seconds *= 0.9
            shutil.rmtree(folder)
            continue
        there = (folder / "wic").exists()
        parts = len(list(folder.glob("scratch/key/parts/*.npz")))
        assert succeeded(fork(lambda folder=folder: never_half_made(folder)))
        assert succeeded(fork(lambda folder=folder: build(folder))), "the next run failed"
        assert content(folder) == wanted, f"round {number}: other bytes"
        print(json.dumps({"there": there, "parts": parts, "of": 2 * ROWS // PART_ROWS}))
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
