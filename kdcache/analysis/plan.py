"""What the stages will cost before they run: counted on the prepared rows, timed by a short measurement."""

import math
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from kdcache.analysis.planned import (
    Rows,
    Split,
    Stage,
    in_windows,
    longest_row,
    pool_rows,
    read_prepared,
    shuffled,
    timed_build,
    weight_bytes,
)  # fmt: skip
from kdcache.analysis.rates import Rate, at, measure, training_step
from kdcache.backbone.cut import choose_layers, cut
from kdcache.backbone.probe import MAX_ROWS, PROBE_BATCH_SIZE, encoder_states
from kdcache.backbone.student_backbone import EXAMINED_ROWS, StudentBackboneParams
from kdcache.cache.writer import cut_parts
from kdcache.data.splits import TEST
from kdcache.data.task import Task
from kdcache.encoder.architectures import check_positions
from kdcache.encoder.batching import Encoded
from kdcache.encoder.forward import extract
from kdcache.encoder.linear_probe import NUM_FOLDS, fit_probe, one_hot
from kdcache.encoder.load import load_encoder, load_tokenizer, resolve, save_model, setup
from kdcache.encoder.optimisation import adamw
from kdcache.encoder.plans import fixed_plan, num_batches, plan_for
from kdcache.encoder.pooling import Pooling, resolve_pooling, write_pooling
from kdcache.project import Project, require_tune
from kdcache.spread import Engine
from kdcache.students.arms import ArmSpec, DistillParams, resolve_arm
from kdcache.students.methods import method_on
from kdcache.students.prompted_backbone import TRUNK, Backbone
from kdcache.students.run import steps_to_look_at
from kdcache.students.student import EVAL_BATCH_SIZE, build_student, forward, predict
from kdcache.teacher.cache_teacher import CacheTeacherParams
from kdcache.teacher.dry_run import check_model
from kdcache.teacher.fine_tune import TrainTeacherParams, build_model
from kdcache.teacher.import_teacher import read_import

LOOK_STEPS = 2  # that a look costs beside a pass over tune: losses and gradients of a fixed batch
BUILDS = 3  # builds of a student that it takes in all: writing it and reading it again take one each
TOKEN_BYTES = 12  # see ``TokenRows``
FITTED_ROWS = 256  # of the linear probe that is timed


def plan(project: Project, names: Sequence[str]) -> tuple[list[Stage], dict[str, Rate]]:
    """Plan teachers, caches, backbone and students of some tasks; nothing is written.

    Returns:
        The stages, and the rates that were measured.

    Raises:
        DataError: a task is not prepared.
        ParamsError, ModelError: what the stages themselves would refuse.
    """
    # macOS counts bytes where others count KiB; on a GPU memory is the device's.
    libraries = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    base = 0 if torch.cuda.is_available() else libraries
    own = [name for name in names if not read_import(project, name)]
    rates: dict[str, Rate] = {}
    stages = _teachers(project, own, base, rates) if own else []
    return stages + _students(project, names, base, rates), rates


def _teachers(project: Project, names: Sequence[str], base: float, rates: dict[str, Rate]) -> list[Stage]:
    params = project.section("train_teacher", TrainTeacherParams)
    caching = project.section("cache_teacher", CacheTeacherParams)
    folder = resolve(params.model)
    device = setup(project.threads, params.dtype)
    tasks = read_prepared(project, names, load_tokenizer(folder), params.max_length)
    pooled, outputs = pool_rows(tasks)
    model: Any
    model, load = timed_build(
        lambda: build_model(folder, pooled.first(1), outputs, params, lambda model: None)
    )
    check_model(model, {"the prepared rows": pooled}, outputs, params.model, params.num_virtual_tokens or 0)
    whole, trained = weight_bytes(model)
    model.to(device).train()
    moved = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(moved, lr=0.0, fused=True)  # the Trainer's
    work = training_step(lambda batch: model(**batch).logits, optimizer, params.dtype, device)
    rates["teacher, training"] = step = measure(work, model, pooled, params.batch_size)
    rates["teacher, forward"] = reading = measure(
        lambda rows: extract(model, rows, outputs, len(rows), device, caching.dtype),
        model, pooled, caching.batch_size,
    )  # fmt: skip
    stages, models = [], (1 + params.folds) * params.ensemble
    for name, (task, splits) in tasks.items():
        if params.select == "tune":
            require_tune(splits, "train_teacher.select", name)
        train, in_order = splits["train"], partial(plan_for, device)
        reads = {split: part.batches(in_order, caching.batch_size) for split, part in splits.items()}
        held = base + whole + TOKEN_BYTES * sum(tokens for _, tokens in reads.values())
        teach = Stage("train_teacher", name, train.labelled, (1 + models) * load)
        teach.units = models
        teach.memory = held + 3 * trained + at(step.held, 1, params.batch_size * longest_row(splits))
        teach.bytes = models * (trained if params.method == "prefix" else whole)
        for fold in range(1 + params.folds):
            own = train.labelled * (1 - 1 / params.folds if fold else 1)
            steps = train.batches(shuffled, params.batch_size, own)
            teach.read(step, steps, params.epochs * params.ensemble)
            teach.read(reading, train.batches(in_order, caching.batch_size, own), params.ensemble)
        for split in {"tune", "validation"} & splits.keys():  # of the probe where each teacher starts
            teach.read(reading, reads[split], 1 + (models if split == "tune" else 0))
        if params.select == "tune":
            teach.read(reading, reads["tune"], models * params.epochs)
        rows = sum(part.rows for part in splits.values())
        cache = Stage("cache_teacher", name, rows, 2 * load, held)  # weights are hashed, then loaded
        cache.units = models * sum(len(cut_parts(part.rows)) for part in splits.values())
        kept = 1 + bool(params.folds) + (params.ensemble if params.ensemble > 1 else 0)
        top_k = caching.kept_of(task.num_labels)  # a label and its logit, and what the others have
        logits = 4 * (2 * top_k + 1 if top_k else task.num_labels)
        cache.bytes = cache.rows * (2 * model.config.hidden_size * task.num_choices + logits * kept)
        for split in splits:
            teachers = 1 + (min(params.folds, 1) if split == "train" else params.folds)
            cache.read(reading, reads[split], teachers * params.ensemble)
        stages += [teach, cache]
    return stages


def _students(project: Project, names: Sequence[str], base: float, rates: dict[str, Rate]) -> list[Stage]:
    made = project.section("student_backbone", StudentBackboneParams)
    params = project.section("distill", DistillParams)
    params.require_students()
    source = resolve(made.model)
    tokenizer, pooling = load_tokenizer(source), resolve_pooling(made.pooling, source)
    tasks = read_prepared(project, names, tokenizer, params.max_length)
    pooled, outputs = pool_rows(tasks)
    device = setup(project.threads)
    full, load = timed_build(lambda: load_encoder(source))
    check_positions(full.config, made.max_length, 0, made.model, "student_backbone")
    have = full.config.num_hidden_layers
    keep = range(have) if made.num_layers == "all" else choose_layers(made.layers, made.num_layers, have)
    cuts = len(keep) < have
    rates["backbone, forward"] = reading = measure(
        lambda rows: encoder_states(full, rows, device, pooling), full, pooled, PROBE_BATCH_SIZE
    )
    fit = _time_fit(full, tasks, device, pooling)
    size = weight_bytes(full)[0]
    shrink = Stage("student_backbone", "all", 0, load, base + (1 + cuts) * size)
    for task, splits in tasks.values():
        counts = [("train", min(EXAMINED_ROWS // len(tasks), splits["train"].rows))]
        if "tune" in splits:
            counts += [(split, min(MAX_ROWS, splits[split].labelled)) for split in ("train", "tune")]
            fits = NUM_FOLDS * (1 + cuts)  # by cross-validation
            shrink.work += fits * fit * counts[1][1] * task.num_labels
        for split, rows in counts:
            batches = splits[split].batches(partial(plan_for, device), PROBE_BATCH_SIZE, rows)
            shrink.read(reading, batches, 1 + cuts * len(keep) / have)
            shrink.rows += rows
    kinds: dict[Any, _Kind] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_model(cut(full, keep) if cuts else full, tokenizer, folder)
        write_pooling(folder, pooling, full.config.hidden_size)
        processes, threads = params.side_by_side(project.threads)
        setup(threads, params.dtype)
        specs = [resolve_arm(params, arm, folder) for arm in params.arms]
        backbone = Backbone.load(folder, specs[0].pooling, params.dtype, params.dropout).to(device)
        shrink.bytes = weight_bytes(backbone.encoder)[0]
        specs = [replace(spec, method=method_on(spec.method, backbone.config)) for spec in specs]
        for spec in specs:
            if _kind(spec) not in kinds:
                kinds[_kind(spec)] = kind = _measure_kind(spec, folder, backbone, pooled, outputs)
                if kind.trains:
                    rates[f"student, {spec.method}, training"] = kind.step
                rates[f"student, {spec.method}, forward"] = kind.reading
    stages = [shrink]
    for name, (task, splits) in tasks.items():
        if any(spec.select == "tune" for spec in specs):
            require_tune(splits, "distill.select", name)
        splits = {split: part for split, part in splits.items() if split != TEST}
        stage = Stage("distill", name, sum(part.rows for part in splits.values()), load)
        per_pass = 1 if params.students_per_pass == "auto" else params.students_per_pass
        passes = math.ceil(len(specs) * len(params.seeds) / per_pass)
        if Engine.of(project.raw).engine == "ray":
            stage.units = passes
        elif device.type == "cpu":
            stage.parallel = min(processes, passes)
        _add_students(stage, task, splits, params, [(spec, kinds[_kind(spec)]) for spec in specs], base, fit)
        stages.append(stage)
    return stages


class _Kind(NamedTuple):
    """What arms that differ in their losses only cost; seconds to build a student, bytes of all weights."""

    step: Rate
    reading: Rate
    build: float
    whole: int
    trained: int
    trains: bool  # a probe takes no steps


def _kind(spec: ArmSpec) -> tuple[Any, ...]:
    return spec.method, spec.pooling, spec.num_virtual_tokens, spec.late_layers, spec.batch_size


def _measure_kind(spec: ArmSpec, folder: Path, backbone: Backbone, pooled: Encoded, outputs: int) -> _Kind:
    read = backbone.read_by(spec.pooling)
    student, build = timed_build(lambda: build_student(spec, outputs, 0, folder, read, pooled))
    moved = [*student.tuned, *student.head_parameters]
    optimizer = adamw([{"peak": 0.0, "lr": 0.0, "params": moved}], read.device)

    trunks: dict[Any, torch.Tensor] = {}

    def logits(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if student.late_layers:  # computed once for each row, as training does
            shape = batch["input_ids"].shape
            if shape not in trunks:
                trunks[shape] = read.trunk(batch, student.late_layers)
            batch = {**batch, TRUNK: trunks[shape]}
        return forward([student], batch, [len(batch["input_ids"])])[0][0]

    work = training_step(logits, optimizer, "float32", read.device)  # the backbone computes in its own dtype
    step = measure(work, student, pooled, spec.batch_size)
    reading = measure(lambda rows: predict(student, rows), student, pooled, EVAL_BATCH_SIZE)
    return _Kind(step, reading, build, *weight_bytes(student), bool(student.tuned))


def _add_students(
    stage: Stage, task: Task, splits: Mapping[str, Split], params: DistillParams,
    arms: Sequence[tuple[ArmSpec, _Kind]], base: float, fit: float,
) -> None:  # fmt: skip
    """Add the students of a task to its stage, with what each reads beside its steps."""
    both = ["train"] + ["unlabelled"] * ("unlabelled" in splits and params.unlabelled)
    all_rows, seeds = sum(splits[split].rows for split in both), len(params.seeds)
    fitted, frozen = set(), set()
    for spec, kind in arms:
        drawn = both if spec.unlabelled else ["train"]
        steps = spec.steps or (spec.epochs or 0) * num_batches(all_rows, params.batch_size)
        steps *= kind.trains
        epoch = [splits[split].batches(in_windows, spec.batch_size) for split in drawn]
        batches, tokens = (sum(values) for values in zip(*epoch, strict=True))
        looks = 1 + len(steps_to_look_at(steps, spec.select))
        stage.read(kind.step, (1, tokens / batches), seeds * (steps + LOOK_STEPS * looks))
        passes = dict.fromkeys(["validation", *task.diagnostics], seeds) | {"tune": seeds * looks}
        # The probe, which arms share that start alike; without a prompt so do all seeds.
        start = _kind(spec), spec.ce_weight == 0, *drawn
        if start not in fitted:
            fitted.add(start)
            probes = seeds if kind.trains else 1
            for split in (*drawn, "tune") if kind.trains else ():
                passes[split] = passes.get(split, 0) + probes
            stage.work += probes * fit * task.num_labels * sum(splits[split].rows for split in drawn)
        if not kind.trains:  # they share the states of the frozen backbone
            shared = ["validation", *task.diagnostics, "tune", *both]
            passes = {} if spec.pooling in frozen else dict.fromkeys(shared, 1)
            frozen.add(spec.pooling)
        for split in passes.keys() & splits.keys():
            stage.read(kind.reading, splits[split].batches(fixed_plan, EVAL_BATCH_SIZE), passes[split])
        stage.work += seeds * BUILDS * kind.build
        held = 4 * kind.trained + at(kind.step.held, 1, spec.batch_size * longest_row(splits))
        copies = 3  # of the backbone: two more while a student's folder is written and checked
        stage.memory = max(stage.memory, base + copies * kind.whole + held)
        stage.bytes += seeds * kind.trained


def _time_fit(model: PreTrainedModel, tasks: Rows, device: torch.device, pooling: Pooling) -> float:
    """Return the seconds that a linear probe takes for each row and class, on labelled rows of a task."""
    task, splits = max(tasks.values(), key=lambda rows: rows[1]["train"].labelled)
    labels = splits["train"].labels
    some = np.flatnonzero(labels >= 0)[:FITTED_ROWS]
    states = encoder_states(model, splits["train"].sample.take(some), device, pooling)
    targets = one_hot(torch.from_numpy(labels[some]), task.num_labels).to(device)
    seconds = timed_build(lambda: fit_probe(states, targets, states, lambda logits: 0.0))[1]
    return seconds / max(1, len(some) * task.num_labels)
