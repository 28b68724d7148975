"""Nothing of others is removed or replaced, and no output is lost before the new one is whole."""

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import fails, run

from kdcache.errors import KdcacheError, ParamsError
from kdcache.places import MARKS, alone, check_place, naming, place, replacing, require_plain, require_split
from kdcache.project import Project
from kdcache.store.location import Location


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


@pytest.mark.parametrize("ending", [".parquet", "-00000-of-00002", "-00000-of-00002.parquet"])
def test_a_split_has_no_name_of_a_file(ending):
    require_split(ending.replace("-", "x").replace(".", "x"), "x")
    with pytest.raises(ParamsError, match=r"^x: "):
        require_split(f"train{ending}", "x")


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


OTHER_DISK = Path("/dev/shm")
two_disks = pytest.mark.skipif(
    not OTHER_DISK.is_dir() or os.stat(OTHER_DISK).st_dev == os.stat("/tmp").st_dev, reason="one disk only"
)


def make(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(text)
    return folder


@pytest.mark.parametrize("disk", ["the same", pytest.param("another", marks=two_disks)])
@pytest.mark.parametrize("link", [None, "of the folder", "of its parent"])
def test_a_folder_is_put_in_place_on_any_disk_and_links_stay(tmp_path, disk, link):
    with contextlib.ExitStack() as stack:
        disk_folder = OTHER_DISK if disk == "another" else tmp_path
        far = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=disk_folder))) / "far"
        target = far / "cb"
        far.mkdir()
        if link == "of its parent":
            (tmp_path / "near").symlink_to(far)
            target = tmp_path / "near" / "cb"
        elif link:
            make(far / "cb", "older")
            target = tmp_path / "cb"
            target.symlink_to(far / "cb")
        for text in ("old", "new"):
            place(make(tmp_path / "made", text), target)
            assert content(target) == {"manifest.json": text.encode()}
            assert not (tmp_path / "made").exists()
        assert [path.name for path in far.iterdir()] == ["cb"]
        assert target.is_symlink() == (link == "of the folder")
        for text in ("old", "new"):
            (tmp_path / "x.json").write_text(text)
            place(tmp_path / "x.json", far / "x.json")
            assert (far / "x.json").read_text() == text


def test_a_name_with_a_question_mark_is_a_name(tmp_path):
    location = Location.parse(tmp_path / "what?" / "cache", "cb")
    location.publish(make(tmp_path / "made", "x"), last="manifest.json")
    assert content(tmp_path) == {"what?/cache/cb/manifest.json": b"x"}
    assert location.read("manifest.json") == b"x"


def test_what_a_killed_process_left_beside_a_file_goes(tmp_path):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    left = tmp_path / f".x[1].{dead.stdout.strip()}.part.csv"
    elsewhere = f".x[1].{dead.stdout.strip()}@another.part.csv"  # by a machine that shares the disk
    others = [
        elsewhere,
        f".x[1].{os.getppid()}.part.csv",
        ".x[1].mine.part.csv",
        f".y.{dead.stdout.strip()}.part.csv",
    ]
    others.append(f".x[1].{dead.stdout.strip()}@another.part.csv")  # by a machine that shares the disk
    for name in [left.name, *others]:
        (tmp_path / name).write_text("half")
    with replacing(tmp_path / "x[1].csv") as part:
        part.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"x[1].csv", *others}


WRITE = "import sys, time; from pathlib import Path; from kdcache.places import alone\n"
WRITE += "with alone(Path('s'), *map(Path, sys.argv[1:])): print('here', flush=True); time.sleep(60)"


def test_a_second_writer_is_told_and_a_dead_one_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", WRITE, "runs/a", "runs/b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"here\n"
        with (
            pytest.raises(KdcacheError, match=r"^runs/b: ") as error,
            alone(Path("s"), Path("c"), Path("runs/b")),
        ):
            pass
        assert len(str(error.value).splitlines()) == 1
        with alone(Path("s"), Path("runs/c")):
            pass
        other.kill()
    with alone(Path("s"), Path("runs/a"), Path("runs/b")):
        pass


def test_clean_spares_what_is_in_the_making(project):
    folder = project()
    made = folder / ".kdcache" / "grid-0123456789abcdef"
    made.mkdir(parents=True)
    with alone(folder / ".kdcache", Path("runs/cb/kl-0")):
        assert "kl-0" in fails("clean")
        assert made.is_dir()
    assert run("clean")[0] == 0
    assert not made.exists()


def test_an_error_without_a_path_gets_the_one_of_the_block(tmp_path):
    with pytest.raises(OSError, match="No space") as error, naming(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == str(tmp_path)
    with pytest.raises(KeyError), naming(tmp_path):
        raise KeyError("x")


def test_what_a_killed_process_left_of_the_old_folder_goes(tmp_path):
    """Killed between the two renames, the place is empty and the old folder lies beside it."""
    left, made = tmp_path / "runs" / ".a.replaced", tmp_path / "made"
    for folder in (left, made):
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{}")
    place(made, tmp_path / "runs" / "a")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]
