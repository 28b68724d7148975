"""The commands ``kdcache tasks`` and ``kdcache tasks check``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from kdcache.cli.options import Debug, Overrides, console, open_project
from kdcache.errors import ModelError

if TYPE_CHECKING:
    from kdcache.data.task import Example, Task
    from kdcache.encoder.batching import Encoded
    from kdcache.project import Project

BAR = 40  # characters of the longest bar
LABELS_SHOWN = 12

app = typer.Typer(help="List the tasks, or check one before training.", invoke_without_command=True)


@app.callback()
def tasks(context: typer.Context, set_: Overrides = None, debug: Debug = False) -> None:
    """List the tasks, or check one before training."""
    if context.invoked_subcommand:
        return
    with open_project(set_, debug) as project:
        from kdcache.data.superglue import SUPERGLUE
        from kdcache.data.taskfile import own_tasks, read_task_file

        table = Table("task", "metrics", "labels")
        table.add_column("source", overflow="fold")
        for name, path in (SUPERGLUE | own_tasks(Path(project.paths.tasks))).items():
            file = read_task_file(path)
            labels = ", ".join(file.label_names) or "those of train"
            source = "SuperGLUE" if name in SUPERGLUE else path.as_posix()
            table.add_row(name, ", ".join(file.metrics), labels, source)
        console.print(table)
        typer.echo(f"tasks in params.yaml: {', '.join(project.tasks)}")


@app.command()
def check(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Task file, or the name of a task.")],
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Read all rows of a task, show examples, labels and lengths, and list the problems found.

    Examples:

        kdcache tasks check reviews
    """
    with open_project(set_, debug, [task]) as project:
        name = Path(task).stem  # any task: it need not be one of params.yaml's
        from kdcache.data.check import find_problems, label_counts, length_histogram, shown_examples
        from kdcache.data.prepare import PrepareParams, read_source

        found, rows_of = read_source(project, project.section("prepare", PrepareParams), name)
        splits = {split: list(rows) for split, rows in rows_of.items()}
        typer.echo(f"{name}: " + ", ".join(f"{split} {len(rows)} rows" for split, rows in splits.items()))
        encoded, max_length = _encode(project, found, splits["train"])
        for row in shown_examples(splits["train"]):
            _show_example(row, found, splits["train"], encoded)
        _show_labels(label_counts(found, splits))
        lengths = None if encoded is None else encoded.lengths.tolist()
        if lengths:
            _show_bars("train, tokens", length_histogram(lengths))
        problems = find_problems(found, splits, lengths, max_length)
        for problem in problems or ["No problems found."]:
            console.print(f"- {problem}", soft_wrap=True)


def _encode(project: "Project", task: "Task", rows: Sequence["Example"]) -> "tuple[Encoded | None, int]":
    """Encode rows as the teacher will read them, without cutting; None if its model is not there."""
    from kdcache.data.splits import build_table, sequences
    from kdcache.encoder.batching import encode
    from kdcache.encoder.load import load_tokenizer
    from kdcache.encoder.references import resolve
    from kdcache.teacher.fine_tune import TrainTeacherParams

    params = project.section("train_teacher", TrainTeacherParams)
    try:
        tokenizer = load_tokenizer(resolve(params.model))
    except ModelError as error:
        console.print(f"Tokens are not shown. {error}", soft_wrap=True)
        return None, params.max_length
    texts, seconds = sequences(build_table(rows, task), task)
    uncut = encode(tokenizer, texts, seconds, 10**9, task.truncate, task.num_choices)
    return uncut, params.max_length


def _show_example(row: "Example", task: "Task", rows: Sequence["Example"], encoded: "Encoded | None") -> None:
    label = task.labels[row.label] if row.label >= 0 else "no label"
    sequences = {"text": row.text, "text_pair": row.text_pair}
    sequences |= {f"choice {i}": choice for i, choice in enumerate(row.choices)}
    indent = "\n" + 13 * " "
    lines = [f"{row.example_id}: {label}"]
    lines += [f"  {name:10} {text.replace(chr(10), indent)}" for name, text in sequences.items() if text]
    if encoded is not None:
        for sequence in encoded.take([rows.index(row)]).sequences:
            tokens = encoded.tokenizer.convert_ids_to_tokens(sequence["input_ids"])
            lines.append(f"  {len(tokens)} tokens  {' '.join(tokens)}")
    console.print("\n".join(lines), soft_wrap=True)


def _show_labels(counts: Mapping[str, Mapping[str, int]]) -> None:
    splits = list(next(iter(counts.values())))
    table = Table("label")
    for split in splits:
        table.add_column(split, justify="right")
    names = list(counts)
    left_out = max(0, len(names) - LABELS_SHOWN)
    head = names[: LABELS_SHOWN // 2] if left_out else names
    tail = names[-LABELS_SHOWN // 2 :] if left_out else []
    for name in head:
        table.add_row(name, *(str(counts[name][split]) for split in splits))
    if left_out:
        table.add_row(f"… {left_out} more", *("…" for _ in splits))
    for name in tail:
        table.add_row(name, *(str(counts[name][split]) for split in splits))
    console.print(table)


def _show_bars(title: str, counts: Mapping[str, int]) -> None:
    table = Table(title, "", box=None)
    table.add_column("rows", justify="right")
    for name, count in counts.items():
        table.add_row(name, "█" * -(-BAR * count // max(counts.values())), str(count))
    console.print(table)
