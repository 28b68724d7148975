"""A Ray cluster of several nodes on this machine: whatever dies, the bytes are those of one process."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run

from kdcache.cache import writer
from kdcache.cache.location import Location
from kdcache.teacher import cache_teacher

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")  # of Ray
pytestmark = [
    pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]  # fmt: skip

OPEN = cache_teacher.open_elsewhere
CACHE = Path("cache/wic")
TAUGHT = ("prepare", "teach --task wic")
PATH = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
BY_RAY = ("--engine", "ray", "--workers", "2")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def open_cluster() -> Any:
    """A head that does no units."""
    from ray.cluster_utils import Cluster

    return Cluster(initialize_head=True, head_node_args={"num_cpus": 0})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head and two nodes of one CPU, whose workers find kdcache and these tests."""
    monkeypatch.setenv("PYTHONPATH", PATH)
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    found = open_cluster()
    found.nodes = [found.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


@contextlib.contextmanager
def meanwhile(when: Callable[[], bool], do: Callable[[], object]) -> Iterator[list[object]]:
    """Do something as soon as something is so, while the block runs."""
    did: list[object] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if when():
                did.append(do())
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield did
    over.set()
    thread.join()


def stored() -> int:
    """Parts that are there."""
    return len(list(Path(".kdcache").glob("cache_teacher-*/parts/*.npz")))


def workers() -> list[Any]:
    """The processes that do units."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended
            found += [process] if "ray::_Serving" in " ".join(process.cmdline()) else []
    return found


@pytest.fixture
def serial(built_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of a cache of more than 80 parts that one process made, in a project without it."""
    built_project(*TAUGHT, prepare={"max_rows": None})
    monkeypatch.setattr(writer, "PART_ROWS", 8)
    assert run("cache", "--task", "wic")[0] == 0
    found = contents(CACHE)
    shutil.rmtree(CACHE)
    return found


def open_slowly(*arguments: Any) -> Callable[[Any], None]:
    """A worker that leaves time for what happens meanwhile."""
    work = OPEN(*arguments)

    def slow(part: Any) -> None:
        time.sleep(0.1)
        work(part)

    return slow


def test_nodes_die_and_join_while_a_cache_is_made(serial, cluster, monkeypatch):
    monkeypatch.setattr("kdcache.teacher.cache_teacher.open_elsewhere", open_slowly)
    with ThreadPoolExecutor(1) as beside:  # nodes are added by the main thread only
        made = beside.submit(run, "cache", "--task", "wic", *BY_RAY)
        while stored() < 84:  # a third
            assert not made.done(), made.result()
            time.sleep(0.01)
        one, other = cluster.nodes
        cluster.remove_node(one, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        cluster.remove_node(other, allow_graceful=False)  # the one that joined does the rest
        assert 84 <= stored() < 252
        assert made.result()[0] == 0
    assert contents(CACHE) == serial


def test_nodes_without_a_shared_disk_make_a_cache_through_a_store(serial, s3, cluster, monkeypatch, tmp_path):
    nodes = tmp_path / "nodes"
    nodes.mkdir()

    def open_apart(*arguments: Any) -> Callable[[Any], None]:
        """A worker whose disk has copies of the data and the teacher, and nothing else of the project."""
        own = nodes / str(os.getpid())
        for name in ("data", "models"):
            shutil.copytree(name, own / name)
        os.chdir(own)
        work = OPEN(*arguments)

        def apart(part: Any) -> None:
            work(part)
            (own / f"{part}.did").touch()

        return apart

    monkeypatch.setattr("kdcache.teacher.cache_teacher.open_elsewhere", open_apart)
    parts, cache = f"s3://bucket/parts?{s3}", f"s3://bucket/cache?{s3}"
    places = ("--set", f"paths.parts={parts}", "--set", f"paths.cache={cache}")
    with meanwhile(lambda: stored() > 0, lambda: True) as in_scratch:
        code, _, error = run("cache", "--task", "wic", *BY_RAY, *places)
    assert code == 0, error
    place = Location.parse(cache, "wic")
    assert {name: place.read(name) for name in place.names()} == serial
    assert not in_scratch
    assert Location.parse(parts).names(recursive=True) == []
    did = list(nodes.glob("*/*.did"))
    assert len({path.parent for path in did}) == 2
    assert len({path.name for path in did}) >= 80
    assert not [own for own in nodes.iterdir() if (own / ".kdcache").exists()]


def open_poisoned(*arguments: Any) -> Callable[[Any], None]:
    """A worker that dies at one part."""
    work = OPEN(*arguments)

    def poisoned(part: Any) -> None:
        if str(part) == "tune-fold-0-0-0000000008":
            os._exit(1)
        work(part)

    return poisoned


def test_a_part_that_kills_its_workers_is_named(serial, cluster, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("kdcache.teacher.cache_teacher.open_elsewhere", open_poisoned)
        code, _, error = run("cache", "--task", "wic", *BY_RAY)
    assert code == 1
    assert "tune-fold-0-0-0000000008" in error.splitlines()[-1]
    assert stored() > 0
    assert run("cache", "--task", "wic", *BY_RAY)[0] == 0  # what was done is kept, and the rest is done now
    assert contents(CACHE) == serial


def test_an_error_of_a_worker_is_its_own(serial, cluster):
    with meanwhile(
        lambda: stored() > 8, lambda: Path("models/teacher/wic/fold-1/model.safetensors").unlink()
    ):
        code, _, error = run("cache", "--task", "wic", *BY_RAY)
    assert code == 1
    assert "fold-1" in error.splitlines()[-1]
    assert "Traceback" not in error


def test_a_cluster_without_the_cpus_is_refused(serial, cluster):
    code, _, error = run("cache", "--task", "wic", *BY_RAY, "--set", "threads=9")
    assert code == 1
    assert "CPUs" in error.splitlines()[-1]


def test_the_head_dies_and_the_rerun_goes_on(serial, monkeypatch):
    code = (
        "import kdcache.cache.writer as w; w.PART_ROWS = 8\n"
        "import kdcache.teacher.cache_teacher as c, test_cluster\n"
        "c.open_elsewhere = test_cluster.open_slowly\n"
        "from kdcache.cli import app\n"
        f"app({['cache', '--task', 'wic', *BY_RAY]!r})"
    )
    monkeypatch.setenv("PYTHONPATH", PATH)
    cluster = open_cluster()
    cluster.add_node(num_cpus=1)

    def start() -> subprocess.Popen[str]:
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        return subprocess.Popen(
            [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment
        )

    first = start()
    while stored() < 60:
        assert first.poll() is None
        time.sleep(0.01)
    cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    cluster.shutdown()  # the nodes go with it
    with contextlib.suppress(subprocess.TimeoutExpired):
        first.wait(timeout=20)  # without a cluster it ends by itself, or waits
    first.kill()
    first.communicate()
    kept = stored()
    assert 60 <= kept < 252

    cluster = open_cluster()
    cluster.add_node(num_cpus=1)
    try:
        second = start()
        _, error = second.communicate(timeout=300)
        assert second.returncode == 0, error
        assert contents(CACHE) == serial
    finally:
        cluster.shutdown()


DISTILL = ("distill", "--task", "cb", "--arm", "ce", "--arm", "kl", "--set", "distill.epochs=null")


def test_a_student_whose_worker_dies_goes_on_elsewhere(cached_project, cluster):
    folder = cached_project(distill={"seeds": [0]})
    steps = ("--set", "distill.steps=260")  # a checkpoint after 200
    assert run(*DISTILL, *steps)[0] == 0
    alone = contents(folder / "runs")
    shutil.rmtree(folder / "runs")

    def in_the_middle() -> bool:
        return bool(list(folder.glob(".kdcache/grid-*/[0-9a-f]*.pt"))) and bool(workers())

    with meanwhile(in_the_middle, lambda: workers()[0].kill()) as killed:
        code, _, error = run(*DISTILL, *steps, "--set", "engine=ray", "--set", "workers=2")
    assert code == 0, error
    assert killed
    assert contents(folder / "runs") == alone


def test_a_teacher_whose_worker_dies_goes_on_elsewhere(built_project, cluster):
    folder = built_project(
        "prepare", train_teacher={"ensemble": 2, "folds": 2, "epochs": 60, "batch_size": 4}
    )
    taught = ("teach", "--task", "cb")
    assert run(*taught)[0] == 0
    alone = contents(folder / "models")
    shutil.rmtree(folder / "models")

    def in_the_middle() -> bool:
        return bool(list(folder.glob(".kdcache/train_teacher-*/checkpoints-*/checkpoint-*"))) and bool(
            workers()
        )

    with meanwhile(in_the_middle, lambda: workers()[0].kill()) as killed:
        code, _, error = run(*taught, *BY_RAY)
    assert code == 0, error
    assert killed
    assert contents(folder / "models") == alone
