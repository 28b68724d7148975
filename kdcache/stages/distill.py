"""cache + data + backbone → models/students/<task>/<arm>-<seed>/, metrics/<task>.json, curves/."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from kdcache.adapters import build_student
from kdcache.digests import file_digest
from kdcache.errors import ModelError, ParamsError, TrainingDiverged, nearest
from kdcache.extract import extract
from kdcache.losses import Objective, check_terms
from kdcache.metrics import compute_metrics, majority_metrics
from kdcache.models import WEIGHTS, setup
from kdcache.params import Count, NonNegativeFloat, NonNegativeInt, PositiveFloat, Range
from kdcache.results import mean_curves, summarise_arms
from kdcache.stages.targets import load_splits
from kdcache.stages.workspace import Project, place, require, require_task, require_tune, write_json
from kdcache.students.arms import Arm
from kdcache.students.best import BestEpoch
from kdcache.students.export import save_student
from kdcache.students.train import Settings, train_student, trained_parameters
from kdcache.students.watch import idle_terms
from kdcache.tasks.schema import read_task
from kdcache.tasks.splits import metric_columns

EVAL_BATCH_SIZE = 128
RESULT = "result.json"


@dataclass(frozen=True)
class DistillParams:
    """Section ``distill``.

    Args:
        method: of arms that name none: ``prefix`` (prompts) or ``head`` (the control without).
        num_virtual_tokens: length of the prompt, in tokens.
        lr: peak learning rate of the prompts.
        epochs: passes over the training rows with prompts.
        head_start_lr: peak learning rate of head and pooler alone, before the prompts.
        head_start_epochs: passes of that phase; all of the training of method ``head``.
        head_lr: peak learning rate of head and pooler beside the prompts.
        batch_size: rows per step; also the batch within which instances are related.
        max_length: in tokens.
        weight_decay: on head and pooler.
        warmup_fraction: share of the steps that warm up, 0 … 0.9.
        arms: name → arm.
        seeds: one student each per arm.
        unlabelled: whether arms with a teacher's term learn from the split ``unlabelled`` too,
            where the task has one.
        select: ``last`` epoch, or the one with the best first metric on ``tune``, the end of
            the head start included.
        expect: fields of the teacher's identity that a shared cache must have.
    """

    method: Literal["prefix", "head"]
    num_virtual_tokens: Count
    lr: PositiveFloat
    epochs: Count
    head_start_lr: PositiveFloat
    head_start_epochs: Count
    head_lr: PositiveFloat
    batch_size: Count
    max_length: Annotated[int, Range(8)]
    weight_decay: NonNegativeFloat
    warmup_fraction: Annotated[float, Range(0, 0.9)]
    arms: dict[str, Arm]
    seeds: tuple[NonNegativeInt, ...]
    unlabelled: bool
    select: Literal["last", "tune"]
    expect: dict[str, str | int]


def distill(project: Project, task_name: str) -> None:
    """Train every arm × seed of a task and write students, metrics and curves in place.

    Interrupted, the next run goes on after the last finished student.

    Raises:
        ParamsError, DataError, ModelError, CacheError, TrainingDiverged: one line each.
    """
    grid = Grid(project, task_name)
    made = grid.scratch / "students"
    results = grid.train(list(grid.params.arms), list(grid.params.seeds), made)
    write_json(grid.summarise(results), grid.scratch / "metrics.json")
    mean_curves(results).to_csv(grid.scratch / "curves.csv", index=False, lineterminator="\n")
    place(made, Path(project.paths.students) / task_name)
    place(grid.scratch / "metrics.json", Path(project.paths.metrics) / f"{task_name}.json")
    place(grid.scratch / "curves.csv", Path(project.paths.curves) / f"{task_name}.csv")
    shutil.rmtree(grid.scratch)


def explore(project: Project, task_name: str, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Train some arms × seeds into runs/<task>/, beside the pipeline's own outputs.

    Args:
        project: the project.
        task_name: the task.
        arms: names of arms; empty takes all of params.yaml.
        seeds: empty takes all of params.yaml.

    Returns:
        The same summary as metrics/<task>.json, of these students.

    Raises:
        As ``distill``.
    """
    grid = Grid(project, task_name)
    for arm in arms:
        if arm not in grid.params.arms:
            raise ParamsError(
                f"distill.arms: it must hold the arm, got {arm!r}. {nearest(arm, grid.params.arms)}"
            )
    made = grid.scratch / "students"
    results = grid.train(list(arms or grid.params.arms), list(seeds or grid.params.seeds), made)
    for result in results:
        name = f"{result['arm']}-{result['seed']}"
        place(made / name, Path(project.paths.runs) / task_name / name)
    shutil.rmtree(grid.scratch)
    return grid.summarise(results)


class Grid:
    """All that the students of one task share, checked before the first step."""

    def __init__(self, project: Project, task_name: str) -> None:
        require_task(project, task_name)
        self.project = project
        self.params = project.section("distill", DistillParams)
        for name, arm in self.params.arms.items():
            check_terms(arm.terms, arm.ce_weight, f"distill.arms.{name}")
        if not self.params.arms or not self.params.seeds:
            raise ParamsError("distill: arms and seeds must each hold at least one entry, got none.")
        self.backbone = require(
            Path(project.paths.backbone), "the student backbone", "kdcache shrink", ModelError
        )
        self.task = read_task(Path(project.paths.data) / task_name, task_name)
        for name, arm in self.params.arms.items():
            for warning in check_terms(
                arm.terms, arm.ce_weight, f"distill.arms.{name}",
                self.task.num_labels, self.task.num_choices, self.params.batch_size,
            ):  # fmt: skip
                print(warning, file=sys.stderr)
        self.device = setup(project.threads)
        self.splits, self.manifest = load_splits(
            project, self.task, self.params.max_length, self.params.expect
        )
        if self.params.select == "tune":
            require_tune(self.splits, "distill.select", task_name)
        self.scratch = project.scratch(
            "distill", task_name, asdict(self.params), project.threads, project.paths.backbone,
            file_digest(self.backbone / WEIGHTS), self.manifest.digest,
        )  # fmt: skip

    def train(self, arms: Sequence[str], seeds: Sequence[int], made: Path) -> list[dict[str, Any]]:
        """Train the students that are not there yet; return the results of all."""
        for arm in arms:
            if self.params.arms[arm].feature and not self.splits["train"].targets.features.shape[1]:
                raise ParamsError(
                    f"distill.arms.{arm}.feature: the cache must hold features, got logits alone. "
                    "Remove the term, or choose other arms with --arm."
                )
        results = []
        with tqdm(total=len(arms) * len(seeds), desc=f"{self.task.name} students", unit="student") as bar:
            for arm in arms:
                for seed in seeds:
                    bar.set_postfix_str(f"{arm}, seed {seed}")
                    folder = made / f"{arm}-{seed}"
                    if not (folder / RESULT).is_file():
                        shutil.rmtree(folder, ignore_errors=True)
                        self._train_one(arm, seed, folder)
                    results.append(json.loads((folder / RESULT).read_text(encoding="utf-8")))
                    bar.update()
        return results

    def _train_one(self, arm_name: str, seed: int, folder: Path) -> None:
        params, task = self.params, self.task
        arm, train = params.arms[arm_name], self.splits["train"]
        student = build_student(
            arm.method or params.method, self.backbone, task.num_outputs,
            params.num_virtual_tokens, params.max_length, train.encoded, seed,
        )  # fmt: skip
        prompts, head = trained_parameters(student)
        torch.manual_seed(seed)
        objective = Objective(
            arm.terms, arm.ce_weight, student.config.hidden_size * task.num_choices,
            train.targets.features.shape[1], arm.label_smoothing,
        )  # fmt: skip
        also = ("unlabelled",) if params.unlabelled and arm.uses_unlabelled else ()
        rows = train.training_rows(*(self.splits[split] for split in also if split in self.splits))
        if arm.targets == "shuffled_within_class":
            rows = rows.shuffled_within_class(seed)
        best = BestEpoch([*prompts, *head])
        settings = Settings(
            params.lr, params.epochs, params.head_start_lr, params.head_start_epochs, params.head_lr,
            params.batch_size, params.weight_decay, params.warmup_fraction,
        )  # fmt: skip
        history: list[dict[str, float]] = []

        def after_epoch(epoch: int, seen: dict[str, float]) -> None:
            scores = {}
            if "tune" in self.splits:
                scores = {f"tune_{k}": v for k, v in self._score(student, "tune").items()}
                scores.pop("tune_rows", None)
                if params.select == "tune":
                    best.see(epoch, scores[f"tune_{task.metrics[0]}"])
            history.append({"epoch": epoch, **seen, **scores})

        try:
            counts = train_student(student, objective, rows, settings, seed, self.device, after_epoch)
        except TrainingDiverged as error:
            raise TrainingDiverged(f"distill: {task.name} {arm_name}, seed {seed}: {error}") from None
        for sentence in idle_terms([entry for entry in history if entry["epoch"] or not prompts]):
            tqdm.write(f"{task.name} {arm_name}, seed {seed}: {sentence}", file=sys.stderr)
        best.restore()
        scores = self._score(student, "validation")
        result = {
            "arm": arm_name,
            "seed": seed,
            "method": arm.method or params.method,
            "validation": scores,
            "diagnostics": {split: self._score(student, split) for split in self._diagnostics},
            "history": history,
            "epoch": history[-1]["epoch"] if best.epoch is None else best.epoch,
            **counts,
            "examples": params.epochs * len(rows.encoded) if prompts else 0,
            "prompt_parameters": sum(p.numel() for p in prompts),
            "head_parameters": sum(p.numel() for p in head),
        }
        save_student(
            student,
            folder,
            self.backbone,
            task.num_outputs,
            self._card(result),
            self.splits["validation"].encoded,
        )
        write_json(result, folder / RESULT)

    def _score(self, student: torch.nn.Module, split: str) -> dict[str, float]:
        """Task metrics, and the share of rows where student and teacher agree."""
        rows = self.splits[split]
        logits, _ = extract(student, rows.encoded, self.task.num_outputs, EVAL_BATCH_SIZE, self.device)
        agreement = float(np.mean(logits.argmax(1) == rows.targets.logits.argmax(1)))
        names, columns = self.task.metrics_of(split), metric_columns(rows.table, self.task)
        return compute_metrics(names, rows.labels, logits, columns) | {"agreement": agreement}

    def _card(self, result: Mapping[str, Any]) -> dict[str, str]:
        scores = result["validation"]
        shown = ", ".join(f"{k} {v:.4f}" for k, v in scores.items() if k != "rows")
        return {
            "task": self.task.name,
            "labels": ", ".join(self.task.labels),
            "template": self.task.template,
            "arm": result["arm"],
            "seed": str(result["seed"]),
            "method": result["method"],
            "objective": self.params.arms[result["arm"]].describe(),
            f"validation ({scores.get('rows', 0)} rows)": shown,
            "teacher": self.manifest.teacher_digest,
            "cache": self.manifest.digest,
        }

    @property
    def _diagnostics(self) -> list[str]:
        """The extra splits that are there, with labels."""
        there = [split for split in self.task.diagnostics if split in self.splits]
        return [split for split in there if (self.splits[split].labels >= 0).any()]

    def summarise(self, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What metrics/<task>.json holds: each arm over its seeds, the teacher, the majority, the cost."""
        validation = self.splits["validation"]
        names, columns = self.task.metrics, metric_columns(validation.table, self.task)
        return {
            "task": self.task.name,
            "metric": self.task.metrics[0],
            "rows": {split: len(part.encoded) for split, part in self.splits.items()},
            "truncated": {split: float(part.encoded.truncated.mean()) for split, part in self.splits.items()},
            "majority": majority_metrics(names, validation.labels, self.task.num_labels, columns),
            "teacher": {
                "folds": self.manifest.num_folds,
                "all_rows": self.manifest.all_rows_teacher.get("validation", {}),
                "cached": self.manifest.metrics.get("validation", {}),
                "diagnostics": {split: self.manifest.all_rows_teacher[split] for split in self._diagnostics},
                "cost": self.manifest.cost,
            },
            "arm_order": list(dict.fromkeys(result["arm"] for result in results)),
            "arms": summarise_arms(results),
        }
