"""Students trained side by side by several processes."""

import queue
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import fails, run

from kdcache.errors import DataError
from kdcache.project import Project
from kdcache.students import workers
from kdcache.students.arms import DistillParams
from kdcache.students.grid import Grid
from kdcache.students.train_grid import open_trainer
from kdcache.students.workers import take_turns

DISTILL = ("distill", "--task", "cb", "--arm", "ce", "--arm", "kl+gram")
SIDE_BY_SIDE = ("--workers", "2")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def started(monkeypatch) -> list[subprocess.Popen]:
    """The processes that a command starts."""
    found = []

    class Heard(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            if arguments[0][: len(workers.COMMAND)] == workers.COMMAND:
                found.append(self)

    monkeypatch.setattr(workers.subprocess, "Popen", Heard)
    return found


def test_students_of_two_processes_are_those_of_one(cached_project, started, monkeypatch):
    folder = cached_project(distill={"seeds": [0, 1]})
    assert run(*DISTILL)[0] == 0
    alone = contents(folder / "runs")
    assert not started
    take = workers.take_turns

    def once_the_other_is_there(passes, *rest):
        """Leave the first pass to the other process."""
        started[0].wait()
        take(passes, *rest)

    monkeypatch.setattr("kdcache.students.grid.take_turns", once_the_other_is_there)
    assert run(*DISTILL, *SIDE_BY_SIDE)[0] == 0
    assert [process.returncode for process in started] == [0]
    assert contents(folder / "runs") == alone
    assert not list((folder / ".kdcache").glob("grid-*"))


CLAIM_AND_WAIT = """
import filelock, sys, time
held = [filelock.FileLock(lock).acquire() for lock in sys.argv[1:]]
print("claimed", flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_leaves_is_taken_up(cached_project, monkeypatch):
    """The system releases its claims."""
    folder = cached_project(distill={"seeds": [0]})
    assert run(*DISTILL)[0] == 0
    alone = contents(folder / "runs")
    take, trained = workers.take_turns, []

    def beside_a_process_that_dies(passes, lock, done, train, wait):
        locks = [str(lock(one).absolute()) for one in passes]
        command = [sys.executable, "-c", CLAIM_AND_WAIT, *locks]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"claimed\n"
            take(passes, lock, done, trained.append, wait=False)
            assert not trained
            process.kill()
        take(passes, lock, done, train, wait)

    monkeypatch.setattr("kdcache.students.grid.take_turns", beside_a_process_that_dies)
    assert run(*DISTILL)[0] == 0
    assert contents(folder / "runs") == alone


def test_an_error_of_another_process_is_said_once(cached_project, started):
    cached_project(distill={"seeds": [0, 1]})
    assert run(*DISTILL, "--seed", "7")[0] == 0
    donor = "distill.init=student:runs/cb/ce-7"
    code, _, error = run(*DISTILL, *SIDE_BY_SIDE, "--set", donor, "--set", "distill.num_virtual_tokens=3")
    assert code == 1
    assert error.count("num_virtual_tokens") == 1
    assert len(started) == 1
    assert started[0].returncode is not None  # ended with the command


READ_AND_COUNT = "import json, os, sys; os.write(int(sys.argv[1]), b'.' * json.load(sys.stdin)[1])"


def test_every_helper_reads_its_work_and_tells_its_steps(monkeypatch):
    monkeypatch.setattr(workers, "COMMAND", [sys.executable, "-c", READ_AND_COUNT])
    told: queue.Queue[int] = queue.Queue()
    with workers.helpers(4, [3], told.put):
        assert sum(told.get(timeout=60) for _ in range(4)) == 12


def test_passes_are_taken_once_and_waited_for(tmp_path: Path):
    done, trained = set("b"), []
    take_turns("abc", lambda one: tmp_path / one, done.__contains__, trained.append, wait=False)
    assert trained == ["a", "c"]


@pytest.mark.parametrize(
    ("processes", "threads", "wanted"), [("auto", 4, (4, 1)), (2, 4, (2, 2)), (3, 2, (3, 1))]
)
def test_threads_are_shared(project, processes, threads, wanted):
    project()
    params = Project.load([f"distill.workers={processes}"]).section("distill", DistillParams)
    assert params.side_by_side(threads) == wanted


def test_the_number_of_processes_changes_no_build(cached_project):
    cached_project()
    builds = {Grid(Project.load([f"distill.workers={count}"]), "cb").scratch for count in ("auto", 1, 2)}
    assert len(builds) == 1, "threads are 1 in each"


@pytest.mark.parametrize("section", ["null", "3"])
def test_workers_of_a_bad_section_are_one_line(cached_project, section):
    cached_project()
    assert "distill" in fails("distill", "--workers", "2", "--set", f"distill={section}")


def test_a_node_with_other_files_or_packages_trains_no_student(cached_project):
    cached_project()
    raw = Project.load().raw
    with pytest.raises(DataError, match="first process"):
        open_trainer({}, ".kdcache/grid-0123456789abcdef/students", raw, "cb", [])
    open_trainer({}, str(Grid(Project.load(), "cb").scratch / "students"), raw, "cb", [])
