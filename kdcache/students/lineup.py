"""The students of one task before their first step: what they share, and who trains with whom."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcache.data.task import Task
from kdcache.encoder.batching import Padded
from kdcache.losses import Objective
from kdcache.students.arms import Arm, DistillParams
from kdcache.students.export import load_folder
from kdcache.students.frozen import Backbone
from kdcache.students.prompts import PROMPTS, STARTS
from kdcache.students.run import Run, Settings, TrainingRows
from kdcache.students.student import REFERENCES, Recipe, Student, build_student, predict
from kdcache.students.targets import SplitWithTargets
from kdcache.students.train import cls_states, students_that_fit


class Lineup:
    """What the students of one call share on the device, and each of them at step 0.

    Args:
        params: section ``distill``.
        task: what they learn.
        folder: the backbone's.
        backbone: loaded from it.
        splits: rows with targets.
        score: (logits of the split ``tune``, arm, seed) → scores, where there is that split.
    """

    def __init__(
        self,
        params: DistillParams,
        task: Task,
        folder: Path,
        backbone: Backbone,
        splits: Mapping[str, SplitWithTargets],
        score: Callable[[np.ndarray, str, int], dict[str, float]],
    ) -> None:
        self.params, self.task, self.folder, self.backbone = params, task, folder, backbone
        self.score = score
        self.tune = splits["tune"].encoded if "tune" in splits else None
        train = splits["train"]
        self.parts = [train]
        if params.unlabelled and "unlabelled" in splits:
            self.parts.append(splits["unlabelled"])
        self.rows = train.training_rows(*self.parts[1:]).to(backbone.device)
        self.labelled = self.rows.first(len(train.encoded)) if len(self.parts) > 1 else self.rows
        self._shared_logits: dict[tuple[str, int | None], torch.Tensor] = {}
        self.padded = Padded.of(self.rows.encoded, backbone.device)
        self.states = cls_states(backbone, self.rows.encoded, self.padded)

    def _teacher_logits(self, arm: Arm, seed: int) -> torch.Tensor:
        """Of what teaches a student, for ``rows``; students of one teacher share them."""
        key = arm.targets, seed if arm.targets == "member" else None
        if key not in self._shared_logits:
            logits = np.concatenate([part.taught(arm, seed).logits for part in self.parts])
            self._shared_logits[key] = torch.from_numpy(logits).to(self.backbone.device)
        return self._shared_logits[key]

    def passes(self, names: Sequence[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
        """Cut students into those that train together: like prompts and batches; references alone."""
        kinds: dict[Any, list[tuple[str, int]]] = {}
        for name in names:
            arm = self.params.arm(name[0])
            kind: Any = name if arm.method in REFERENCES else None
            if arm.method in PROMPTS:
                kind = PROMPTS[arm.method][1], arm.num_virtual_tokens, arm.batch_size
            kinds.setdefault(kind, []).append(name)
        for same in kinds.values():
            size = self.params.students_per_pass
            if size == "auto":
                size = students_that_fit(self.start(*same[0]), self.padded)
            for first in range(0, len(same), size):
                yield same[first : first + size]

    def start(self, arm_name: str, seed: int) -> Run:
        """A student at step 0."""
        params = self.params
        arm = params.arm(arm_name)
        student = self._build(arm, seed)
        torch.manual_seed(seed)
        objective = Objective(
            arm.terms, arm.ce_weight, self.backbone.config.hidden_size * self.task.num_choices,
            self.rows.teacher_features.shape[1], arm.label_smoothing,
        ).to(self.backbone.device)  # fmt: skip
        rows: TrainingRows = self.rows if arm.uses_unlabelled else self.labelled
        if arm.targets == "shuffled_within_class":
            rows = rows.shuffled_within_class(seed)
        if arm.targets in ("plain", "member"):
            rows = replace(rows, teacher_logits=self._teacher_logits(arm, seed)[: len(rows)])
        assert arm.lr is not None
        assert arm.epochs is not None
        assert arm.head_start_epochs is not None
        assert arm.batch_size is not None
        settings = Settings(
            arm.lr, arm.epochs, params.head_start_lr, arm.head_start_epochs, params.head_lr,
            arm.batch_size, params.weight_decay, params.warmup_fraction,
        )  # fmt: skip
        best_by = f"tune_{self.task.metrics[0]}" if params.select == "tune" else None
        scores = None
        if self.tune:
            scores = (
                lambda trained: self.score(self._tune_logits(trained), arm_name, seed),
                lambda trained: self.score(self._tune_logits_of_head(trained), arm_name, seed),
            )
        return Run(student, objective, rows, settings, seed, scores, best_by)

    def _tune_logits(self, student: Student) -> np.ndarray:
        assert self.tune is not None
        return predict(student, self.tune)[0]

    @torch.no_grad()
    def _tune_logits_of_head(self, student: Student) -> np.ndarray:
        """Of the head on states that no prompt has changed: what its phase is about, and no forward pass."""
        assert self.tune is not None
        logits, _ = student.head(self.tune_states.flatten(0, 1))
        return self.tune.by_row(logits).cpu().numpy()

    @cached_property
    def tune_states(self) -> torch.Tensor:
        """[CLS] states of ``tune``, of the frozen backbone."""
        assert self.tune is not None
        return cls_states(self.backbone, self.tune, Padded.of(self.tune, self.backbone.device))

    def _build(self, arm: Arm, seed: int) -> Student:
        assert arm.method is not None
        assert arm.num_virtual_tokens is not None
        assert arm.init is not None
        start: Any = arm.init if arm.init in STARTS else STARTS[0]
        recipe = Recipe(
            arm.method, self.task.num_outputs, arm.num_virtual_tokens, self.params.max_length, seed, start
        )
        student = build_student(recipe, self.folder, self.backbone, self.parts[0].encoded)
        if arm.init.startswith("student:") and student.prompt is not None:
            other = load_folder(Path(arm.init.removeprefix("student:")), self.backbone)[0]
            student.prompt.start_from(other.prompt)
        return student
