"""Task files, read and checked: a task as data, in TOML or YAML. The file's name is the task's.

The tasks of SuperGLUE are such files too; see ``kdcache.data.superglue``.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kdcache.data.metrics import COLUMNS_READ, METRICS
from kdcache.data.splits import SPLITS
from kdcache.data.superglue import SUPERGLUE
from kdcache.data.taskfile_schema import TaskFile, places, spell_label
from kdcache.errors import ParamsError, nearest
from kdcache.params import build
from kdcache.places import require_split
from kdcache.plain_json import MAX_DEPTH, require_bounded
from kdcache.plain_yaml import MAX_TEXT, parse_yaml

TASK_FILE_ENDINGS = (".toml", ".yaml")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def own_tasks(folder: Path, files: Iterable[Path] = ()) -> dict[str, Path]:
    """Find the task files of the user.

    Args:
        folder: all task files in it; it may be absent.
        files: more of them, anywhere.

    Returns:
        Name → task file.

    Raises:
        ParamsError: two files of one name, or one with the name of a SuperGLUE task.
    """
    found: dict[str, Path] = {}
    for path in [*sorted(folder.glob("*")), *files]:
        if path.suffix not in TASK_FILE_ENDINGS:
            continue
        other = found.setdefault(path.stem, path)
        if path.stem in SUPERGLUE or not other.samefile(path):
            taken = f"that of {other}" if other != path else "that of a SuperGLUE task"
            raise ParamsError(f"{path}: a task file must have a name of its own, got {taken}. Rename it.")
    return found


def read_task_file(path: Path) -> TaskFile:
    """Read and check a task file.

    Raises:
        ParamsError: no such file, broken TOML or YAML, or one line per bad key.
    """
    if not path.is_file():
        raise ParamsError(f"{path}: the task file must exist, got nothing there. Check the path.")
    if path.suffix not in TASK_FILE_ENDINGS or not NAME.fullmatch(path.stem):
        raise ParamsError(
            f"{path}: a task file must be called NAME{' or NAME'.join(TASK_FILE_ENDINGS)}, NAME of a-z, 0-9, "
            f"_ and -, got {path.name}. Rename it: its name is the name of the task."
        )
    file = build(TaskFile, _parse(path), path.as_posix())
    file.read.check(f"{path.as_posix()}.read")
    if problems := list(_problems(file, path.as_posix())):
        raise ParamsError("\n".join(problems))
    return file


def _parse(path: Path) -> Any:
    if path.stat().st_size > MAX_TEXT:
        raise ParamsError(f"{path}: a task file must be at most {MAX_TEXT} bytes, got {path.stat().st_size}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParamsError(
            f"{path}: a task file must be UTF-8, got byte {error.object[error.start]:#04x}. Convert it."
        ) from None
    if path.suffix == ".yaml":
        return parse_yaml(text, str(path))
    try:
        value = tomllib.loads(text)
        require_bounded(value)
        return value
    except RecursionError:
        raise ParamsError(f"{path}: the text must be TOML of at most {MAX_DEPTH} levels, got more.") from None
    except ValueError as error:
        raise ParamsError(f"{path}: the text must be TOML, got an error: {error}.") from None


def _problems(file: TaskFile, where: str) -> Iterator[str]:
    """What no single key shows: keys that do not fit each other."""
    names = (
        [*file.labels.values()] if isinstance(file.labels, dict) else [*map(spell_label, file.labels or ())]
    )
    if file.labels is not None and (len(names) < 2 or len(set(names)) < len(names)):
        yield f"{where}.labels: they must be at least 2 different ones, got {', '.join(names)}."
    if (file.splits.validation is None) == (file.holdout is None):
        yield (
            f"{where}: validation must be a file in splits or a holdout of train, got "
            f"{'neither' if file.holdout is None else 'both'}. "
            "Set splits.validation, or for example holdout = {fraction = 0.2}."
        )
    if (cut := file.holdout) and cut.test and (file.splits.test or 2 * cut.test > 1 - cut.fraction + 1e-9):
        yield (
            f"{where}.holdout.test: it must be at most half of what validation leaves, without a file "
            f"splits.test, got {cut.test:g}. Lower it, or remove one of the two."
        )
    if file.choices and file.text_pair:
        yield f"{where}.choices: set either choices or text_pair, not both."
    if file.choices and len(file.choices) != len(names or file.choices):
        yield f"{where}.choices: there must be one per label ({len(names)}), got {len(file.choices)}."
    texts = [name for template in file.templates for name in places(template)]
    for key, column in [*((f"spans[{i}].column", s.column) for i, s in enumerate(file.spans)),
                        *((f"required[{i}]", column) for i, column in enumerate(file.required))]:  # fmt: skip
        if column not in texts:
            yield f"{where}.{key}: no text has the column {column!r}. {nearest(column, texts)}"
    may_lack = [split for split in file.files if split not in ("train", "validation")]
    for split in file.optional:
        if split not in may_lack:
            yield f"{where}.optional: the split {split!r} must not be absent. {nearest(split, may_lack)}"
    labelled = [split for split in file.files if split != "unlabelled"]
    for split in file.label_files:
        if split not in labelled:
            yield f"{where}.label_files: the split {split!r} has no rows to label. {nearest(split, labelled)}"
    if file.label_files and (file.hub or file.expand):
        yield f"{where}.label_files: they are for files, not for hub or expand. Remove one of the two."
    for split in file.diagnostics:
        if split in SPLITS or not NAME.fullmatch(split):
            yield f"{where}.diagnostics.{split}: the name is taken, or not of a-z, 0-9, _ and -. Rename it."
            continue
        try:
            require_split(split, f"{where}.diagnostics")
        except ParamsError as error:
            yield str(error)
    for part, key in [
        (file, where),
        *((file.for_split(d), f"{where}.diagnostics.{d}") for d in file.diagnostics),
    ]:
        for i, metric in enumerate(part.metrics):
            lacking = [column for column in COLUMNS_READ.get(metric, ()) if not getattr(part, column)]
            if metric not in METRICS:
                yield f"{key}.metrics[{i}]: there is no metric {metric!r}. {nearest(metric, METRICS)}"
            elif lacking:
                column = lacking[0]
                yield f'{key}.metrics[{i}]: {metric} needs a column. Name it: {column} = "…".'
