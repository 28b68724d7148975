"""What stands in data is shown as it is: no markup, no commands to the terminal, in any encoding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run

LABELS = ["[bold]", "[/red]", ":smile:", "\x1b[31mred", "→", "[link=file:///x]y"]
TASK = 'splits = {train = "odd.jsonl"}\nholdout = {fraction = 0.2}\ntext = "text"\nlabel = "label"\n'


@pytest.fixture
def odd(project, write_jsonl):
    """A project with a task of odd labels and texts."""
    folder = project()
    rows = [
        {"text": f"row {i} \u2028 [i]x[/i] \x1b]0;title\x07", "label": LABELS[i % len(LABELS)]}
        for i in range(120)
    ]
    write_jsonl(folder / "tasks" / "odd.jsonl", rows)
    (folder / "tasks" / "odd.toml").write_text(TASK)
    return folder


def test_labels_and_texts_are_shown_as_they_are(odd):
    code, out, _ = run("tasks", "check", "odd")
    assert code == 0
    for label in LABELS:
        assert label.replace("\x1b", "\\x1b") in out
    assert "[i]x[/i]" in out
    assert not {"\x1b", "\x07"} & set(out)


def test_an_error_does_not_command_the_terminal(odd):
    code, _, error = run("prepare", "--task", "\x1b[2Jx")
    assert code == 1
    assert "\x1b" not in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [["export-student", "closed", "--to", "folder"], ["import", "closed", "--task", "cb"], ["init", "closed"],
     ["predict", "--student", "closed", "--input", "-"], ["init", "--table", "closed"]],
)  # fmt: skip
def test_a_path_that_cannot_be_read_is_told_as_other_errors_are(project, monkeypatch, arguments):
    project()
    Path("closed").mkdir(mode=0o000)
    if os.access("closed", os.R_OK):  # whoever may read all: what typer would ask is answered for it
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert run(*arguments)[0] != 2


def test_a_terminal_that_knows_ascii_only_is_no_error():
    command = [sys.executable, "-m", "kdcache", "losses"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert found.returncode == 0, found.stderr
    assert rb"\u2016" in found.stdout  # of a norm
