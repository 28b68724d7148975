"""A killed teacher goes on from its last whole checkpoint, with the same bytes in the end."""

import shutil
from pathlib import Path

import pytest
import transformers
from conftest import run
from save_every import save_every

from kdcache.teacher import checkpoints

TEACHER = Path("models/teacher/cb")
SECTIONS = {"train_teacher": {"epochs": 3, "folds": 0, "batch_size": 8, "select": "tune"}}


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def break_(checkpoint: Path, how: str) -> None:
    if how == "empty":
        for path in checkpoint.iterdir():
            path.write_bytes(b"")
    elif how == "unsealed":
        (checkpoint / "digests.json").unlink()
    elif how == "nothing in it":
        shutil.rmtree(checkpoint)
        checkpoint.mkdir()
    elif how == "a file gone":
        (checkpoint / "optimizer.pt").unlink()
    else:
        path = checkpoint / how
        path.write_bytes(path.read_bytes()[:-5])


@pytest.fixture(scope="module")
def interrupted(build_once, tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """A project whose teacher was interrupted, with a checkpoint; and an uninterrupted teacher's files."""
    patch = pytest.MonkeyPatch()
    save_every(2, checkpoints, patch.setattr)
    base = build_once(("prepare",), **SECTIONS)
    folders = [tmp_path_factory.mktemp(name) / "project" for name in ("interrupted", "whole")]
    for folder in folders:
        shutil.copytree(base, folder)
    patch.chdir(folders[1])
    assert run("teach", "--task", "cb")[0] == 0
    step = transformers.Trainer.training_step

    def stop(self, *args, **kwargs):
        if self.state.global_step == 7:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    patch.setattr(transformers.Trainer, "training_step", stop)
    patch.chdir(folders[0])
    assert run("teach", "--task", "cb")[0] == 130
    patch.undo()
    return folders[0], content(folders[1] / TEACHER)


@pytest.mark.parametrize(
    "how", ["model.safetensors", "empty", "unsealed", "optimizer.pt", "trainer_state.json", "a file gone",
            "nothing in it"],
)  # fmt: skip
def test_a_broken_checkpoint_is_dropped_with_a_line(interrupted, tmp_path, monkeypatch, how):
    before, wanted = interrupted
    folder = shutil.copytree(before, tmp_path / "project")
    monkeypatch.chdir(folder)
    (checkpoint,) = folder.glob(".kdcache/*/checkpoints-*/checkpoint-*")
    break_(checkpoint, how)
    code, _, error = run("teach", "--task", "cb")
    assert code == 0
    assert any(checkpoint.name in line and "dropped" in line for line in error.splitlines())
    assert content(folder / TEACHER) == wanted


def test_a_whole_checkpoint_is_gone_on_from(interrupted, tmp_path, monkeypatch):
    before, wanted = interrupted
    monkeypatch.chdir(shutil.copytree(before, tmp_path / "project"))
    (checkpoint,) = Path().glob(".kdcache/*/checkpoints-*/checkpoint-*")
    assert checkpoint.name == "checkpoint-6"
    unfinished = checkpoint.parent / "unfinished" / "checkpoint-8"  # what a kill while writing leaves
    shutil.copytree(checkpoint, unfinished)
    (unfinished / "optimizer.pt").write_bytes(b"half")
    step, steps = transformers.Trainer.training_step, []

    def count(self, *args, **kwargs):
        steps.append(self.state.global_step)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(transformers.Trainer, "training_step", count)
    assert run("teach", "--task", "cb")[0] == 0
    assert steps[0] == 6
    assert content(TEACHER) == wanted
