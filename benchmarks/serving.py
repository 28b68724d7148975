"""Eight tasks' students in mixed batches, against one task alone and against switching PEFT adapters.

Usage: python benchmarks/serving.py BACKBONE DATA   (such as models/backbone data; DATA holds wic and cb,
prepared)

The students are prefixes of 16 virtual tokens with random heads, since speed does not depend on
what was learnt; texts are those of wic and cb, in turn. Requests come 32 at a time, 4 for each of
8 tasks. Plain peft holds the same 8 folders as adapters of one model; it answers each request
by itself, or those of each adapter together. Tokenising counts for all. One thread; time is CPU
time of the process, which a shared machine disturbs less than a clock on the wall. Every round
runs all of them, in another order; ratios are within a round. Prints Markdown.
"""

import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel

import kdcache
from kdcache.data.splits import read_split
from kdcache.data.task import Task, read_task
from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_classifier, load_tokenizer, setup
from kdcache.project import Project
from kdcache.students.arms import DistillParams, resolve_arm
from kdcache.students.folder import save_student
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.student import build_student

TASKS, WINDOW, NUM_WINDOWS, ROUNDS, MAX_LENGTH, TOKENS = 8, 32, 4, 9, 128, 16

Row = tuple[str, str, str]
Answer = Callable[[list[Row]], np.ndarray]


def read_rows(data: Path) -> list[Row]:
    """(student, text, pair): validation rows of both tasks in turn, students in turn."""
    pairs = []
    for name in ("wic", "cb"):
        table = read_split(data / name, "validation", read_task(data / name, name))
        pairs.append(list(zip(table["text"].to_pylist(), table["text_pair"].to_pylist(), strict=True)))
    mixed = [pair for both in zip(*pairs, strict=False) for pair in both][: WINDOW * NUM_WINDOWS]
    return [(f"task{number // 2 % TASKS}", *pair) for number, pair in enumerate(mixed)]


def make_students(folder: Path, base: Path, rows: list[Row]) -> list[Path]:
    """Eight folders as distill writes them."""
    backbone, tokenizer = Backbone.load(base), load_tokenizer(base)
    probe = encode(tokenizer, [row[1] for row in rows[:16]], [row[2] for row in rows[:16]], MAX_LENGTH)
    spec = resolve_arm(Project.load().section("distill", DistillParams), "ce")
    spec = replace(spec, num_virtual_tokens=TOKENS, max_length=MAX_LENGTH)
    for number in range(TASKS):
        task = Task(f"task{number}", ("no", "yes"), "bench/1", ("accuracy",))
        student = build_student(spec, 2, number, base, backbone, probe)
        card = {"task": task.name, "arm": "untrained", "seed": str(number)}
        about = {"max_length": MAX_LENGTH, "task": task}
        save_student(student, folder / task.name, base, about, card, probe)
    return [folder / f"task{number}" for number in range(TASKS)]


def contestants(folders: list[Path], base: Path) -> dict[str, Answer]:
    """Name → requests of a window → logits of shape (rows, 2), in order."""
    one, pool = kdcache.load_student(folders[0]), kdcache.StudentPool(folders)
    tokenizer = load_tokenizer(base)
    model = PeftModel.from_pretrained(
        load_classifier(base, 2, seed=0), str(folders[0]), adapter_name=folders[0].name
    )
    for folder in folders[1:]:
        model.load_adapter(str(folder), adapter_name=folder.name)
    model.eval()

    def alone(rows: list[Row]) -> np.ndarray:
        return one.logits([row[1] for row in rows], [row[2] for row in rows])

    def mixed(rows: list[Row]) -> np.ndarray:
        return np.stack(pool.logits(rows))

    @torch.inference_mode()
    def peft(rows: list[Row]) -> np.ndarray:
        model.set_adapter(rows[0][0], inference_mode=True)
        texts = [row[1] for row in rows], [row[2] for row in rows]
        batch = tokenizer(*texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        return model(**batch).logits.numpy()

    def switching(rows: list[Row]) -> np.ndarray:
        return np.concatenate([peft([row]) for row in rows])

    def by_adapter(rows: list[Row]) -> np.ndarray:
        order = sorted(range(len(rows)), key=lambda i: rows[i][0])
        size = len(rows) // TASKS
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        found = np.concatenate([peft([rows[i] for i in part]) for part in parts])
        return found[np.argsort(order)]

    return {
        "one task's student": alone,
        "8 tasks, mixed": mixed,
        "peft, an adapter per request": switching,
        "peft, sorted by adapter": by_adapter,
    }


def main(base: Path, data: Path) -> None:
    """Print the table."""
    setup(threads=1)
    warnings.simplefilter("ignore")
    rows = read_rows(data)
    windows = [rows[i : i + WINDOW] for i in range(0, len(rows), WINDOW)]
    with tempfile.TemporaryDirectory() as folder:
        systems = contestants(make_students(Path(folder), base, rows), base)
    for window in windows:  # and warm up
        wanted = systems["8 tasks, mixed"](window)
        for name in list(systems)[2:]:
            assert np.abs(systems[name](window) - wanted).max() < 1e-4, name
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(ROUNDS):
        names = list(systems)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            for window in windows:
                systems[name](window)
            seconds[name].append(time.process_time() - start)
    print(f"{len(rows)} requests in windows of {WINDOW}, float32, one thread, CPU time, {ROUNDS} rounds, "
          f"load {os.getloadavg()[0]:.1f}.\n")  # fmt: skip
    print("| | requests/s (median) | 8 tasks, mixed, are faster by (median) | least … most |")
    print("|---|---:|---:|---:|")
    for name, spent in seconds.items():
        ratios = [s / ours for s, ours in zip(spent, seconds["8 tasks, mixed"], strict=True)]
        print(
            f"| {name} | {len(rows) / statistics.median(spent):.0f} | **{statistics.median(ratios):.2f}×** "
            f"| {min(ratios):.2f} … {max(ratios):.2f} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
