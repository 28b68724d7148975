"""Starting a project: the pipeline, its parameters, and a task guessed from a table or the sample tasks."""

import importlib.util
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import kdcache
from kdcache.cli.options import Debug
from kdcache.errors import DataError, KdcacheError, ParamsError, shorten
from kdcache.places import replacing, require_task_name
from kdcache.plain_yaml import parse_yaml
from kdcache.project import errors_in_one_line

if TYPE_CHECKING:
    from kdcache.data.guess_columns import Guess

PACKAGE = Path(kdcache.__file__).parent
TEMPLATE = PACKAGE / "template"
SAMPLE = PACKAGE / "sample"
SAMPLE_TASK = "tasks/calls.toml"  # the task file of the sample's third task
HIDDEN = ("dvc", "dvcignore", "gitignore")  # of the template; they get their dot in a project
EXTENDED = (".gitignore", ".dvcignore")  # where these exist, missing lines are added
SHOWN_ROWS = 3
# What --teacher sets beside the model: as in studies/few_labels, which is behind docs/results.md.
STUDIED = {
    "prepare.tune_fraction": "0.5",
    "train_teacher.epochs": "20",
    "train_teacher.lr": "5e-5",
    "train_teacher.select": "tune",
    "student_backbone.num_layers": "all",
    "distill.num_virtual_tokens": "16",
    "distill.lr": "3e-2",
    "distill.steps": "600",
    "distill.batch_size": "16",
    "distill.dropout": "0.1",
    "distill.select": "tune",
    "distill.kl": "{inter_class: {name: kl, temperature: 2.0}}",
    "distill.kl+gram": "{inter_class: {name: kl, temperature: 2.0}, inter_instance: {name: gram}}",
}

Files = dict[str, bytes]  # path in the project → content


def init(
    folder: Annotated[Path, typer.Argument(help="The project's folder. It may be new.")] = Path("."),
    table: Annotated[
        Path | None,
        typer.Option(
            "--table", metavar="FILE", help="Your texts and labels: a .csv, .tsv, .jsonl or .parquet file."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher", metavar="MODEL",
            help="A larger model to teach: a folder or hub id. Students then get the settings of the study.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Start a project: write dvc.yaml, params.yaml, pipeline/ and a task file guessed from --table.

    Without --table, the project gets the three sample tasks. Existing files are never overwritten.
    Without --teacher, params.yaml has small, quick settings: a teacher of six layers, students of two.

    Examples:

        kdcache init reviews --table reviews.csv

        kdcache init reviews --table reviews.csv --teacher sentence-transformers/all-mpnet-base-v2
    """
    with errors_in_one_line(debug):
        name = start_project(folder, table, teacher)
        typer.echo("\n".join(_next_commands(folder, name)))


def start_project(
    folder: Path | str, table: Path | str | None = None, teacher: str | None = None
) -> str | None:
    """Write a project into a folder and print what was written and guessed, as ``kdcache init`` does.

    Args:
        folder: the project's; it may be new.
        table: with texts and labels: .csv, .tsv, .jsonl or .parquet. None takes the sample tasks.
        teacher: a larger model to teach, a hub id or a folder. Teacher and students then get the settings
            of the study with few labels; None leaves the small ones of the sample.

    Returns:
        The name of the task; None for the sample's.

    Raises:
        ParamsError: the folder holds some of the files already. Nothing is written.
        DataError: the table cannot be read, or no columns of text and label are found.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ParamsError(f"{folder} is a file. Name a folder.")
    files = _template_files(inside_git=_inside_git(folder))
    lines: list[str] = []
    name = None
    if table is None:
        files |= {f"sample/{name}": content for name, content in _read_tree(SAMPLE).items()}
    else:
        name, drafted, lines = _draft(Path(table), folder)
        del files[SAMPLE_TASK]
        files |= drafted
        # A task may be called 2026.
        item = name if parse_yaml(name, "tasks") == name else f'"{name}"'
        own = {
            "tasks": f"[{item}]",
            "fine_tune": f"[{item}]",
            "prepare.source": "files",
            "prepare.path": "tasks",
        }
        files["params.yaml"] = _with_values(files["params.yaml"], own)
    if teacher is not None:
        # A path is the user's, from where they are; the project may lie elsewhere.
        model = json.dumps(str(Path(teacher).resolve()) if Path(teacher).is_dir() else teacher)
        files["params.yaml"] = _with_values(files["params.yaml"], {"train_teacher.model": model, **STUDIED})
    _write(folder, files)
    typer.echo("\n".join([f"Wrote {', '.join(_top_level(files))} in {folder.resolve()}.", *lines]))
    return name


def _read_tree(folder: Path) -> Files:
    """All files below a folder, links followed; compiled ones left out."""
    found: Files = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in sorted(names):
            if not name.endswith(".pyc"):
                path = Path(parent, name)
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def _template_files(inside_git: bool) -> Files:
    read = _read_tree(TEMPLATE)
    if "dvc.yaml" not in read or "params.yaml" not in read:
        raise KdcacheError(
            f"{TEMPLATE} lacks the files of a new project. "
            "Reinstall kdcache: pip install --force-reinstall kdcache"
        )
    files = {f".{name}" if name.split("/")[0] in HIDDEN else name: read[name] for name in sorted(read)}
    if not inside_git:
        files[".dvc/config"] += b"    no_scm = true\n"
    return files


def _inside_git(folder: Path) -> bool:
    folder = folder.resolve()
    return any((parent / ".git").exists() for parent in (folder, *folder.parents))


def _draft(path: Path, folder: Path) -> tuple[str, Files, list[str]]:
    """A task's name, its files, and what to show of them."""
    from kdcache.data.draft_taskfile import read_table, split_unlabelled, task_file_text, task_name
    from kdcache.data.guess_columns import guess_columns
    from kdcache.data.superglue import SUPERGLUE

    name = task_name(path)
    require_task_name(name, str(path))
    if name in SUPERGLUE:
        raise DataError(f"{path}: {name!r} is the name of a SuperGLUE task. Rename the file.")
    rows, layout = read_table(path)
    guess = guess_columns(path, rows)
    splits = {"train": f"{name}{path.suffix}"}
    unlabelled = len(rows) - sum(guess.labels.values())
    if unlabelled:
        splits["unlabelled"] = f"{name}-unlabelled{path.suffix}"
        contents = list(split_unlabelled(path, rows, guess.label, layout))
    else:
        contents = [path.read_bytes()]
    files = {f"tasks/{splits[split]}": content for split, content in zip(splits, contents, strict=True)}
    here = folder / "tasks" / splits["train"]
    if not unlabelled and here.exists() and here.samefile(path):
        files = {}  # the table lies where the project wants it
    text = task_file_text(guess, path.name, layout, splits)
    files[f"tasks/{name}.toml"] = text.encode()
    lines = ["", f"tasks/{name}.toml, guessed from {len(rows)} rows; correct it where it is wrong:", ""]
    lines += [f"    {line}" for line in text.splitlines()]
    lines += ["", *_shown_rows(guess, rows)]
    if unlabelled:
        target = f"tasks/{splits['unlabelled']}"
        lines += ["", f"Rows without a label: {unlabelled}, now in {target}. Students learn from them too."]
    return name, files, lines


def _shown_rows(guess: "Guess", rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = [column for column in (guess.label, guess.text, guess.text_pair) if column]
    width = max(map(len, columns))
    shown = []
    for row in rows[:SHOWN_ROWS]:
        shown += [f"    {column:{width}}  {shorten(row.get(column))}" for column in columns]
    return shown


def _with_values(params: bytes, values: Mapping[str, str]) -> bytes:
    """The shipped params.yaml with other values; comments stay.

    Args:
        params: the file.
        values: KEY or SECTION.KEY → YAML, where KEY may be anywhere below its section.
    """
    text = params.decode()
    for name, value in values.items():
        *section, key = name.split(".")
        above = rf"^{section[0]}:\n(?:  .*\n)*?  +" if section else "^"
        found = re.search(rf"{above}{re.escape(key)}: (.*?)(?:  #.*)?$", text, flags=re.MULTILINE)
        if not found:
            raise KdcacheError(f"{TEMPLATE / 'params.yaml'} lacks the key {name}. Reinstall kdcache.")
        text = text[: found.start(1)] + value + text[found.end(1) :]
    return text.encode()


def _write(folder: Path, files: Files) -> None:
    """Write all files, or none where one exists; ignore files get the lines that they lack.

    Where some are there as they would be written, an init was killed: it goes on.
    """
    there = [name for name in files if name not in EXTENDED and (folder / name).exists()]
    taken = [name for name in there if not _holds(folder / name, files[name])]
    if len(there) == len([name for name in files if name not in EXTENDED]):
        taken = there
    if taken:
        more = f" and {len(taken) - 3} more files" if len(taken) > 3 else ""
        raise ParamsError(
            f"{folder.resolve()} already holds {', '.join(taken[:3])}{more}. Nothing was written. "
            "Choose another folder."
        )
    for name, content in files.items():
        path = folder / name
        with replacing(path) as part:
            if path.exists() and name in EXTENDED:
                old = path.read_bytes()
                missing = [line for line in content.splitlines() if line not in old.splitlines()]
                newline = b"\n" if old and not old.endswith(b"\n") else b""
                content = old + newline + b"".join(line + b"\n" for line in missing)
            part.write_bytes(content)


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _top_level(files: Files) -> list[str]:
    """Names as a listing of the project shows them, folders with a slash."""
    return sorted({name.partition("/")[0] + "/" * ("/" in name) for name in files})


def _next_commands(folder: Path, name: str | None) -> list[str]:
    commands = [
        ("kdcache run", "prepare the rows, make the backbone, train a teacher, cache its logits, inspect"),
        ("kdcache distill", "train students, into runs/"),
    ]
    if name:
        commands.insert(0, (f"kdcache tasks check {name}", "look at the rows as the model will read them"))
    extra = "" if importlib.util.find_spec("dvc") else ' (needs: pip install "kdcache[pipeline]")'
    commands.append(("dvc repro", f"or all of it in one go, with a report{extra}"))
    if folder.resolve() != Path.cwd():
        commands.insert(0, (f"cd {shlex.quote(str(folder))}", ""))
    width = max(len(command) for command, _ in commands)
    return ["", "Next:", "", *(f"    {command:{width}}  {what}".rstrip() for command, what in commands)]
