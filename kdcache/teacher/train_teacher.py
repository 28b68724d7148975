"""Stage train_teacher: a teacher on all rows and one per fold, with their identity."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from kdcache.data.splits import assign_folds, existing_splits, read_split, table_digest
from kdcache.data.task import Task, read_task
from kdcache.digests import SEAL, seal
from kdcache.encoder.adapters import save_trained
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_tokenizer, resolve, setup
from kdcache.encoder.parts import Classifier
from kdcache.encoder.pooling import check_cls_token, resolve_pooling
from kdcache.errors import DataError
from kdcache.places import IDENTITY, check_place, place
from kdcache.project import Project, require_task, require_tune, write_json
from kdcache.teacher.base_probe import SCORE_BATCH_SIZE, TokenisedSplit, score_probe, start_from_probe
from kdcache.teacher.dry_run import check_model
from kdcache.teacher.fine_tune import TrainTeacherParams, build_model, fine_tune
from kdcache.teacher.folder import (
    COST,
    PROBE,
    describe_rows,
    describe_teacher,
    model_folder,
    teacher_folds,
    write_folds,
)


def train_teacher(project: Project, task_name: str) -> None:
    """Fine-tune a teacher on all training rows, and one more per fold for cross-fitted logits.

    Each starts from the linear probe of the pretrained model on its own training rows. The probe of the
    teacher on all rows is scored on ``tune`` and ``validation``, for comparison.

    With ``ensemble``, each teacher is several models. An interrupted run resumes: finished models are
    kept, and the unfinished one continues from its last checkpoint.

    Raises:
        ParamsError: ``select: tune`` without a tune split, or a key contradicts the method.
        DataError: there are no prepared data, or too few labelled rows.
        ModelError: the model reference does not resolve, or the method does not work on that model.
        TrainingDiverged: the loss became NaN or infinite.
    """
    require_task(project, task_name)
    target = Path(project.paths.teacher) / task_name
    check_place(target, "teacher")
    with project.alone(target):
        made = _train(project, task_name)
        place(made, target)
        shutil.rmtree(made.parent)


def _train(project: Project, task_name: str) -> Path:
    """Train all models; return the folder that is to be put in place, which lies in the scratch folder."""
    params = project.section("train_teacher", TrainTeacherParams)
    base = resolve(params.model)
    pooling, tokenizer = resolve_pooling(params.pooling, base), load_tokenizer(base)
    check_cls_token(pooling, tokenizer, "train_teacher.pooling")
    params = replace(params, pooling=pooling)
    data = Path(project.paths.data) / task_name
    task = read_task(data, task_name)
    there = existing_splits(data, task)
    if params.select == "tune":
        require_tune(there, "train_teacher.select", task_name)
    tables = {split: read_split(data, split, task) for split in there}
    device = setup(project.threads, params.dtype)

    train = tables["train"]
    labels = train["label"].to_pylist()
    folds = _deal_folds(train, params)
    splits: dict[str, TokenisedSplit] = {
        split: TokenisedSplit.of(task, table, tokenizer, params.max_length) for split, table in tables.items()
    }
    encoded, tune = splits["train"].encoded, splits.get("tune")
    check_model(
        build_model(base, encoded, task.num_outputs, params),
        {split: rows.encoded for split, rows in splits.items()}, task.num_outputs, params.model,
        params.num_virtual_tokens or 0,
    )  # fmt: skip
    if encoded.truncated.any():
        print(f"{task_name}: {encoded.truncated.mean():.1%} of {len(encoded)} rows are cut at max_length")
    score = _scorer(tune, device) if tune and params.select == "tune" else None
    scored = {name: split for name, split in splits.items() if name in ("tune", "validation")}
    digests = [table_digest(tables[name]) for name in ("train", *scored)]
    scratch = project.scratch(
        __name__, task_name, asdict(params), project.threads, digests, project.paths.teacher
    )
    made = scratch / "made"
    if any(scratch.glob("cost-*.json")) and not made.is_dir():  # put in place, then the process was killed
        shutil.rmtree(scratch)
    cost = {"steps": 0, "examples": 0}
    for fold, member in itertools.product(teacher_folds(params.folds), range(params.ensemble)):
        rows = [i for i, label in enumerate(labels) if label >= 0 and (fold is None or folds[i] != fold)]
        folder = model_folder(made, fold, member)
        name = f"{'all-rows' if fold is None else f'fold-{fold}'}-{member}"
        done = scratch / f"cost-{name}.json"
        if not done.is_file():
            shutil.rmtree(folder, ignore_errors=True)  # models made later may lie in it, none made before
            seed = params.seed + member
            what = "all rows" if fold is None else f"all folds but {fold}"
            what += f", seed {seed}" if params.ensemble > 1 else ""
            print(f"{task_name}: teacher on {what}, {len(rows)} rows, {params.epochs} epochs")
            checkpoints = scratch / f"checkpoints-{name}"

            def start(model: Classifier, rows: list[int] = rows, first: bool = folder == made) -> None:
                own = splits["train"].take(rows)
                probe = start_from_probe(model, own, tune, device, params.seed)
                if first:
                    write_json(score_probe(probe, model, scored, device), scratch / PROBE)

            model, spent = fine_tune(
                base, encoded, labels, rows, task.num_outputs, replace(params, seed=seed), checkpoints,
                score, start,
            )  # fmt: skip
            save_trained(model, folder, params.model, task.output_names)
            tokenizer.save_pretrained(str(folder))
            write_json(spent, done)
            shutil.rmtree(checkpoints)
        spent = json.loads(done.read_bytes())
        cost = {key: cost[key] + spent[key] for key in cost}

    write_json(_identity(made, task, params) | describe_rows(train, folds), made / IDENTITY)
    write_json(cost, made / COST)
    shutil.copyfile(scratch / PROBE, made / PROBE)
    write_folds(train, folds, made)
    for path in sorted(made.glob("*.json")):
        if path.name != SEAL:
            seal(path)
    return made


def _scorer(tune: TokenisedSplit, device: torch.device) -> Callable[[nn.Module], float]:
    """Return a function that computes a model's first metric on ``tune``."""

    def score(model: nn.Module) -> float:
        return tune.score(extract(model, tune.encoded, tune.task.num_outputs, SCORE_BATCH_SIZE, device)[0])

    return score


def _deal_folds(train: pa.Table, params: TrainTeacherParams) -> np.ndarray:
    labels = train["label"].to_pylist()
    if sum(label >= 0 for label in labels) < 2:
        raise DataError("train: the split must have at least 2 labelled rows. Check prepare.max_rows.")
    if params.folds == 0:
        return np.full(len(labels), -1, dtype=np.int8)
    return assign_folds(labels, train["group"].to_pylist(), params.folds, params.seed)


def _identity(made: Path, task: Task, params: TrainTeacherParams) -> dict[str, object]:
    return {
        "task": task.name,
        "template": task.template,
        "labels": list(task.labels),
        "num_labels": task.num_labels,
        "max_length": params.max_length,
        "model": params.model,
        "method": params.method,
        "ensemble": params.ensemble,
        **describe_teacher(made, params.folds, params.ensemble),
    }
