"""What the stages will cost before they run: counted on the prepared rows, timed by a short measurement."""

import math
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

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
from kdcache.analysis.student_rates import StudentRates, kind_of_student, measure_student
from kdcache.backbone.cut import choose_layers, cut
from kdcache.backbone.probe import MAX_ROWS, PROBE_BATCH_SIZE, encoder_states
from kdcache.backbone.student_backbone import EXAMINED_ROWS, StudentBackboneParams
from kdcache.cache.writer import cut_parts
from kdcache.data.splits import TEST
from kdcache.data.task import Task
from kdcache.encoder.architectures import check_positions
from kdcache.encoder.forward import extract
from kdcache.encoder.linear_probe import NUM_FOLDS, fit_probe, one_hot
from kdcache.encoder.load import load_encoder, load_tokenizer, save_model, setup
from kdcache.encoder.plans import fixed_plan, num_batches, plan_for
from kdcache.encoder.pooling import Pooling, resolve_pooling, write_pooling
from kdcache.encoder.precision import Dtype
from kdcache.encoder.references import resolve
from kdcache.project import Project, require_tune
from kdcache.spread import Engine
from kdcache.students.arms import ArmSpec, DistillParams, resolve_arm
from kdcache.students.looks import SCORED_AT_ONCE
from kdcache.students.methods import method_on
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.run import steps_to_look_at
from kdcache.students.student import EVAL_BATCH_SIZE
from kdcache.teacher.base_probe import SCORE_BATCH_SIZE
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

    def forward(dtype: Dtype, size: int) -> Rate:
        return measure(
            lambda rows: extract(model, rows, outputs, len(rows), device, dtype), model, pooled, size
        )

    rates["teacher, forward"] = reading = scoring = forward(caching.dtype, caching.batch_size)
    if (caching.dtype, caching.batch_size) != ("float32", SCORE_BATCH_SIZE):  # in which ``teach`` scores
        rates["teacher, forward in float32"] = scoring = forward("float32", SCORE_BATCH_SIZE)
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
            teach.read(scoring, train.batches(in_order, SCORE_BATCH_SIZE, own), params.ensemble)
        for split in {"tune", "validation"} & splits.keys():  # of the probe where each teacher starts
            times = 1 + (models if split == "tune" else 0)
            teach.read(scoring, splits[split].batches(in_order, SCORE_BATCH_SIZE), times)
        if params.select == "tune":
            times = models * params.epochs
            teach.read(scoring, splits["tune"].batches(in_order, SCORE_BATCH_SIZE), times)
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
    kinds: dict[Any, StudentRates] = {}
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
            if kind_of_student(spec) not in kinds:
                kind = measure_student(spec, folder, backbone, pooled, outputs)
                kinds[kind_of_student(spec)] = kind
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
        arms = [(spec, kinds[kind_of_student(spec)]) for spec in specs]
        _add_students(stage, task, splits, params, arms, base, fit)
        stages.append(stage)
    return stages


def _add_students(
    stage: Stage, task: Task, splits: Mapping[str, Split], params: DistillParams,
    arms: Sequence[tuple[ArmSpec, StudentRates]], base: float, fit: float,
) -> None:  # fmt: skip
    """Add the students of a task to its stage, with what each reads beside its steps."""
    both = ["train"] + ["unlabelled"] * ("unlabelled" in splits and params.unlabelled)
    all_rows, seeds = sum(splits[split].rows for split in both), len(params.seeds)
    fitted, frozen, trunks = set(), set(), set()
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
        start = kind_of_student(spec), spec.ce_weight == 0, *drawn
        if start not in fitted:
            fitted.add(start)
            probes = seeds if kind.trains else 1
            for split in {*drawn, "tune"} & splits.keys() if kind.trains else ():
                stage.read(kind.reading, splits[split].batches(fixed_plan, EVAL_BATCH_SIZE), probes)
            stage.work += probes * fit * task.num_labels * sum(splits[split].rows for split in drawn)
        if not kind.trains:  # they share the states of the frozen backbone
            shared = ["validation", *task.diagnostics, "tune", *both]
            passes = {} if spec.pooling in frozen else dict.fromkeys(shared, 1)
            frozen.add(spec.pooling)
        trunk = spec.pooling, kind.below
        for split in {*passes, *both} & splits.keys():  # below late prompts each row is read once
            times = passes.get(split, 0) * (1 - kind.below) + kind.below * (trunk not in trunks)
            at_once = SCORED_AT_ONCE if kind.trains and split == "tune" else EVAL_BATCH_SIZE
            stage.read(kind.reading, splits[split].batches(fixed_plan, at_once), times)
        trunks.add(trunk)
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
