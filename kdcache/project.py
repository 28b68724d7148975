"""The project: its parameters and paths, its scratch folder, and how outputs move into place."""

import argparse
import contextlib
import errno
import importlib
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import filelock

from kdcache.code import STAGES, code_digest
from kdcache.digests import value_digest
from kdcache.errors import (
    KdcacheError,
    ParamsError,
    missing_extra,
    nearest,
    printable,
    system_error,
    system_line,
)
from kdcache.params import Count, build, read_params
from kdcache.places import CLEANING, LOCKS, alone, replacing, require_task_name
from kdcache.torchrun import first_shows_errors, is_first, require_one_process

T = TypeVar("T")

# Of fields that not all identities have.
IDENTITY_DEFAULTS = {"pooling": "cls", "processes": 1, "shard_weights": False}
SCRATCH = re.compile(r"[a-z_]+-[0-9a-f]{16}")  # what clean removes

# Teachers among the arms of predictions.
ALL_ROWS = "teacher"  # trained on all rows, where others were trained on folds
MEMBER = "teacher_member"  # of an ensemble; the member's number is its seed
CACHED = "teacher_cached"  # the one whose logits are cached
TEACHERS = (ALL_ROWS, MEMBER, CACHED)

# The file in the backbone's folder that says how it was made, and what probes read from it.
BACKBONE_RECORD = "shrink.json"


@dataclass(frozen=True)
class Paths:
    """Where everything lies; ``<task>`` is appended where a thing is made per task."""

    tasks: str  # task files of your own; the folder may be absent, but not for ``dvc repro``
    data: str
    teacher: str
    backbone: str
    cache: str
    students: str
    metrics: str
    predictions: str
    curves: str
    reports: str
    runs: str
    timings: str
    scratch: str
    evaluations: str = "evaluations"
    parts: str | None = None  # of unfinished caches; None for scratch

    @property
    def explored(self) -> "Paths":
        """Where ``kdcache distill`` puts what the stage of that name puts under the project's root."""
        names = ("metrics", "predictions", "curves", "reports")
        return replace(self, students=self.runs, **{name: f"{self.runs}/{name}" for name in names})

    @property
    def lookup(self) -> tuple["Paths", "Paths"]:
        """Where students and what is known of them are looked for, in this order."""
        return self, self.explored


@dataclass(frozen=True)
class _TopLevel:
    tasks: tuple[str, ...]
    threads: Count
    paths: Paths
    fine_tune: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Project:
    """A checked params.yaml: the top level at once, each section when its stage asks.

    ``task_files`` are those named on the command line, beside the ones in ``paths.tasks``. ``fine_tune`` is
    None in a params.yaml from before it was a key: the pipeline then fine-tunes a teacher for each task.
    ``taken_up`` names what stages did not do themselves, since an earlier run or another machine had.
    """

    raw: dict[str, Any]
    tasks: tuple[str, ...]
    threads: int
    paths: Paths
    task_files: tuple[Path, ...] = ()
    fine_tune: tuple[str, ...] | None = None
    taken_up: list[str] = field(default_factory=list, compare=False)

    @classmethod
    def load(cls, overrides: Iterable[str] = ()) -> "Project":
        """Read params.yaml in the current folder.

        Args:
            overrides: strings such as ``distill.lr=1e-3``.

        Raises:
            ParamsError: see ``params.read_params`` and ``params.build``.
        """
        return cls.of(read_params(overrides=overrides))

    @classmethod
    def of(cls, raw: dict[str, Any]) -> "Project":
        """Check what params.yaml holds."""
        keys = [field.name for field in fields(_TopLevel)]
        top = build(_TopLevel, {key: raw[key] for key in keys if key in raw}, "params")
        for task in top.tasks:
            require_task_name(task, "tasks")
        return cls(raw, top.tasks, top.threads, top.paths, fine_tune=top.fine_tune)

    def only(self, tasks: Iterable[str]) -> "Project":
        """The same project with some of its tasks."""
        return replace(self, tasks=tuple(tasks))

    def section(self, name: str, cls: type[T]) -> T:
        """Return section ``name`` as its dataclass, every bad key reported at once."""
        return build(cls, self.raw.get(name, {}), name)

    def outputs(self, task: str) -> Paths | None:
        """Return where a task's metrics lie, the first of ``Paths.lookup``; None without students."""
        return next((p for p in self.paths.lookup if (Path(p.metrics) / f"{task}.json").is_file()), None)

    def scratch_name(self, module: str, *made_of: Any) -> str:
        """Name a resumable folder, by a key of all that decides its content.

        Args:
            module: ``__name__`` of the caller; the code that it reaches is part of the key, so that
                scratch never outlives the code that wrote it.
            made_of: everything else that decides the content, of plain JSON types.
        """
        key = value_digest([*made_of, code_digest(module)])
        return f"{module.rpartition('.')[2]}-{key[:16]}"

    def scratch(self, module: str, *made_of: Any, goes_on: bool = True) -> Path:
        """Make the folder ``scratch_name``; ``goes_on`` where a later run takes up what is in it."""
        folder = Path(self.paths.scratch) / self.scratch_name(module, *made_of)
        if goes_on and folder.is_dir() and any(folder.iterdir()):
            self.taken_up.append(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def timed(self, stage: str, task: str = "all") -> Iterator[None]:
        """Write the wall time of a block to ``timings/``, which DVC does not track.

        One that ended what an earlier run had begun leaves none: it took only the rest of the time.
        """
        taken_up, start = len(self.taken_up), time.perf_counter()
        yield
        if not is_first():
            return
        path = Path(self.paths.timings) / f"{stage}-{task}.json"
        if len(self.taken_up) > taken_up:
            return path.unlink(missing_ok=True)
        seconds = round(time.perf_counter() - start, 1)
        write_json({"stage": stage, "task": task, "seconds": seconds, "threads": self.threads}, path)

    def alone(self, *targets: Path) -> contextlib.AbstractContextManager[None]:
        """Keep other processes from writing the same places, see ``places.alone``."""
        return alone(Path(self.paths.scratch), *targets)


def write_json(value: Any, path: Path) -> None:
    """Write JSON with sorted keys, whole or not at all. The same value gives the same bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def clean(project: Project) -> int:
    """Remove what interrupted runs left in the scratch folder, and nothing else that may lie there.

    Returns:
        How many bytes were freed.

    Raises:
        KdcacheError: something is being written right now; nothing is removed.
    """
    root = Path(project.paths.scratch)
    with contextlib.ExitStack() as held:
        locks = sorted(root.glob(LOCKS))
        if locks:  # else nothing was ever written, and there may be no folder
            held.enter_context(filelock.FileLock(root / CLEANING))
        for path in locks:
            try:
                held.enter_context(filelock.FileLock(path).acquire(timeout=0))
            except filelock.Timeout:
                raise KdcacheError(
                    f"{root}: nothing may be in the making, got {path.stem} at work. Wait for it to end."
                ) from None
        freed = 0
        for path in sorted(root.glob("*")):
            if path.is_dir() and SCRATCH.fullmatch(path.name) and not path.is_symlink():
                freed += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                shutil.rmtree(path)
    return freed


def load_stage(name: str) -> Callable[..., None]:
    """Import the function of a stage, which has the stage's name."""
    return getattr(importlib.import_module(STAGES[name]), name)


def run_stage(name: str, per_task: bool) -> None:
    """Run a stage as its script in pipeline/ does: errors in one line, wall time into timings/.

    Args:
        name: of the stage.
        per_task: whether the script takes a task as its argument.
    """
    parser = argparse.ArgumentParser(description=f"Run the stage {name}.")
    if per_task:
        parser.add_argument("task", help="name of the task")
    tasks = list(vars(parser.parse_args()).values())
    with errors_in_one_line(several=name == "train_teacher"):
        stage = load_stage(name)
        project = Project.load()
        with project.timed(name, *tasks):
            stage(project, *tasks)


@contextlib.contextmanager
def errors_in_one_line(debug: bool = False, several: bool = False) -> Iterator[None]:
    """Turn expected failures into one line on standard error and an exit code ≠ 0.

    Args:
        debug: raise them instead.
        several: whether torchrun may start several processes of what is inside, which share its work.
    """
    try:
        with first_shows_errors():
            if not several:
                require_one_process()
            yield
    except KeyboardInterrupt:
        if debug:
            raise
        print(
            "Interrupted: finished work is kept, outputs in place are untouched. "
            "Run the same command again to go on.",
            file=sys.stderr,
        )
        sys.exit(130)
    except ModuleNotFoundError as error:
        if debug or not (message := missing_extra(error)):
            raise
        print(message, file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        known = error if isinstance(error, KdcacheError) else system_error(error)
        if (
            debug or known is None or getattr(known, "errno", 0) == errno.EPIPE
        ):  # click ends a broken pipe in silence
            raise
        print(printable(system_line(known) if isinstance(known, OSError) else str(known)), file=sys.stderr)
        sys.exit(1)


def require(path: Path, what: str, command: str, error: type[KdcacheError]) -> Path:
    """Return ``path`` if it is there.

    Raises:
        error: it is not; the message ends with the command that builds it.
    """
    if not path.exists():
        raise error(f"{path}: {what} must exist, got nothing there. Run: {command}")
    return path


def require_tune(splits: Iterable[str], key: str, task: str) -> None:
    """Raise ParamsError unless a task has the split that ``key``: tune chooses on."""
    if "tune" not in splits:
        raise ParamsError(
            f"{key}: it must be last without a tune split, got tune. Set prepare.tune_fraction above 0 "
            f"and run: kdcache prepare --task {task}"
        )


def require_task(project: Project, task: str) -> None:
    """Raise ParamsError unless ``task`` is among the project's tasks."""
    if task not in project.tasks:
        raise ParamsError(f"tasks: it must list the task, got {task!r}. {nearest(task, project.tasks)}")
