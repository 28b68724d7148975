"""Under torchrun only teach and shares of a cache run in several processes; all else is refused."""

import runpy
import sys
from pathlib import Path

import pytest
import typer
from conftest import ROOT, fails, run

from kdcache.cli import app

REFUSED = "torchrun: "


@pytest.fixture
def several(project, monkeypatch) -> Path:
    """A project in the first of two processes of torchrun."""
    folder = project()
    for name, value in (("TORCHELASTIC_RUN_ID", "a run"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    return folder


# What commands need to be understood.
NEEDED = {
    "select": "--task cb --grid grid.yaml", "evaluate": "--task cb --arm kl", "push": "folder place",
    "export-student": "student --to onnx", "pull": "place folder", "compare": "kl ce", "diff": "a b",
    "import": "file.npz --task cb", "export": "file.npz --task cb",
}  # fmt: skip
NAMES = {*typer.main.get_command(app).commands} - {"teach", "losses"}
LINES = [*sorted(f"{name} {NEEDED.get(name, '')}" for name in NAMES), "tasks check cb"]


@pytest.mark.parametrize("line", LINES)
def test_a_command_that_would_do_all_the_work_in_each_process_is_refused(several, line):
    before = sorted(several.rglob("*"))
    assert fails(*line.split()).startswith(REFUSED)
    assert sorted(several.rglob("*")) == before


def script(name: str, task: str, monkeypatch, capsys) -> str:
    """Run a script of pipeline/ that fails; return its line."""
    monkeypatch.setattr(sys, "argv", [name, task])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "pipeline" / f"{name}.py"), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_scripts_of_the_pipeline_are_refused_as_their_commands_are(several, monkeypatch, capsys):
    assert script("distill", "cb", monkeypatch, capsys).startswith(REFUSED)
    assert "no-such-task" in script("train_teacher", "no-such-task", monkeypatch, capsys)


@pytest.mark.parametrize("line", ["teach", "cache --shard 0/2"])
def test_what_shares_its_work_is_not_refused(several, line):
    assert "no-such-task" in fails(*line.split(), "--task", "no-such-task")


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "1"), ("TORCHELASTIC_RUN_ID", None)])
def test_one_process_and_other_schedulers_are_allowed(several, monkeypatch, name, value):
    monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    assert run("tasks")[0] == 0
