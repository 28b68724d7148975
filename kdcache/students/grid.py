"""All students of one task: checked before the first step, trained in passes, written one by one."""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from kdcache.cache.schema import top_k_of
from kdcache.data.task import read_task
from kdcache.digests import value_digest
from kdcache.encoder.load import load_tokenizer, machine_kind, model_digests, setup
from kdcache.encoder.plans import num_batches
from kdcache.encoder.pooling import check_cls_token
from kdcache.errors import ModelError, ParamsError
from kdcache.losses import Objective, check_terms
from kdcache.places import require_plain
from kdcache.project import TEACHERS, Project, require, require_task, require_tune
from kdcache.spread import Engine
from kdcache.store.parts import Parts
from kdcache.students.arms import ArmSpec, DistillParams, Name, resolve_arm
from kdcache.students.dry_run import check_backbone, check_poolings
from kdcache.students.loop import restore_runs, train_students
from kdcache.students.memory import in_what_fits, students_that_fit
from kdcache.students.methods import METHODS, late_layers_on, method_on
from kdcache.students.probes import Probes
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.results import RESULT, write_student
from kdcache.students.run import Run
from kdcache.students.student import build_student
from kdcache.students.trackers import check_trackers, track
from kdcache.students.training_rows import StudentRows, check_targets, join_rows, load_rows
from kdcache.students.transfer import donor_digests, donor_of, donor_prompt
from kdcache.students.watch import idle_terms
from kdcache.students.workers import take_turns


class Grid:
    """The arms × seeds of one task, over one backbone and one cache.

    Args:
        project: the project.
        task_name: the task.
        purpose: of the run; another one has scratch of its own.

    Raises:
        ParamsError, DataError, ModelError, CacheError: whatever would fail later, one line each.
    """

    def __init__(self, project: Project, task_name: str, purpose: Sequence[Any] = ()) -> None:
        require_task(project, task_name)
        self.project, self.purpose = project, purpose
        self.params = project.section("distill", DistillParams)
        self._check_params()
        self.folder = require(
            Path(project.paths.backbone), "the student backbone", "kdcache shrink", ModelError
        )
        self.specs = {name: resolve_arm(self.params, name, self.folder) for name in self.params.arms}
        self.task = read_task(Path(project.paths.data) / task_name, task_name)
        self._check_terms()
        self._load_backbone()
        splits, self.manifest = load_rows(
            project, self.task, self.backbone, self.params.max_length, self.params.expect,
            self.params.unlabelled,
        )  # fmt: skip
        rows = {split: part.encoded for split, part in splits.items()}
        check_backbone(self.backbone, rows, project.paths.backbone)
        self.use(splits)
        if self.params.select == "tune":
            require_tune(splits, "distill.select", task_name)
        params = asdict(replace(self.params, log_with=(), workers="auto"))  # neither moves a bit
        self.scratch = project.scratch(
            __name__, task_name, list(purpose), params, self.threads,
            {name: spec.pooling for name, spec in self.specs.items()},
            project.paths.backbone, model_digests(self.folder), self.manifest.digest,
            donor_digests(self.specs.values()),
        )  # fmt: skip
        shared = project.paths.parts if Engine.of(project.raw).engine == "ray" else None
        self.stored = Parts(self.scratch, f"the students of {task_name}", shared)
        self.probes = Probes(self.scratch)

    def _check_params(self) -> None:
        """Refuse what is wrong in the parameters, before a backbone is asked for."""
        for name in self.params.arms:
            require_plain(name, "distill.arms")
            if name in TEACHERS:
                raise ParamsError(f"distill.arms: {name} is what the teacher is called. Rename the arm.")
            resolve_arm(self.params, name)
        check_trackers(self.params.log_with, "distill.log_with")
        self.params.require_students()

    def _check_terms(self) -> None:
        """Refuse losses that the task cannot have, and say which tell little."""
        for name, spec in self.specs.items():
            for warning in check_terms(
                spec.terms, spec.ce_weight, f"distill.arms.{name}",
                self.task.num_labels, self.task.num_choices, spec.batch_size,
            ):  # fmt: skip
                print(warning, file=sys.stderr)

    def _load_backbone(self) -> None:
        """Load what all students share, for as many processes and threads as the machine has."""
        self.processes, self.threads = self.params.side_by_side(self.project.threads)
        device = setup(self.threads, self.params.dtype)
        if device.type != "cpu":
            self.processes = 1
        tokenizer = load_tokenizer(self.folder)
        for spec in self.specs.values():
            check_cls_token(spec.pooling, tokenizer, f"distill.arms.{spec.name}.pooling")
        pooling = next(iter(self.specs.values())).pooling
        self.backbone = Backbone.load(self.folder, pooling, self.params.dtype, self.params.dropout).to(device)
        self._fit_methods()

    def _fit_methods(self) -> None:
        """Replace a method that the backbone cannot carry, and say so."""
        kind, changed = self.backbone.config.model_type, []
        for name, spec in self.specs.items():
            method = method_on(spec.method, self.backbone.config)
            if method == "late_prefix":
                self.specs[name] = replace(
                    spec, late_layers=late_layers_on(self.backbone.config, spec.late_layers)
                )
            if method != spec.method:
                self.specs[name] = replace(spec, method=method)
                changed.append(name)
        if changed:
            print(
                f"distill: {kind} takes no keys and values from outside, so prefix becomes deep_prompt in: "
                f"{', '.join(changed)}", file=sys.stderr,
            )  # fmt: skip

    def use(self, splits: Mapping[str, StudentRows]) -> None:
        """Train and score on these splits from now on."""
        self.splits = dict(splits)
        train = self.splits["train"]
        more = [self.splits["unlabelled"]] if self.params.unlabelled and "unlabelled" in splits else []
        self.rows = join_rows([train, *more])
        self.splits["train"] = self.rows.first(len(train))  # held once

    def check(self, arms: Sequence[str], seeds: Sequence[int]) -> None:
        """Refuse what would fail at the first step.

        Raises:
            ParamsError: the teacher has no such member as an arm's targets need.
            ModelError: the backbone cannot carry an arm's prompt or pooling, or a student to start from is
                missing or of another backbone.
            CacheMissing: the cache lacks an arm's targets.
        """
        check_poolings(self.backbone, [self.specs[arm] for arm in arms], self.splits, self.folder)
        for spec in map(self.specs.__getitem__, arms):
            check_targets(spec, seeds, self.splits["train"].cached)
            place = METHODS[spec.method].place
            if place and (donor := donor_of(spec)):
                donor_prompt(donor, self.backbone, self.folder)
            self.backbone.check(place, spec.num_virtual_tokens, spec.max_length, spec.late_layers)

    def is_trained(self, made: Path, name: Name) -> bool:
        """Whether all files of a student are there; fetch them where another machine trained it."""
        return (made_folder(made, name) / RESULT).is_file() or self.stored.fetch_files(_part(name), made)

    def store(self, made: Path, name: Name) -> None:
        """Put a student's files where the first process sees them, if not on this disk."""
        if self.stored.root:
            folder = made_folder(made, name)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            files.sort(key=lambda path: path.name == RESULT)
            self.stored.store_files(_part(name), made, files)

    def train_passes(
        self, passes: Sequence[list[Name]], made: Path, after_step: Callable[[int], object], wait: bool
    ) -> None:
        """Train what no other process trains.

        Args:
            passes: students that train together.
            made: the folder, in scratch, that holds a folder per student.
            after_step: called with the number of students that took a step.
            wait: see ``take_turns``.
        """
        take_turns(
            passes,
            lambda some: self._of_pass(some, made, ".lock"),
            lambda some: all(self.is_trained(made, name) for name in some),
            lambda some: self.train_fitting(some, made, after_step),
            wait,
        )

    def passes(self, names: Sequence[Name]) -> Iterator[list[Name]]:
        """Cut students into those that train together.

        Students share a pass where prompts enter at one place, and virtual tokens and batch sizes
        agree. One with fewer steps drops out earlier. Each reference trains by itself.
        """
        kinds: dict[Any, list[Name]] = {}
        for name in names:
            spec = self.specs[name[0]]
            facts = METHODS[spec.method]
            kind: Any = name if facts.own_weights else (facts.place, spec.pooling)
            if facts.place:
                kind = (*kind, spec.num_virtual_tokens, spec.late_layers, spec.batch_size)
            kinds.setdefault(kind, []).append(name)
        for same in kinds.values():
            size = self.params.students_per_pass
            if size == "auto":
                on_cpu = self.backbone.device.type == "cpu"  # where stacking gains nothing
                prompts = METHODS[self.specs[same[0][0]].method].place
                size = students_that_fit(self.start(*same[0])) if prompts and not on_cpu else 1
            for first in range(0, len(same), size):
                yield same[first : first + size]

    def steps_of(self, spec: ArmSpec) -> int:
        """Return how many steps an arm trains; epochs are over all rows that some arm may draw."""
        if METHODS[spec.method].place is None and not METHODS[spec.method].own_weights:
            return 0  # a probe
        if spec.epochs is None:
            return spec.steps or 0
        return spec.epochs * num_batches(len(self.rows), self.params.batch_size)

    def start(self, arm: str, seed: int) -> Run:
        """Return a student before its first step."""
        spec, train, tune = self.specs[arm], self.splits["train"], self.splits.get("tune")
        backbone = self.backbone.read_by(spec.pooling)
        student = build_student(spec, self.task.num_outputs, seed, self.folder, backbone, train.encoded)
        if (donor := donor_of(spec)) and student.prompt is not None:
            student.prompt.start_from(donor_prompt(donor, backbone, self.folder))
        torch.manual_seed(seed)
        rows = (self.rows if spec.unlabelled else train).taught_by(spec.targets, seed)
        if spec.targets == "shuffled_within_class":
            rows = rows.shuffled_within_class(seed)
        objective = Objective(
            spec.terms, spec.ce_weight, self.backbone.config.hidden_size * self.task.num_choices,
            rows.teacher_features.shape[1], spec.label_smoothing, top_k_of(self.manifest.schema) is not None,
        ).to(self.backbone.device)  # fmt: skip
        rows = rows.read_by(backbone)
        tune = tune and tune.taught_by(spec.targets, seed).read_by(backbone)
        probe = self.probes.fit(student, rows, spec, tune)
        return Run(student, objective, rows, spec, seed, self.steps_of(spec), probe, tune)

    def train_fitting(self, names: Sequence[Name], made: Path, after_step: Callable[[int], object]) -> None:
        """Train a pass, in smaller ones where memory does not suffice; see ``train_passes``."""
        self.stored.require_machine_of_files(machine_kind(self.backbone.device))
        in_what_fits(
            names, self.task.name, after_step, lambda some, count: self._train_pass(some, made, count)
        )

    def _train_pass(self, names: Sequence[Name], made: Path, after_step: Callable[[int], object]) -> None:
        for name in names:
            shutil.rmtree(made_folder(made, name), ignore_errors=True)
        runs = [self.start(*name) for name in names]
        checkpoint = self._of_pass(names, made, ".pt")
        restore_runs(runs, checkpoint)
        after_step(sum(run.step for run in runs))
        train_students(runs, checkpoint, after_step)
        for run, name in zip(runs, names, strict=True):
            self._report(run)
            write_student(run, self.task, self.splits, self.manifest, self.folder, made_folder(made, name))
        checkpoint.unlink(missing_ok=True)

    def _of_pass(self, names: Sequence[Name], made: Path, suffix: str) -> Path:
        """Return a file in scratch that belongs to a pass."""
        key = value_digest([made_folder(made, name).relative_to(self.scratch).as_posix() for name in names])
        return self.scratch / f"{key[:16]}{suffix}"

    def _report(self, run: Run) -> None:
        """Tell the trackers of a student, and the console what it should know."""
        spec, task = run.spec, self.task.name
        settings = {"task": task, "arm": spec.name, "seed": run.seed, **spec.as_settings()}
        folder = Path(self.project.paths.runs) / "trackers"
        track(self.params.log_with, folder, f"{task}/{spec.name}-{run.seed}", settings, run.history)
        if run.diverged:
            self.say_diverged((spec.name, run.seed), *run.diverged)
            return
        for sentence in idle_terms([entry for entry in run.history if entry["step"]]):
            tqdm.write(f"{task} {spec.name}, seed {run.seed}: {sentence}", file=sys.stderr)

    def say_diverged(self, name: Name, step: int, last_finite_loss: float | None) -> None:
        """Tell the console that a student's loss is not finite since a step, and what it was before."""
        section = f"distill.arms.{name[0]}" if self.params.arms[name[0]].lr else "distill"
        last = "none" if last_finite_loss is None else f"{last_finite_loss:.4g}"
        tqdm.write(
            f"distill: {self.task.name} {name[0]}, seed {name[1]}: the loss must stay finite, got none at "
            f"step {step} (last finite: {last}). "
            f"Lower {section}.lr (now {self.specs[name[0]].lr:g}).",
            file=sys.stderr,
        )


def made_folder(made: Path, name: Name) -> Path:
    """Return where a student's files are written."""
    return made / f"{name[0]}-{name[1]}"


def _part(name: Name) -> str:
    """Return the name of a student's part: no two begin alike, as those of arms may."""
    return value_digest(name)[:32]
