"""The parts of a cache: whoever computes them, the bytes are those of one process."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import fails, run

from kdcache.cache import writer
from kdcache.cache.writer import CacheWriter
from kdcache.data.splits import open_tables
from kdcache.errors import DataError
from kdcache.project import Project
from kdcache.store import lease
from kdcache.store.location import Location
from kdcache.store.parts import Parts
from kdcache.teacher import cache_teacher, extraction
from kdcache.teacher.extraction import Teacher

CACHE = Path("cache/cb")
TAUGHT = ("prepare", "teach --task cb")


def content(folder: Path = CACHE) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def serial(built_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of a cache that one process made, in a project without it."""
    built_project(*TAUGHT)
    monkeypatch.setattr(writer, "PART_ROWS", 8)
    assert run("cache", "--task", "cb")[0] == 0
    found = content()
    shutil.rmtree(CACHE)
    return found


def test_shards_and_what_puts_them_together_give_the_same_bytes(serial, monkeypatch):
    for share in ("0/3", "2/3", "1/3", "1/3"):
        assert run("cache", "--task", "cb", "--shard", share)[0] == 0
        assert not CACHE.exists()
    monkeypatch.setattr(extraction, "extract", None)  # nothing is left to compute
    assert run("cache", "--task", "cb")[0] == 0
    assert content() == serial
    assert not list(Path(".kdcache").glob("cache_teacher-*/parts"))


@pytest.mark.parametrize("share", ["3/3", "1", "a/b", "-1/3"])
def test_a_share_that_is_none_is_refused(project, share):
    project()
    assert repr(share) in fails("cache", "--task", "cb", "--shard", share)


def test_parts_of_another_kind_of_machine_are_refused(serial, monkeypatch):
    assert run("cache", "--task", "cb", "--shard", "0/3")[0] == 0
    monkeypatch.setattr(cache_teacher, "machine_kind", lambda device: "another machine")
    assert "another machine" in fails("cache", "--task", "cb")
    assert run("clean")[0] == 0
    assert run("cache", "--task", "cb")[0] == 0
    assert content() == serial


def test_a_part_that_gets_lost_is_not_computed_by_another_kind_of_machine(serial, monkeypatch):
    """As on a head without the GPUs of its workers."""
    rows = Teacher.rows

    def meanwhile(teacher, writer, split):
        for path in Path(".kdcache").glob(f"cache_teacher-*/parts/{split}-*.npz"):
            path.unlink()
        return rows(teacher, writer, split)

    monkeypatch.setattr(Teacher, "rows", meanwhile)
    with monkeypatch.context() as patched:
        patched.setattr(extraction, "machine_kind", lambda device: "another machine")
        code, _, error = run("cache", "--task", "cb")
    assert code == 1
    assert "another machine" in error.splitlines()[-1]
    assert run("cache", "--task", "cb")[0] == 0
    assert content() == serial


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(serial):
    assert run("cache", "--task", "cb", "--workers", "2")[0] == 0
    assert content() == serial


@pytest.fixture
def store(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place for parts on an object store, where leases are renewed and lapse soon."""
    monkeypatch.setattr(lease, "RENEWED_SECONDS", 0.1)
    monkeypatch.setattr(lease, "LAPSED_SECONDS", 4.0)
    return f"s3://bucket/parts?{s3}"


def on_store(store: str) -> list[str]:
    return Location.parse(store).names(recursive=True)


def no_parts_in_scratch() -> bool:
    return not list(Path(".kdcache").rglob("*.npz"))


def test_shards_go_through_a_store_and_nothing_is_left_there(serial, store, monkeypatch):
    through = ("cache", "--task", "cb", "--set", f"paths.parts={store}")
    for number, share in enumerate(("0/2", "1/2")):  # as on two machines
        assert run(*through, "--shard", share, "--set", f"paths.scratch=.kdcache/{number}")[0] == 0
    assert no_parts_in_scratch()
    assert sum(name.endswith(".npz") for name in on_store(store)) > 8
    monkeypatch.setattr(extraction, "extract", None)  # nothing is left to compute
    assert run(*through)[0] == 0
    assert content() == serial
    assert on_store(store) == []


def test_an_interrupted_run_goes_on_from_a_store_and_a_damaged_part_is_computed_again(
    serial, store, monkeypatch
):
    through, extract, ran = ("cache", "--task", "cb", "--set", f"paths.parts={store}"), extraction.extract, []

    def stop_at_the_seventh(*arguments):
        if len(ran) == 6:
            raise KeyboardInterrupt
        ran.append(arguments)
        return extract(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(extraction, "extract", stop_at_the_seventh)
        assert run(*through)[0] == 130
    parts = [name for name in on_store(store) if name.endswith(".npz")]
    assert len(parts) == len(ran) == 6
    assert not CACHE.exists()
    place = Location.parse(store)
    whole = place.read(parts[0])
    with place.create(parts[0]) as file:
        file.write(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    ran.clear()
    monkeypatch.setattr(
        extraction, "extract", lambda *arguments: ran.append(arguments) or extract(*arguments)
    )
    assert run(*through)[0] == 0
    assert no_parts_in_scratch()
    assert content() == serial
    assert on_store(store) == []
    resumed = len(ran)
    ran.clear()
    assert run("cache", "--task", "cb")[0] == 0
    assert resumed == len(ran) - 5  # six were there, one of them damaged


def test_another_kind_of_machine_and_a_second_writer_are_refused_on_a_store(serial, store, monkeypatch):
    set_ = ("--set", f"paths.parts={store}")
    through = ("cache", "--task", "cb", *set_)
    assert run(*through, "--shard", "0/3")[0] == 0
    kept = on_store(store)
    with monkeypatch.context() as patched:
        patched.setattr(cache_teacher, "machine_kind", lambda device: "another machine")
        assert "another machine" in fails(*through)

    def elsewhere() -> CacheWriter:
        """As on another node."""
        return CacheWriter(CACHE, Path("elsewhere/cache_teacher-0123456789abcdef"), parts=store)

    with elsewhere():
        for refused in (through, ("clean", *set_)):
            assert "got another at work" in fails(*refused)
        assert set(kept) < set(on_store(store))
    assert run("clean", *set_)[0] == 0
    assert on_store(store) == []
    assert run(*through)[0] == 0
    assert content() == serial
    import_ = ("import", "logits.csv", "--task", "cb", *set_)
    assert run("export", "logits.csv", "--task", "cb")[0] == 0
    with elsewhere():
        assert "got another at work" in fails(*import_)
    assert content() == serial
    assert run(*import_)[0] == 0
    assert on_store(store) == []


def test_who_lost_the_lease_does_not_publish(serial, store, monkeypatch):
    rows = Teacher.rows

    def meanwhile(teacher, writer, split):
        for name in Location.parse(store, "leases").names():  # as by another, after this process stood still
            Location.parse(store, "leases").remove(name)
        return rows(teacher, writer, split)

    with monkeypatch.context() as patched:
        patched.setattr(Teacher, "rows", meanwhile)
        code, _, error = run("cache", "--task", "cb", "--set", f"paths.parts={store}")
    assert code == 1
    assert "another process took over" in error.splitlines()[-1]
    assert not CACHE.exists()
    assert on_store(store)  # the parts are kept


@pytest.mark.parametrize(("stopped", "at", "there"), [("publish", 1, False), ("remove_below", 2, True)])
def test_a_run_stopped_around_publishing_is_taken_up(serial, store, monkeypatch, stopped, at, there):
    """Also between the removal of the parts and that of the kind of machine."""
    done, calls = getattr(Location, stopped), []

    def stop(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        if len(calls) == at:
            raise KeyboardInterrupt
        done(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Location, stopped, stop)
        assert run("cache", "--task", "cb", "--set", f"paths.parts={store}")[0] == 130
    assert CACHE.exists() == there
    assert {"/parts/" in name for name in on_store(store)} == ({False} if there else {False, True})
    assert run("cache", "--task", "cb", "--set", f"paths.parts={store}")[0] == 0
    assert content() == serial
    assert on_store(store) == []


def test_a_worker_with_other_data_than_the_first_process_is_refused(serial, store):
    project = Project.load([f"paths.parts={store}"])
    task, tables = open_tables(project.paths.data, "cb")
    teacher = cache_teacher.open_teacher(
        project, task, project.section("cache_teacher", cache_teacher.CacheTeacherParams), tables
    )
    name = project.scratch_name(cache_teacher.__name__, *cache_teacher._made_of(project, teacher))
    stored = Parts(Path(name), CACHE, store)

    def open_worker() -> object:
        return cache_teacher.open_elsewhere(project.raw, "cb", teacher.identity, teacher.train_folds, stored)

    assert callable(open_worker())
    file = Path("data/cb/validation.parquet")
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)
    with pytest.raises(DataError, match="others on"):
        open_worker()


KILLED = """
import sys
from pathlib import Path
from kdcache.cache import writer
from kdcache.store.location import Location
from kdcache.cli import app
from kdcache.teacher import extraction
writer.PART_ROWS = 8
extract, ran = extraction.extract, []

def tell(*arguments):
    ran.append(1)
    if len(ran) == 4:
        print("now", flush=True)
        sys.stdin.read()
    return extract(*arguments)

extraction.extract = tell
app(sys.argv[1:])
"""


@pytest.mark.slow
def test_what_a_killed_process_left_on_a_store_is_taken_up(serial, store):
    through = ("cache", "--task", "cb", "--set", f"paths.parts={store}")
    first = subprocess.Popen(
        [sys.executable, "-c", KILLED, *through], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"now\n"
    finally:
        first.kill()
        first.communicate()
    assert sum(name.endswith(".npz") for name in on_store(store)) == 3
    assert len(Location.parse(store, "leases").names()) == 1
    code, _, error = run(*through)
    assert (code, "lapses" in error) == (0, True)
    assert content() == serial
    assert on_store(store) == []


@pytest.mark.slow
def test_two_processes_share_parts_on_a_store_and_the_cache_lies_there_too(serial, store, s3):
    cache = f"s3://bucket/cache?{s3}"
    places = ("--set", f"paths.parts={store}", "--set", f"paths.cache={cache}")
    assert run("cache", "--task", "cb", "--workers", "2", *places)[0] == 0
    place = Location.parse(cache, "cb")
    assert {name: place.read(name) for name in place.names()} == serial
    assert on_store(store) == []
    assert no_parts_in_scratch()
