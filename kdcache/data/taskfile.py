"""A task file: a task of your own as data, in TOML or YAML. Its name is the file's."""

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from kdcache.data.rows import PLACE, Layout
from kdcache.digests import value_digest
from kdcache.errors import ParamsError
from kdcache.params import NonNegativeInt, Range, build, parse_yaml

ENDINGS = (".toml", ".yaml")


@dataclass(frozen=True)
class Files:
    """Split → file, or split → the hub's name of it where rows come from a hub.

    ``tune`` is cut from train where none is named; ``unlabelled`` needs no label column, and
    its labels are not read where it has one.
    """

    train: str
    tune: str | None = None
    validation: str | None = None
    test: str | None = None
    unlabelled: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """Those that are there, in canonical order."""
        return {split: name for split, name in vars(self).items() if name is not None}


@dataclass(frozen=True)
class HoldOut:
    """Validation rows taken from train: stratified, groups together.

    Args:
        fraction: share of train, 0.05 … 0.5.
        seed: of the choice.
    """

    fraction: Annotated[float, Range(0.05, 0.5)]
    seed: NonNegativeInt = 0


@dataclass(frozen=True)
class Hub:
    """A data set on the hub, read by ``datasets``; pinned, or it is another one tomorrow.

    Args:
        name: such as ``aps/super_glue``.
        revision: a commit.
        config: one of its configurations, where it has several.
    """

    name: str
    revision: str
    config: str | None = None


@dataclass(frozen=True)
class TaskFile:
    """What a task file says.

    Args:
        splits: split → file. Names are relative to ``prepare.path`` with ``prepare.source:
            files``, else to the task file's folder.
        text: a column, or a template such as ``{title}. {body}``: the first sequence.
        text_pair: the second one, where the task has two.
        label: the column of the label.
        labels: the labels in index order, or label → name to show; None takes those of train,
            sorted, and then a label that train lacks is an error.
        id: a column of unique ids; None numbers the rows of each file from 1.
        group: a column; rows that agree in it stay on one side of every cut. None groups
            rows of the same text.
        metrics: the first is the one that reports show; accuracy is always scored.
        holdout: makes validation, where no file does.
        read: how the files are written.
        hub: where rows come from the hub instead.
    """

    splits: Files
    text: str
    text_pair: str | None = None
    label: str = "label"
    labels: tuple[str | int | bool, ...] | dict[str, str] | None = None
    id: str | None = None
    group: str | None = None
    metrics: tuple[Literal["accuracy", "macro_f1", "matthews"], ...] = ("accuracy",)
    holdout: HoldOut | None = None
    read: Layout = field(default_factory=Layout)
    hub: Hub | None = None

    @property
    def label_names(self) -> tuple[str, ...]:
        """Labels as shown, in index order; empty where they are those of train."""
        labels = self.labels.values() if isinstance(self.labels, dict) else self.labels or ()
        return tuple(map(str, labels))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that every row must have, whatever its split."""
        texts = [name for text in (self.text, self.text_pair) if text for name in places(text)]
        others = [name for name in (self.id, self.group) if name]
        return tuple(dict.fromkeys(texts + others))

    def template(self, name: str) -> str:
        """Name and version of the rendering; another template is another version."""
        return f"{name}/{value_digest([self.text, self.text_pair])[:8]}"


def places(template: str) -> list[str]:
    """The columns that a template names; a bare column is its own template.

    >>> places("{title}. {body}"), places("#1 String")
    (['title', 'body'], ['#1 String'])
    """
    return PLACE.findall(template) or [template]


def read_task_file(path: Path) -> TaskFile:
    """Read and check a task file.

    Raises:
        ParamsError: no such file, broken TOML or YAML, or one line per bad key.
    """
    if not path.is_file():
        raise ParamsError(f"{path}: the task file must exist, got nothing there. Check the path.")
    if path.suffix not in ENDINGS or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", path.stem):
        raise ParamsError(
            f"{path}: a task file must be called NAME{' or NAME'.join(ENDINGS)}, NAME of a-z, 0-9, _ "
            f"and -, got {path.name}. Rename it: the task is called as its file."
        )
    where = path.as_posix()
    task = build(TaskFile, _parse(path), where)
    task.read.check(f"{where}.read")
    names = task.label_names
    if task.labels is not None and (len(names) < 2 or len(set(names)) < len(names)):
        raise ParamsError(f"{where}.labels: they must be at least 2 different ones, got {', '.join(names)}.")
    if (task.splits.validation is None) == (task.holdout is None):
        raise ParamsError(
            f"{where}: validation must be a file in splits or a holdout of train, got "
            f"{'neither' if task.holdout is None else 'both'}. "
            "Set splits.validation, or for example holdout = {fraction = 0.2}."
        )
    return task


def _parse(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ParamsError(
            f"{path}: a task file must be UTF-8, got byte {error.object[error.start]:#04x}. Convert it."
        ) from None
    if path.suffix == ".yaml":
        return parse_yaml(text, str(path))
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ParamsError(f"{path}: the text must be TOML, got an error: {error}.") from None
