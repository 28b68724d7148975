"""What a kind of student costs, by a short measurement."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kdcache.analysis.planned import timed_build, weight_bytes
from kdcache.analysis.rates import Rate, measure, training_step
from kdcache.encoder.batching import Encoded
from kdcache.encoder.optimisation import adamw
from kdcache.students.arms import ArmSpec
from kdcache.students.prompted_backbone import TRUNK, Backbone
from kdcache.students.student import EVAL_BATCH_SIZE, build_student, forward, predict


class StudentRates(NamedTuple):
    """What arms that differ in their losses only cost.

    Args:
        step: a step of training.
        reading: a forward pass.
        build: seconds to build a student.
        whole, trained: bytes of all weights, and of those that are trained.
        trains: a probe takes no steps.
        below: share of the layers that late prompts leave as they are.
    """

    step: Rate
    reading: Rate
    build: float
    whole: int
    trained: int
    trains: bool
    below: float


def kind_of_student(spec: ArmSpec) -> tuple[Any, ...]:
    """Return what ``StudentRates`` depend on."""
    return spec.method, spec.pooling, spec.num_virtual_tokens, spec.late_layers, spec.batch_size


def measure_student(
    spec: ArmSpec, folder: Path, backbone: Backbone, rows: Encoded, outputs: int
) -> StudentRates:
    """Measure an arm's student.

    Args:
        spec: of the arm.
        folder: of the backbone.
        backbone: the shared one.
        rows: to choose batches from.
        outputs: of the head.
    """
    read = backbone.read_by(spec.pooling)
    student, build = timed_build(lambda: build_student(spec, outputs, 0, folder, read, rows))
    moved = [*student.tuned, *student.head_parameters]
    optimizer = adamw([{"peak": 0.0, "lr": 0.0, "params": moved}], read.device)
    trunks: dict[Any, torch.Tensor] = {}

    def logits(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if student.late_layers:  # computed once for each row, as training does
            shape = batch["input_ids"].shape
            if shape not in trunks:
                trunks[shape] = read.trunk(batch, student.late_layers)
            batch = {**batch, TRUNK: trunks[shape]}
        student.backbone.train(True)  # a step has dropout, a forward pass has not
        found = forward([student], batch, [len(batch["input_ids"])])[0][0]
        student.backbone.train(False)
        return found

    work = training_step(logits, optimizer, "float32", read.device)  # the backbone computes in its own dtype
    step = measure(work, student, rows, spec.batch_size)
    reading = measure(lambda some: predict(student, some), student, rows, EVAL_BATCH_SIZE)
    below = 1 - student.late_layers / read.config.num_hidden_layers if student.late_layers else 0.0
    return StudentRates(step, reading, build, *weight_bytes(student), bool(student.tuned), below)
