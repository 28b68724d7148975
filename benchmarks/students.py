"""A student's training step, against what people write today, and against the matrix products it needs.

    python benchmarks/students.py [--data FOLDER --task rte] [--batch-size 16] [--threads 1] [--device cuda]

FOLDER holds SuperGLUE in the official layout; default is the shipped sample. Teacher 6 layers,
student its first 3 (or ``--layers``), a prefix of 16 tokens, cross-entropy + KL, rows tokenised before:

- live: transformers' Trainer, a PEFT prefix student, the teacher's forward in ``compute_loss``
- column: the same, the teacher's logits as a column of the dataset
- careful live, careful column: the same as a careful user of a GPU sets them: rows grouped by length and
  padded to multiples of 8, a fused optimizer, and with ``--dtype bfloat16`` the Trainer's ``bf16``
- compiled live, compiled column: the careful ones under ``torch.compile``
- kdcache: one student, by ``train_students``; its probe is fitted before the clock starts,
  and what it keeps of all rows is computed after that, in each round
- kdcache in float32: the same whatever ``--dtype`` says
- kdcache, late: one student whose upper half of layers has prompts; the states below are computed once
- one by one: a grid of 12 students, as ``students_per_pass: auto`` trains them on a CPU
- one pass, pass of 48: as many students, stacked over one backbone

With ``--pooling mean`` the heads of kdcache's students read the mean; the others read [CLS], which costs
the same there.

Each is a process of its own; rounds (of ``--epochs``) alternate between them, and ratios are
within a round. On one thread time is CPU time, which a shared machine disturbs less than a clock
on the wall. The bound is the matrix products of that variant, as it pads its rows, at the best
rate that this machine reached for products of these shapes in the same round. Prints Markdown.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from student_variants import MODEL, NUM_LABELS, VARIANTS, VIRTUAL_TOKENS, Case, Ours, write_models

from kdcache.encoder.load import load_classifier, setup
from kdcache.students.stack import stacked
from kdcache.students.step import Step

KD_STEPS = 200


def operations(case: Case, name: str, config: Any, rows: int, tokens: float) -> float:
    """Floating-point operations of a step's matrix products: what a variant cannot do without.

    Frozen weights need no gradient. Of the first layer's inputs nothing is trained, so its
    queries, keys and values hand none on; on a CPU kdcache knows what they attend to of the text.
    Attention: two products forward, four backward.
    """
    dim, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    layer = 4 * dim**2 + 2 * dim * inner  # multiply-adds per token
    keys = tokens + VIRTUAL_TOKENS
    layers = -(-case.layers // 2) if name == "kdcache, late" else case.layers
    per_token = layers * (2 * layer + 6 * dim * keys) - 3 * dim**2
    per_row, trainer = 0, name.endswith(("live", "column"))
    if name.endswith("live"):
        per_token += config.num_hidden_layers * (layer + 2 * dim * tokens)
    elif not trainer and case.pooling == "cls":  # the last layer for [CLS]: no token is projected
        per_token += -2 * layer - 6 * dim * keys + 6 * dim * heads
        per_row = 2 * layer + 6 * dim * VIRTUAL_TOKENS
    if case.device == "cpu" and not trainer and name != "kdcache, late":  # attention to texts is known there
        per_token -= 3 * dim**2 + 6 * dim * tokens
    return 2.0 * rows * (per_token * tokens + per_row)


def best_rate(case: Case, config: Any, shapes: Sequence[tuple[int, float]]) -> float:
    """Operations per second of a layer's six products on a usual batch, each at its best of 5 times 20 calls.

    The 20 calls are queued, so that on a GPU the time is not that of their launches.
    """
    dim, inner = config.hidden_size, config.intermediate_size
    tokens = int(statistics.median(rows * tokens for rows, tokens in shapes))
    done = seconds = 0.0
    for times, wide, narrow in ((4, dim, dim), (1, dim, inner), (1, inner, dim)):
        dtype = torch.bfloat16 if case.dtype == "bfloat16" else torch.float32
        x = torch.randn(tokens, wide, device=case.device).to(dtype)
        weight, out = torch.randn(narrow, wide, device=case.device).to(dtype), x.new_empty(tokens, narrow)
        taken = []
        for _ in range(5):
            start = case.clock()
            for _ in range(20):
                torch.mm(x, weight.T, out=out)
            taken.append((case.clock() - start) / 20)
        done += times * 2 * tokens * wide * narrow
        seconds += times * min(taken)
    return done / seconds


def step_costs(case: Case) -> list[float]:
    """Seconds of a KD step over those of a CE step on the same rows, in turns."""
    ours = Ours(case)
    epochs = 1 + (KD_STEPS + 10) * case.batch_size // len(ours.rows)
    runs = {"ce": ours.start(terms={}, epochs=epochs), "kd": ours.start(epochs=epochs)}
    steps = {name: Step(stacked([run])) for name, run in runs.items()}

    ratios = []
    for turn in range(KD_STEPS + 5):
        seconds = {}
        for name in sorted(runs, reverse=turn % 2 == 0):
            start = case.clock()
            steps[name].take()
            seconds[name] = case.clock() - start
        ratios.append(seconds["kd"] / seconds["ce"])
    return ratios[5:]


def work(case: Case, name: str, connection: Any) -> None:
    """A process's life: make a variant; train an epoch whenever asked; tell the peak of memory at last."""
    setup(case.threads, case.dtype)
    warnings.simplefilter("ignore")
    before = _status_mebibytes("VmRSS")
    one_epoch = VARIANTS[name][1](case)
    one_epoch()
    connection.send(None)
    while connection.recv():
        connection.send(one_epoch())
    cuda = case.device == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else _status_mebibytes("VmHWM") - before
    connection.send(peak)


def _status_mebibytes(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return float(line.split()[1]) / 1024


def measure(case: Case, names: list[str], rounds: int) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Rounds of every variant in turns → (seconds, shapes, best rate) per round; peaks of memory, MiB."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in names:
        pipes[name], other = context.Pipe()
        context.Process(target=work, args=(case, name, other), daemon=True).start()
        other.close()  # so that a process that died is heard of
    for name, pipe in list(pipes.items()):
        try:
            pipe.recv()
        except EOFError:
            print(f"{name}: does not run here", flush=True)
            del pipes[name]
            names = [other for other in names if other != name]
    config = load_classifier(case.models / "teacher", NUM_LABELS, seed=0).config
    seen: dict[str, list[Any]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            pipes[name].send(True)
            seconds, shapes = pipes[name].recv()
            needed = sum(operations(case, name, config, *shape) for shape in shapes)
            rate = best_rate(case, config, shapes)
            tokens = sum(rows * tokens for rows, tokens in shapes)
            seen[name].append((seconds, tokens, needed / rate / seconds, rate))
    peaks = {}
    for name, pipe in pipes.items():
        pipe.send(False)
        peaks[name] = pipe.recv()
    return seen, peaks


def report(case: Case, seen: dict[str, list[Any]], peaks: dict[str, float], lengths: np.ndarray) -> None:
    """Print the table of one task and batch size."""
    where = torch.cuda.get_device_name() if case.device == "cuda" else f"{case.threads} thread(s)"
    rounds = len(next(iter(seen.values())))
    steps = case.epochs * -(-len(lengths) // case.batch_size)
    rate = max(row[3] for rows in seen.values() for row in rows)
    print(
        f"\n{case.task}: {len(lengths)} rows of {lengths.mean():.0f} tokens, batch size {case.batch_size}, "
        f"{steps} updates per student and round, {rounds} rounds, {where}; "
        f"{case.layers} layers, {case.pooling}, {case.dtype}, products at "
        f"{rate / 1e9:.0f} GFLOP/s at best\n"
    )
    bases = (
        "live", "column", "careful live", "compiled live", "kdcache", "kdcache in float32", "one pass",
    )  # fmt: skip
    others = [name for name in bases if name in seen]
    heads = [*(f"× {name}" for name in others), "tokens per real one", "of the bound", "MiB"]
    print(f"| | student·examples/s | {' | '.join(heads)} |\n|---|---:{'|---:' * len(heads)}|")
    for name, rows in seen.items():
        students = VARIANTS[name][0]
        speed = case.epochs * len(lengths) * students / statistics.median(row[0] for row in rows)
        cells = [name, f"{speed:.1f}"]
        for other in others:
            base, factor = seen[other], students / VARIANTS[other][0]
            ratios = [factor * b[0] / row[0] for row, b in zip(rows, base, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})")
        padded = rows[0][1] / (case.epochs * students * lengths.sum())
        bound = statistics.median(row[2] for row in rows)
        print("| " + " | ".join([*cells, f"{padded:.2f}", f"{bound:.0%}", f"{peaks[name]:.0f}"]) + " |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("sample"), help="SuperGLUE in the official layout")
    parser.add_argument("--task", default="wic")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--layers", type=int, default=3, help="of the student")
    parser.add_argument("--pooling", default="cls", choices=["cls", "mean"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "tf32", "bfloat16"])
    parser.add_argument("--epochs", type=int, default=1, help="of a round")
    parser.add_argument("--model", default=MODEL, help="an encoder of 6 layers")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    given = parser.parse_args()
    setup(given.threads)
    with tempfile.TemporaryDirectory() as models:
        case = Case(
            given.data,
            given.task,
            given.rows,
            given.batch_size,
            given.threads,
            given.device,
            Path(models),
            given.layers,
            given.pooling,
            given.dtype,
            given.epochs,
        )
        write_models(given.model, given.layers, case.models)
        seen, peaks = measure(case, given.only, given.rounds)
        report(case, seen, peaks, case.read()[0].lengths)
        ratios = sorted(step_costs(case))
    # An interval of 95 % for the median, by ranks.
    spread = round(0.98 * len(ratios) ** 0.5)
    low, high = ratios[len(ratios) // 2 - spread], ratios[len(ratios) // 2 + spread]
    print(
        f"\nA KD step costs {statistics.median(ratios):.3f} CE steps (95 % interval {low:.3f} … {high:.3f}, "
        f"{len(ratios)} of each in turns)."
    )


if __name__ == "__main__":
    main()
