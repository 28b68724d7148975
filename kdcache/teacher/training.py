"""The models of a teacher while they are trained: one on all rows, and one per fold."""

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product, starmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from kdcache.data.splits import assign_folds, existing_splits, open_split, read_split
from kdcache.data.task import Task, read_task
from kdcache.digests import SEAL, file_digest, seal
from kdcache.encoder.adapters import save_trained
from kdcache.encoder.encode_file import encode_file
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_tokenizer, machine_kind, model_digests, setup
from kdcache.encoder.parts import Classifier
from kdcache.encoder.pooling import check_cls_token, resolve_pooling
from kdcache.encoder.references import resolve
from kdcache.errors import DataError
from kdcache.places import IDENTITY, link_tree
from kdcache.project import Project, require_tune, write_json
from kdcache.spread import Engine
from kdcache.store.parts import Parts
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
from kdcache.teacher.processes import is_main, num_processes

USED = ("train", "tune", "validation")  # to train and to choose; of the others, only their tokens are checked


class Fit(NamedTuple):
    """One model of a teacher: the unit that workers share.

    Args:
        fold, member: see ``folder.model_folder``.
    """

    fold: int | None
    member: int

    def __str__(self) -> str:
        return f"{'all-rows' if self.fold is None else f'fold-{self.fold}'}-{self.member}"


class Training:
    """The models of a task's teacher while they are trained, each in a folder of its own in scratch.

    Args:
        project: the project.
        task_name: the task.

    Raises:
        As ``train_teacher``.
    """

    def __init__(self, project: Project, task_name: str) -> None:
        params = project.section("train_teacher", TrainTeacherParams)
        self.base = resolve(params.model)
        pooling, self.tokenizer = resolve_pooling(params.pooling, self.base), load_tokenizer(self.base)
        check_cls_token(pooling, self.tokenizer, "train_teacher.pooling")
        self.params = replace(params, pooling=pooling)
        self.data = data = Path(project.paths.data) / task_name
        self.task = read_task(data, task_name)
        self.there = there = existing_splits(data, self.task)
        if params.select == "tune":
            require_tune(there, "train_teacher.select", task_name)
        tables = {split: read_split(data, split, self.task) for split in there if split in USED}
        self.device = setup(project.threads, params.dtype)
        self.table = tables["train"]
        self.labels = self.table["label"].to_pylist()
        self.folds = _deal_folds(self.table, params)
        self.splits = {
            split: TokenisedSplit.of(self.task, table, self.tokenizer, params.max_length)
            for split, table in tables.items()
        }
        self.encoded, self.tune = self.splits["train"].encoded, self.splits.get("tune")
        self.scored = {name: rows for name, rows in self.splits.items() if name != "train"}
        rows = {name: file_digest(data / f"{name}.parquet") for name in tables}
        self.scratch = project.scratch(
            __name__, task_name, asdict(self.params), project.threads, rows, model_digests(self.base),
            project.paths.teacher,
            num_processes(),
        )  # fmt: skip
        shared = project.paths.parts if Engine.of(project.raw).engine == "ray" else None
        self.stored = Parts(self.scratch, f"the teacher of {task_name}", shared)
        self.fits = list(starmap(Fit, product(teacher_folds(params.folds), range(params.ensemble))))

    def check(self) -> None:
        """Refuse what would fail after hours, and say how many rows are cut."""
        params, rows = self.params, {split: rows.encoded for split, rows in self.splits.items()}
        for split in self.there:
            if split not in rows:
                file = open_split(self.data, split, self.task)
                rows[split] = encode_file(self.tokenizer, file, self.task, params.max_length, self.scratch)
        check_model(
            build_model(self.base, self.encoded, self.task.num_outputs, params), rows, self.task.num_outputs,
            params.model, params.num_virtual_tokens or 0,
        )  # fmt: skip
        if (cut := self.encoded.truncated).any():
            print(f"{self.task.name}: {cut.mean():.1%} of {len(cut)} rows are cut at max_length")

    def open(self) -> Callable[[Fit], None]:
        """Return what trains a model, on machines of one kind."""
        self.stored.require_machine_of_files(machine_kind(self.device))
        return self.train

    def cost(self, fit: Fit) -> Path:
        """Return the file of a model's cost, which is written when the model is finished."""
        return self.scratch / f"cost-{fit}.json"

    def is_trained(self, fit: Fit) -> bool:
        """Whether a model is finished; fetch it where another machine trained it."""
        return self.cost(fit).is_file() or self.stored.fetch_files(str(fit), self.scratch)

    def rows_of(self, fit: Fit) -> list[int]:
        """List the rows that a model is trained on."""
        return [
            i for i, label in enumerate(self.labels)
            if label >= 0 and (fit.fold is None or self.folds[i] != fit.fold)
        ]  # fmt: skip

    def train(self, fit: Fit) -> None:
        """Train a model, or go on with it, and store it where others need it; what is finished stays."""
        if not self.is_trained(fit):
            self._train(fit)
        if self.stored.root:
            of_probe = [self.scratch / PROBE] * (fit == self.fits[0])
            model_files = sorted(path for path in self._model(fit).rglob("*") if path.is_file())
            self.stored.store_files(str(fit), self.scratch, [*model_files, *of_probe, self.cost(fit)])

    def _train(self, fit: Fit) -> None:
        rows, params = self.rows_of(fit), replace(self.params, seed=self.params.seed + fit.member)
        what = "all rows" if fit.fold is None else f"all folds but {fit.fold}"
        what += f", seed {params.seed}" if params.ensemble > 1 else ""
        print(f"{self.task.name}: teacher on {what}, {len(rows)} rows, {params.epochs} epochs")
        checkpoints = self.scratch / f"checkpoints-{fit}"

        def start(model: Classifier) -> None:
            own = self.splits["train"].take(rows)
            probe = start_from_probe(model, own, self.tune, self.device, self.params.seed)
            if fit == self.fits[0]:
                write_json(score_probe(probe, model, self.scored, self.device), self.scratch / PROBE)

        score = _scorer(self.tune, self.device) if self.tune and params.select == "tune" else None
        model, spent = fine_tune(
            self.base, self.encoded, self.labels, rows, self.task.num_outputs, params, checkpoints, score,
            start,
        )  # fmt: skip
        if not is_main():
            return
        unfinished, folder = self.scratch / f"unfinished-{uuid.uuid4().hex}", self._model(fit)
        save_trained(model, unfinished, params.model, self.task.output_names)
        self.tokenizer.save_pretrained(str(unfinished))
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed before the cost was there
        unfinished.rename(folder)
        write_json(spent, self.cost(fit))
        shutil.rmtree(checkpoints, ignore_errors=True)

    def put_together(self) -> Path:
        """Make the folder of the finished teacher, in scratch."""
        made, cost = self.scratch / "made", {"steps": 0, "examples": 0}
        shutil.rmtree(made, ignore_errors=True)
        for fit in self.fits:
            folder = model_folder(made, fit.fold, fit.member)
            link_tree(self._model(fit), folder)
            spent = json.loads(self.cost(fit).read_bytes())
            cost = {key: cost[key] + spent[key] for key in cost}
        identity = _identity(made, self.task, self.params) | describe_rows(self.table, self.folds)
        write_json(identity, made / IDENTITY)
        write_json(cost, made / COST)
        shutil.copyfile(self.scratch / PROBE, made / PROBE)
        write_folds(self.table, self.folds, made)
        for path in sorted(made.glob("*.json")):
            if path.name != SEAL:
                seal(path)
        return made

    def _model(self, fit: Fit) -> Path:
        return self.scratch / f"model-{fit}"


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
    processes = num_processes()
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
    } | ({"processes": processes, "shard_weights": params.shard_weights} if processes > 1 else {})
