"""Stage train_teacher: a teacher on all rows and one per fold, with their identity."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from kdcache.data.metrics import compute_metrics
from kdcache.data.splits import (
    assign_folds,
    existing_splits,
    metric_columns,
    read_split,
    sequences,
    table_digest,
)
from kdcache.data.task import Task, read_task
from kdcache.encoder.adapters import save_adapter
from kdcache.encoder.batching import encode
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_tokenizer, resolve, save_model, setup
from kdcache.errors import DataError
from kdcache.project import (
    IDENTITY,
    Project,
    place,
    require_task,
    require_tune,
    write_json,
)
from kdcache.teacher.fine_tune import TrainTeacherParams, fine_tune
from kdcache.teacher.folder import COST, FOLDS, describe_teacher, model_folder, teacher_folds

SCORE_BATCH_SIZE = 64


def train_teacher(project: Project, task_name: str) -> None:
    """Fine-tune a teacher on all training rows, and one more per fold for cross-fitted logits.

    With ``ensemble``, each teacher is several models. An interrupted run resumes: finished models are
    kept, and the unfinished one continues from its last checkpoint.

    Raises:
        ParamsError: ``select: tune`` without a tune split, or a key contradicts the method.
        DataError: there are no prepared data, or too few labelled rows.
        ModelError: the model reference does not resolve, or the method does not work on that model.
        TrainingDiverged: the loss became NaN or infinite.
    """
    params = project.section("train_teacher", TrainTeacherParams)
    require_task(project, task_name)
    base = resolve(params.model)
    data = Path(project.paths.data) / task_name
    task = read_task(data, task_name)
    train = read_split(data, "train", task)
    device = setup(project.threads)

    labels = train["label"].to_pylist()
    folds = _deal_folds(train, params)
    tokenizer = load_tokenizer(base)
    encoded = encode(tokenizer, *sequences(train, task), params.max_length, task.truncate, task.num_choices)
    if encoded.truncated.any():
        print(f"{task_name}: {encoded.truncated.mean():.1%} of {len(encoded)} rows are cut at max_length")

    made_of = [task_name, asdict(params), project.threads, table_digest(train)]
    score = None
    if params.select == "tune":
        require_tune(existing_splits(data, task), "train_teacher.select", task_name)
        tune = read_split(data, "tune", task)
        made_of.append(table_digest(tune))
        score = _scorer(task, tune, tokenizer, params, device)
    scratch = project.scratch(__name__, *made_of)
    made = scratch / "made"
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
            model, spent = fine_tune(
                base, encoded, labels, rows, task.num_outputs, replace(params, seed=seed), checkpoints, score
            )
            _save(model, tokenizer, folder, params.model)
            write_json(spent, done)
            shutil.rmtree(checkpoints)
        spent = json.loads(done.read_text())
        cost = {key: cost[key] + spent[key] for key in cost}

    write_json(_identity(made, task, params), made / IDENTITY)
    write_json(cost, made / COST)
    folds_table = pa.table({"example_id": train["example_id"], "fold": pa.array(folds, pa.int8())})
    pq.write_table(folds_table, made / FOLDS, write_page_checksum=True)
    place(made, Path(project.paths.teacher) / task_name)
    shutil.rmtree(scratch)


def _save(model: PreTrainedModel | PeftModel, tokenizer: Any, folder: Path, base: str) -> None:
    if isinstance(model, PeftModel):
        save_adapter(model, folder, base)
        tokenizer.save_pretrained(str(folder))
    else:
        save_model(model, tokenizer, folder)


def _scorer(
    task: Task, tune: pa.Table, tokenizer: Any, params: TrainTeacherParams, device: torch.device
) -> Callable[[nn.Module], float]:
    """Return a function that computes a model's first metric on ``tune``."""
    encoded = encode(tokenizer, *sequences(tune, task), params.max_length, task.truncate, task.num_choices)
    labels, columns = tune["label"].to_numpy(), metric_columns(tune, task)

    def score(model: nn.Module) -> float:
        logits, _ = extract(model, encoded, task.num_outputs, SCORE_BATCH_SIZE, device)
        return compute_metrics(task.metrics[:1], labels, logits, columns)[task.metrics[0]]

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
