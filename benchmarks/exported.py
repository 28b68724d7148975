"""A student in kdcache, in plain PEFT and as ONNX, in float32 and int8: one task, and eight tasks mixed.

Usage: python benchmarks/exported.py STUDENT DATA [ONNX ONNX_INT8]   (such as models/students/cb/kl-0 data;
exports that are already there save the time to make them)

The student is a mean-pooled one of a PEFT method; plain PEFT does what its card does. Rows are those
of validation, 32 at a time. Eight tasks are eight copies of the student: in kdcache one pool, in PEFT eight
adapters of one model, in ONNX eight graphs; but for the pool, each task's rows of a window are a batch.
Tokenising counts for all. Time is on the clock, since two threads share it; every round runs all in turn, and
ratios are within a round. Prints Markdown.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel

import kdcache
import kdcache.students.about
from kdcache.data.splits import read_split, sequences
from kdcache.data.task import read_task
from kdcache.encoder.load import setup
from kdcache.serve.deploy import export_student
from kdcache.serve.onnx_graph import open_session, run_session

TASKS, WINDOW, ROUNDS = 8, 32, 5
Rows = list[tuple[int, str, str]]


def contestants(student: Path, graphs: dict[str, Path], threads: int) -> dict[str, Callable[[Rows], None]]:
    """Name → what labels a window of (task, text, pair)."""
    folders = [student.with_name(f"copy{number}") for number in range(TASKS)]
    one = kdcache.load_student(student)
    pool = kdcache.StudentPool(folders)
    tokenizer, about = one.tokenizer, one.about
    how = {"longest": "longest_first", "first": "only_first", "second": "only_second"}[about.task.truncate]

    def pytorch(rows: Rows) -> None:
        one.logits([row[1] for row in rows], [row[2] for row in rows])

    def pytorch_mixed(rows: Rows) -> None:
        pool.logits([(folders[number].as_posix(), text, pair) for number, text, pair in rows])

    base = AutoModel.from_pretrained(student.with_name("backbone"))
    peft = PeftModel.from_pretrained(base, str(folders[0]), adapter_name=folders[0].name).eval()
    for folder in folders[1:]:
        peft.load_adapter(str(folder), adapter_name=folder.name)
    head = load_file(student / "head.safetensors")

    @torch.inference_mode()
    def plain(rows: Rows) -> None:
        batch = tokenizer(
            [row[1] for row in rows], [row[2] for row in rows] if about.task.pairs else None, padding=True,
            truncation=how, max_length=about.max_length, return_tensors="pt",
        )  # fmt: skip
        ids, mask = batch["input_ids"], batch["attention_mask"]
        states = peft(input_ids=ids, attention_mask=mask).last_hidden_state[:, -ids.shape[1] :]
        own = mask[:, :, None]
        (states * own).sum(1) / own.sum(1) @ head["weight"].T + head["bias"]

    def plain_mixed(rows: Rows) -> None:
        for number, folder in enumerate(folders):
            peft.set_adapter(folder.name, inference_mode=True)
            plain([row for row in rows if row[0] == number])

    def graph(session: object, rows: Rows) -> None:
        batch = tokenizer(
            [row[1] for row in rows], [row[2] for row in rows], padding=True, truncation=how,
            max_length=about.max_length, return_tensors="np",
        )  # fmt: skip
        run_session(session, batch)

    found: dict[str, Callable[[Rows], None]] = {
        "kdcache, one task": pytorch,
        "kdcache, 8 tasks": pytorch_mixed,
        "PEFT, one task": plain,
        "PEFT, 8 tasks": plain_mixed,
    }
    for name, path in graphs.items():
        sessions = [open_session(path / "model.onnx", threads) for _ in range(TASKS)]

        def mixed(rows: Rows, sessions: list[object] = sessions) -> None:
            for number, session in enumerate(sessions):
                graph(session, [row for row in rows if row[0] == number])

        found[f"ONNX {name}, one task"] = lambda rows, session=sessions[0]: graph(session, rows)
        found[f"ONNX {name}, 8 tasks"] = mixed
    return found


def main(student: Path, data: Path, made: list[Path]) -> None:
    """Print a table for one thread and one for two."""
    with tempfile.TemporaryDirectory() as scratch:
        task = kdcache.load_student(student).task
        graphs = dict(zip(("float32", "int8"), made, strict=False))
        if not graphs:
            for name in ("float32", "int8"):
                graphs[name] = Path(scratch, name)
                export_student(student, graphs[name], "onnx", name == "int8", data / task.name)
        copies = Path(scratch, "students")
        for number in range(TASKS):
            shutil.copytree(student, copies / f"copy{number}")
        shutil.copytree(kdcache.students.about.find_backbone(student, kdcache.load_student(student).about),
                        copies / "backbone")  # fmt: skip
        shutil.copytree(student, copies / "one")
        table = read_split(data / task.name, "validation", read_task(data / task.name, task.name))
        texts, pairs = sequences(table, task)
        rows = [(k % TASKS, *pair) for k, pair in enumerate(zip(texts, pairs, strict=True))]
        rows = rows[: len(rows) // WINDOW * WINDOW]
        windows = [rows[k : k + WINDOW] for k in range(0, len(rows), WINDOW)]
        for threads in (1, 2):
            setup(threads)
            torch.set_num_threads(threads)
            systems = contestants(copies / "one", graphs, threads)
            seconds: dict[str, list[float]] = {name: [] for name in systems}
            for turn in range(ROUNDS + 1):
                for name, system in systems.items():
                    start = time.perf_counter()
                    for window in windows:
                        system(window)
                    if turn:  # the first warms up
                        seconds[name].append(time.perf_counter() - start)
            print(f"\n{len(rows)} rows of {task.name}, {threads} threads, load {os.getloadavg()[0]:.1f}\n")
            print("| | rows/s (median) | × PEFT (median) | least … most |\n|---|---:|---:|---:|")
            for name, spent in seconds.items():
                base = seconds[f"PEFT, {name.partition(', ')[2]}"]
                ratios = np.divide(base, spent)
                print(f"| {name} | {len(rows) / statistics.median(spent):.0f} | {np.median(ratios):.2f}× "
                      f"| {ratios.min():.2f} … {ratios.max():.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
