"""What all stages share: the project's parameters and paths, scratch, and moving into place."""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import kdcache
from kdcache.digests import value_digest
from kdcache.errors import KdcacheError, ParamsError, nearest
from kdcache.params import Count, build, read_params

T = TypeVar("T")

# The file in a teacher's folder that identifies it. Its fields are copied into the cache's manifest.
IDENTITY = "identity.json"


@dataclass(frozen=True)
class Paths:
    """Where everything lies; ``<task>`` is appended where a thing is made per task."""

    tasks: str  # task files of your own; the folder may be absent
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


@dataclass(frozen=True)
class _TopLevel:
    tasks: tuple[str, ...]
    threads: Count
    paths: Paths


@dataclass(frozen=True)
class Project:
    """A checked params.yaml: the top level at once, each section when its stage asks.

    ``task_files`` are those named on the command line, beside the ones in ``paths.tasks``.
    """

    raw: dict[str, Any]
    tasks: tuple[str, ...]
    threads: int
    paths: Paths
    task_files: tuple[Path, ...] = ()

    @classmethod
    def load(cls, overrides: Iterable[str] = (), params_file: str = "params.yaml") -> "Project":
        """Read params.yaml in the current folder.

        Raises:
            ParamsError: see ``params.read_params`` and ``params.build``.
        """
        raw = read_params(params_file, overrides)
        top = build(_TopLevel, {k: raw[k] for k in ("tasks", "threads", "paths") if k in raw}, "params")
        return cls(raw, top.tasks, top.threads, top.paths)

    def only(self, tasks: Iterable[str]) -> "Project":
        """The same project with some of its tasks."""
        return replace(self, tasks=tuple(tasks))

    def section(self, name: str, cls: type[T]) -> T:
        """Return section ``name`` as its dataclass, every bad key reported at once."""
        return build(cls, self.raw.get(name, {}), name)

    def scratch(self, stage: str, *made_of: Any) -> Path:
        """A resumable folder, keyed by all that decides its content, kdcache's source included."""
        key = value_digest([*made_of, source_digest()])
        folder = Path(self.paths.scratch) / f"{stage}-{key[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def timed(self, stage: str, task: str = "all") -> Iterator[None]:
        """Write the wall time of a block to ``timings/``, which DVC does not track."""
        start = time.perf_counter()
        yield
        seconds = round(time.perf_counter() - start, 1)
        folder = Path(self.paths.timings)
        folder.mkdir(parents=True, exist_ok=True)
        entry = {"stage": stage, "task": task, "seconds": seconds, "threads": self.threads}
        (folder / f"{stage}-{task}.json").write_text(json.dumps(entry) + "\n")


def source_digest() -> str:
    """sha256 over kdcache's own source, so that scratch never outlives the code that wrote it."""
    digest = hashlib.sha256()
    root = Path(kdcache.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def place(made: Path, target: Path) -> None:
    """Move a finished file or folder into place; what was there before goes only then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        old = made.parent / f"{made.name}.replaced"
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
        os.replace(made, target)
        shutil.rmtree(old)
    else:
        os.replace(made, target)


def write_json(value: Any, path: Path) -> None:
    """Write JSON with sorted keys and a final newline: the same value, the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def run_stage(stage: Callable[..., None], per_task: bool) -> None:
    """The door of the scripts in pipeline/: errors in one line, wall time into timings/.

    Arguments of the script: the task, where the stage runs per task, and ``--params FILE`` for
    a study, which has a params.yaml of its own.

    Args:
        stage: ``stage(project, task)`` or ``stage(project)``.
        per_task: which of the two.
    """
    parser = argparse.ArgumentParser(description=(stage.__doc__ or "").splitlines()[0])
    if per_task:
        parser.add_argument("task", help="name of the task")
    parser.add_argument("--params", default="params.yaml", help="the parameters file")
    arguments = parser.parse_args()
    tasks = [arguments.task] if per_task else []
    with errors_in_one_line():
        project = Project.load(params_file=arguments.params)
        with project.timed(stage.__name__, *tasks):
            stage(project, *tasks)


@contextlib.contextmanager
def errors_in_one_line(debug: bool = False) -> Iterator[None]:
    """Turn expected failures into one line on standard error and an exit code ≠ 0."""
    try:
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
    except KdcacheError as error:
        if debug:
            raise
        print(error, file=sys.stderr)
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
