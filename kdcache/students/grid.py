"""All students of one task: what they share, which train in one pass, and what comes of each."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from kdcache.data.metrics import compute_metrics, majority_metrics
from kdcache.data.splits import metric_columns
from kdcache.data.task import read_task
from kdcache.digests import file_digest, value_digest
from kdcache.encoder.load import WEIGHTS, setup
from kdcache.errors import ModelError, ParamsError
from kdcache.losses import check_terms
from kdcache.project import Project, require, require_task, require_tune, write_json
from kdcache.students.arms import Arm, DistillParams
from kdcache.students.export import save_student
from kdcache.students.frozen import Backbone
from kdcache.students.lineup import Lineup
from kdcache.students.results import over_seeds, summarise_arms
from kdcache.students.run import Run
from kdcache.students.student import Student, predict
from kdcache.students.targets import load_splits
from kdcache.students.trackers import check_trackers, track
from kdcache.students.train import Checkpoint, train_students
from kdcache.students.watch import idle_terms

RESULT = "result.json"
PREDICTIONS = "validation.parquet"  # in each student's folder


class Grid:
    """The students of one task, checked before the first step."""

    def __init__(self, project: Project, task_name: str) -> None:
        require_task(project, task_name)
        self.project = project
        self.params = project.section("distill", DistillParams)
        for name, arm in self.params.arms.items():
            check_terms(arm.terms, arm.ce_weight, f"distill.arms.{name}")
            self.params.arm(name)
        check_trackers(self.params.log_with, "distill.log_with")
        if not self.params.arms or not self.params.seeds:
            raise ParamsError("distill: arms and seeds must each hold at least one entry, got none.")
        self.folder = require(
            Path(project.paths.backbone), "the student backbone", "kdcache shrink", ModelError
        )
        self.task = read_task(Path(project.paths.data) / task_name, task_name)
        for name, arm in self.params.arms.items():
            for warning in check_terms(
                arm.terms, arm.ce_weight, f"distill.arms.{name}",
                self.task.num_labels, self.task.num_choices, self.params.arm(name).batch_size,
            ):  # fmt: skip
                print(warning, file=sys.stderr)
        self.device = setup(project.threads)
        self.splits, self.manifest = load_splits(
            project, self.task, self.params.max_length, self.params.expect
        )
        if self.params.select == "tune":
            require_tune(self.splits, "distill.select", task_name)
        self.scratch = project.scratch(
            __name__, task_name, asdict(replace(self.params, log_with=())), project.threads,
            project.paths.backbone, file_digest(self.folder / WEIGHTS), self.manifest.digest,
        )  # fmt: skip

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen encoder that all students share."""
        return Backbone.load(self.folder, self.params.dtype, self.params.dropout).to(self.device)

    def train(self, arms: Sequence[str], seeds: Sequence[int], made: Path) -> list[dict[str, Any]]:
        """Train the students that are not there yet; return the results of all, arm by arm."""
        for name in arms:
            arm = self.params.arm(name)
            if arm.targets == "plain":
                self.splits["train"].targets.all_rows_teacher()  # refuses where there are none
            if arm.targets == "member":
                self._check_members(name, arm, seeds)
            if arm.feature and not self.splits["train"].targets.features.shape[1]:
                raise ParamsError(
                    f"distill.arms.{name}.feature: the cache must hold features, got logits alone. "
                    "Remove the term, or choose other arms with --arm."
                )
        names = [(arm, seed) for arm in arms for seed in seeds]
        folders = {name: made / "{}-{}".format(*name) for name in names}
        missing = [name for name in names if not (folders[name] / RESULT).is_file()]
        if missing:
            shared = Lineup(
                self.params, self.task, self.folder, self.backbone, self.splits, self.score_on_tune
            )
            with tqdm(total=0, desc=f"{self.task.name} students", unit="step") as bar:
                for some in shared.passes(missing):
                    bar.set_postfix_str(", ".join(f"{arm}-{seed}" for arm, seed in some))
                    self._train_pass(shared, some, folders, bar)
        return [json.loads((folders[name] / RESULT).read_text(encoding="utf-8")) for name in names]

    def _check_members(self, name: str, arm: Arm, seeds: Sequence[int]) -> None:
        members = len(self.splits["train"].targets.members)
        if not any(arm.terms.values()):
            raise ParamsError(
                f"distill.arms.{name}.targets: with member, the arm must have a teacher's term, got none. "
                "Add inter_class, or remove targets."
            )
        if arm.feature:
            raise ParamsError(
                f"distill.arms.{name}.targets: it must not be member with a loss on features, of which the "
                "cache keeps the ensemble's mean alone, got member. Remove one of the two."
            )
        if max(seeds) >= members:
            raise ParamsError(
                f"distill.arms.{name}.targets: with member, seeds must be below the ensemble's {members} "
                f"members, a teacher for each, got {max(seeds)}. Raise train_teacher.ensemble, or take "
                "fewer seeds."
            )

    def _train_pass(
        self, shared: Lineup, names: Sequence[tuple[str, int]], folders: Mapping[Any, Path], bar: Any
    ) -> None:
        for name in names:
            shutil.rmtree(folders[name], ignore_errors=True)
        runs = [shared.start(*name) for name in names]
        key = value_digest([folders[name].relative_to(self.scratch).as_posix() for name in names])
        checkpoint = Checkpoint(self.scratch / f"{key[:16]}.pt")
        checkpoint.restore(runs)
        bar.total += sum(run.steps for run in runs)
        bar.update(sum(run.step for run in runs))
        train_students(runs, shared.padded, shared.states, checkpoint, bar.update)
        for name, run in zip(names, runs, strict=True):
            self._finish(*name, run, folders[name])
        checkpoint.remove()

    def _finish(self, arm_name: str, seed: int, run: Run, folder: Path) -> None:
        """Score a trained student and write its folder; of a diverged one only what happened."""
        what = {"arm": arm_name, "seed": seed, "method": run.student.method}
        name, trackers = f"{self.task.name}/{arm_name}-{seed}", Path(self.project.paths.runs) / "trackers"
        track(self.params.log_with, trackers, name, self._settings(arm_name, seed), run.history)
        if run.diverged:
            step, last = run.diverged
            key = "head_start_lr" if step <= run.head_steps else "lr"
            tqdm.write(
                f"distill: {self.task.name} {arm_name}, seed {seed}: the loss must stay finite, got none at "
                f"step {step} (last finite: {'none' if last is None else f'{last:.4g}'}). "
                f"Lower distill.{key} (now {getattr(run.settings, key):g}).",
                file=sys.stderr,
            )
            write_json(what | {"diverged": {"step": step, "last_finite_loss": last}}, folder / RESULT)
            return
        student, history = run.student, run.history
        with_prompts = [entry for entry in history if entry["epoch"] or not student.tuned]
        for sentence in idle_terms(with_prompts):
            tqdm.write(f"{self.task.name} {arm_name}, seed {seed}: {sentence}", file=sys.stderr)
        logits = self._logits(student, "validation")
        result = what | {
            "validation": self._score(logits, "validation", arm_name, seed),
            "diagnostics": {
                split: self._score(self._logits(student, split), split, arm_name, seed)
                for split in self.diagnostics
            },
            "history": history,
            "epoch": history[-1]["epoch"] if run.best.epoch is None else run.best.epoch,
            "head_start_epoch": run.best_head.epoch or run.settings.head_start_epochs,
            "head_steps": run.head_steps,
            "steps": run.steps - run.head_steps,
            "examples": run.settings.epochs * len(run.rows) if student.tuned else 0,
            "prompt_parameters": sum(p.numel() for p in student.tuned),
            "head_parameters": sum(p.numel() for p in student.head_parameters),
        }
        about = {"max_length": self.params.max_length, "task": self.task}
        probe = self.splits["validation"].encoded
        save_student(student, folder, self.folder, about, self._card(result), probe)
        self._write_predictions(logits, folder / PREDICTIONS)
        write_json(result, folder / RESULT)

    def _settings(self, arm_name: str, seed: int) -> dict[str, Any]:
        """What applied to a student: the section's values, then its arm's."""
        settings = asdict(self.params) | asdict(self.params.arm(arm_name))
        for key in ("arms", "seeds", "expect", "log_with"):
            del settings[key]
        return {"task": self.task.name, "arm": arm_name, "seed": seed, **settings}

    def _write_predictions(self, logits: np.ndarray, path: Path) -> None:
        table = self.splits["validation"].table.select(["example_id", "label", "group"])
        table = table.append_column("logits", pa.array(list(logits), pa.list_(pa.float32())))
        pq.write_table(table, path, write_page_checksum=True)

    def _logits(self, student: Student, split: str) -> np.ndarray:
        return predict(student, self.splits[split].encoded)[0]

    def _score(self, logits: np.ndarray, split: str, arm_name: str, seed: int) -> dict[str, float]:
        """Task metrics, and the share of rows where the student agrees with what taught it."""
        rows = self.splits[split]
        taught = rows.taught(self.params.arm(arm_name), seed)
        agreement = float(np.mean(logits.argmax(1) == taught.logits.argmax(1)))
        names, columns = self.task.metrics_of(split), metric_columns(rows.table, self.task)
        return compute_metrics(names, rows.labels, logits, columns) | {"agreement": agreement}

    def score_on_tune(self, logits: np.ndarray, arm_name: str, seed: int) -> dict[str, float]:
        """The same after an epoch, as ``tune_…``."""
        scores = self._score(logits, "tune", arm_name, seed)
        return {f"tune_{name}": score for name, score in scores.items() if name != "rows"}

    def _card(self, result: Mapping[str, Any]) -> dict[str, str]:
        scores = result["validation"]
        arm, seed = result["arm"], result["seed"]
        member = f", member {seed}" if self.params.arms[arm].targets == "member" else ""
        return {
            "task": self.task.name,
            "labels": ", ".join(self.task.labels),
            "template": self.task.template,
            "arm": arm,
            "seed": str(seed),
            "method": result["method"],
            "objective": self.params.arms[arm].describe(),
            f"validation ({scores.get('rows', 0)} rows)": ", ".join(
                f"{k} {v:.4f}" for k, v in scores.items() if k != "rows"
            ),
            "teacher": self.manifest.teacher_digest + member,
            "cache": self.manifest.digest,
            "command": f"`kdcache distill --task {self.task.name} --arm {arm} --seed {seed}`",
        }

    @property
    def diagnostics(self) -> list[str]:
        """The extra splits that are there, with labels."""
        there = [split for split in self.task.diagnostics if split in self.splits]
        return [split for split in there if (self.splits[split].labels >= 0).any()]

    def summarise(self, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What metrics/<task>.json holds: each arm over its seeds, the teacher, the majority, the cost."""
        validation = self.splits["validation"]
        names, columns = self.task.metrics, metric_columns(validation.table, self.task)
        finished = [result for result in results if "diverged" not in result]
        members = {
            m: compute_metrics(names, validation.labels, logits, columns)
            for m, logits in enumerate(validation.targets.members)
        }
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
                "diagnostics": {split: self.manifest.all_rows_teacher[split] for split in self.diagnostics},
                "cost": self.manifest.cost,
            }
            | ({"members": over_seeds(members)} if members else {}),
            "arm_order": list(dict.fromkeys(result["arm"] for result in finished)),
            "arms": summarise_arms(finished),
            "diverged": [result for result in results if "diverged" in result],
        }
