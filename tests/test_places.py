"""Nothing of others is removed or replaced, and no output is lost before the new one is whole."""

import os
from pathlib import Path

import pytest
from conftest import fails, run

from kdcache.errors import ParamsError
from kdcache.places import MARKS, check_place, place, replacing, require_plain
from kdcache.project import Project


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "name", ["kl", "kl+gram", "kl@more", "a=1,b=2", "_x", "5", "größe", "a.b-c", "x" * 100]
)
def test_plain_names_pass(name):
    require_plain(name, "x")


BAD = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/a",
    "a\\b",
    "-x",
    ".x",
    "a\0",
    "a\n",
    "a b",
    "$x",
    "a[b]",
    "CON",
    "x" * 101,
]


@pytest.mark.parametrize("name", BAD)
def test_names_that_could_lead_elsewhere_are_refused(name):
    with pytest.raises(ParamsError, match=r"^x: ") as error:
        require_plain(name, "x")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["../victim", "a/../../victim", "CON"])
def test_arms_and_tasks_are_no_paths(project, name):
    project()
    assert "distill.arms" in fails("distill", "--task", "cb", "--set", f'distill.arms={{"{name}": {{}}}}')
    assert "tasks" in fails("clean", "--set", f"tasks=[{name}]")


@pytest.mark.parametrize("kind", MARKS)
def test_a_folder_is_replaced_if_it_is_of_that_kind(tmp_path, kind):
    def make(folder: Path, mark: str) -> Path:
        path = folder / mark.replace("*", "kl-0")
        path.parent.mkdir(parents=True)
        path.touch()
        return folder

    target = tmp_path / "target"
    check_place(target, kind)
    place(make(tmp_path / "new", MARKS[kind]), target)
    (target / "old").touch()
    place(make(tmp_path / "newer", MARKS[kind]), target)
    assert not (target / "old").exists()
    for other, mark in MARKS.items():
        if other != kind:
            theirs = make(tmp_path / f"of {other}", mark)
            with pytest.raises(ParamsError, match=kind):
                place(make(tmp_path / f"{kind} for {other}", MARKS[kind]), theirs)
            assert any(theirs.glob(mark))
    notes = tmp_path / "notes"
    notes.mkdir()
    check_place(notes, kind)
    (notes / "todo.txt").touch()
    with pytest.raises(ParamsError, match="notes"):
        check_place(notes, kind)


def test_stages_refuse_a_folder_of_others_before_the_work(project):
    folder = project()
    for name in ("cb", "backbone", "out"):
        (folder / "mine" / name).mkdir(parents=True)
        (folder / "mine" / name / "thesis.txt").write_text("mine")
    before = content(folder / "mine")
    for arguments in (
        ["prepare", "--task", "cb", "--set", "paths.data=mine"],
        ["teach", "--task", "cb", "--set", "paths.teacher=mine"],
        ["shrink", "--set", "paths.backbone=mine/backbone"],
        ["report", "--set", "paths.reports=mine/out"],
        ["report", "--set", "paths.reports=."],
    ):
        assert "got something else there" in fails(*arguments)
    assert run("prepare", "--task", "cb")[0] == 0
    ids = Project.load().paths.data
    assert (Path(ids) / "cb" / "task.json").is_file()
    Path("t.csv").write_text("example_id,logit_0,logit_1,logit_2\nx,0,0,0\n")
    assert content(folder / "mine") == before


def test_clean_removes_what_interrupted_runs_left_and_nothing_else(project):
    folder = project()
    assert run("prepare")[0] == 0
    theirs = ("runs/x", "notes-0123", "cache-1/x", "distill-0123456789abcdef0/x", "my.lock", "dvc.lock")
    for name in theirs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    before = content(folder)
    (folder / "grid-0123456789abcdef").mkdir()
    (folder / "grid-0123456789abcdef" / "x").write_bytes(b"x" * 10)
    assert run("clean", "--set", "paths.scratch=.")[0] == 0
    assert content(folder) == before
    assert not (folder / "grid-0123456789abcdef").exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "x.csv"
    with replacing(path) as part:
        part.write_text("one")
        assert (part.suffix, path.exists()) == (".csv", False)

    def fail() -> None:
        with replacing(path) as part:
            part.write_text("half")
            assert path.read_text() == "one"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert content(path.parent) == {"x.csv": b"one"}
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    with replacing(link) as part:
        part.write_text("two")
    assert link.is_symlink()
    assert path.read_text() == "two"
    with replacing(Path(os.devnull)) as part:
        assert part == Path(os.devnull)
