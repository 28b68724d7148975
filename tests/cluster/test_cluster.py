"""A Ray cluster of several nodes on this machine: whatever dies, the bytes are those of one process."""

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run, run_all
from save_every import save_every
from test_spread import UNITS, open_writer

from kdcache.cache import writer
from kdcache.cli import app
from kdcache.errors import DataError, KdcacheError
from kdcache.spread import ATTEMPTS, Engine, spread
from kdcache.store.location import Location
from kdcache.students import loop, train_grid
from kdcache.teacher import cache_teacher, checkpoints, train_teacher
from kdcache.teacher.checkpoints import KeepWhole

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")  # of accelerate
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings

CACHE = Path("cache/wic")
TAUGHT = ("prepare", "teach --task wic")
BY_RAY = ("--engine", "ray", "--workers", "2")
MAKE_CACHE = ("cache", "--task", "wic", *BY_RAY)
PART_ROWS, PARTS, THIRD = 2, 96, 32
POISON = "tune-fold-0-0-0000000002"
OPEN = cache_teacher.open_elsewhere
OPEN_TRAINER, OPEN_TRAINING = train_grid.open_trainer, train_teacher.open_training


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stored() -> set[str]:
    """Parts that are there."""
    return {path.name.split(".")[0] for path in Path(".kdcache").glob("cache_teacher-*/parts/*.npz")}


def begun() -> list[str]:
    """Parts at which gated workers were, in the order of time."""
    return Path("begun").read_text().splitlines()


@pytest.fixture(scope="module")
def on_ray() -> Iterator[None]:
    """What Ray's processes are started with: they find kdcache and these tests, and leave no file behind."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, since the paths of sockets are
    path = (ROOT, ROOT / "tests", Path(__file__).parent)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_TMPDIR", folder)
        patched.setenv("PYTHONPATH", os.pathsep.join(map(str, path)))
        patched.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # of the fixture ``s3``
            patched.setenv(name, "test")
        patched.setenv("RAY_memory_monitor_refresh_ms", "0")  # it would kill workers where memory is short
        yield
    for process in psutil.process_iter():  # agents of killed nodes; all, where a test was cut off
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(f.path.startswith(folder) for f in process.open_files()):
                process.kill()
    gc.collect()  # what Ray left is found here, not in the next test
    shutil.rmtree(folder, ignore_errors=True)


def add_node(cluster: Any, cpus: int = 1) -> Any:
    return cluster.add_node(num_cpus=cpus, object_store_memory=80 * 2**20)


def open_cluster(nodes: int) -> Any:
    """A head that does no units, and nodes of one CPU."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    add_node(cluster, cpus=0)
    for _ in range(nodes):
        add_node(cluster)
    return cluster


@pytest.fixture(scope="module")
def nodes(on_ray: None) -> Iterator[Any]:
    """A head and two nodes, which the tests share."""
    found = open_cluster(2)
    yield found
    found.shutdown()
    found.global_state.disconnect()  # else it ends this process when it has waited long enough for the head


@pytest.fixture
def cluster(nodes: Any) -> Iterator[Any]:
    """The shared cluster, whole, to which this process is connected."""
    while len(nodes.worker_nodes) < 2:
        add_node(nodes)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()


@pytest.fixture(scope="module")
def by_one_process(
    build_once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of a cache of ``PARTS`` parts."""
    folder = tmp_path_factory.mktemp("serial") / "project"
    shutil.copytree(build_once(TAUGHT), folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(writer, "PART_ROWS", PART_ROWS)
        run_all(folder, ["cache", "--task", "wic"])
    return contents(folder / CACHE)


@pytest.fixture
def serial(
    by_one_process: dict[str, bytes], built_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> dict[str, bytes]:
    """Those files, in a project that is yet without them."""
    built_project(*TAUGHT)
    monkeypatch.setattr(writer, "PART_ROWS", PART_ROWS)
    return by_one_process


def start(*arguments: str) -> "Future[tuple[int, str, str]]":
    """Run a command in a thread, since nodes live no longer than the thread that adds them."""
    made: Future[tuple[int, str, str]] = Future()

    def work() -> None:
        try:
            made.set_result(run(*arguments))
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return made


def wait_until(so: Callable[[], object], over: Callable[[], object]) -> None:
    while not so():
        assert not over()
        time.sleep(0.01)


@contextlib.contextmanager
def gate() -> Iterator[None]:
    """Let workers pass at the end, whatever happens."""
    try:
        yield
    finally:
        Path("open").touch()


def open_gated(*arguments: Any) -> Callable[[Any], None]:
    """A worker that stops when a third of the parts is there, until the gate is open."""
    work = OPEN(*arguments)

    def gated(part: Any) -> None:
        while len(stored()) >= THIRD and not Path("open").exists():
            time.sleep(0.01)
        with open("begun", "a") as names:
            names.write(f"{part}\n")
        work(part)

    return gated


def test_a_node_dies_and_another_joins_while_a_cache_is_made(serial, cluster, monkeypatch):
    monkeypatch.setattr("kdcache.teacher.cache_teacher.open_elsewhere", open_gated)
    one, other = cluster.worker_nodes
    with gate():
        made = start(*MAKE_CACHE)
        wait_until(lambda: len(stored()) >= THIRD, made.done)
        cluster.remove_node(one, allow_graceful=False)
        add_node(cluster)
        cluster.remove_node(other, allow_graceful=False)  # the one that joined does the rest
        assert len(stored()) <= THIRD + 1
    assert made.result(timeout=200)[0] == 0
    assert len(set(begun())) == PARTS
    assert contents(CACHE) == serial


def apart(opened: Callable[..., Callable[[Any], None]], nodes: Path) -> Callable[..., Callable[[Any], None]]:
    """Workers whose disks have copies of what was made before, and nothing else of the project."""
    nodes.mkdir()

    def open_apart(*arguments: Any) -> Callable[[Any], None]:
        own = nodes / str(os.getpid())
        own.mkdir()
        for made in filter(os.path.isdir, ("tiny", "data", "models", "cache")):
            shutil.copytree(made, own / made)
        os.chdir(own)
        work = opened(*arguments)
        (own / "opened").touch()
        wait_until(lambda: len(list(nodes.glob("*/opened"))) == 2, lambda: False)  # both do some

        def apart(unit: Any) -> None:
            work(unit)
            (own / f"{unit}.did").touch()

        return apart

    return open_apart


def units_done(nodes: Path, workers: int) -> set[str]:
    """What workers did that have disks of their own."""
    did = list(nodes.glob("*/*.did"))
    assert len({path.parent for path in did}) == workers
    return {path.stem for path in did}


def test_nodes_without_a_shared_disk_make_a_cache_through_a_store(serial, s3, cluster, monkeypatch, tmp_path):
    nodes = tmp_path / "nodes"
    monkeypatch.setattr("kdcache.teacher.cache_teacher.open_elsewhere", apart(OPEN, nodes))
    parts, cache = f"s3://bucket/parts?{s3}", f"s3://bucket/cache?{s3}"
    places = ("--set", f"paths.parts={parts}", "--set", f"paths.cache={cache}")
    code, _, error = run(*MAKE_CACHE, *places)
    assert code == 0, error
    place = Location.parse(cache, "wic")
    assert {name: place.read(name) for name in place.names()} == serial
    assert Location.parse(parts).names(recursive=True) == []
    assert len(units_done(nodes, 2)) >= 80
    assert not [own for own in nodes.iterdir() if (own / ".kdcache").exists()]


def test_nodes_without_a_shared_disk_train_teachers_and_students(
    cached_project, s3, cluster, monkeypatch, tmp_path
):
    folder = cached_project(
        "wic", train_teacher={"ensemble": 2, "folds": 0, "epochs": 1}, distill={"seeds": [0]}
    )
    distill = ("distill", "--task", "wic", "--arm", "ce", "--arm", "kl", "--arm", "kl+gram")
    distill += ("--set", "distill.arms.kl+gram.lr=1e30")
    assert run(*distill)[0] == 0
    alone = contents(folder / "models") | contents(folder / "runs")
    shutil.rmtree(folder / "runs")

    store = ("--set", f"paths.parts=s3://bucket/parts?{s3}", *BY_RAY)
    opened = apart(OPEN_TRAINER, tmp_path / "of_students")
    monkeypatch.setattr("kdcache.students.train_grid.open_trainer", opened)
    code, _, error = run(*distill, *store)
    assert code == 0, error
    assert units_done(tmp_path / "of_students", 2) == {"ce-0", "kl-0", "kl+gram-0"}
    assert "wic kl+gram, seed 0: the loss must stay finite" in error

    shutil.rmtree(folder / "models" / "teacher")
    opened = apart(OPEN_TRAINING, tmp_path / "of_teachers")
    monkeypatch.setattr("kdcache.teacher.train_teacher.open_training", opened)
    code, _, error = run("teach", "--task", "wic", *store)
    assert code == 0, error
    assert units_done(tmp_path / "of_teachers", 2) == {"all-rows-0", "all-rows-1"}
    assert contents(folder / "models") | contents(folder / "runs") == alone
    assert Location.parse(f"s3://bucket/parts?{s3}").names(recursive=True) == []


RAY = Engine("ray", 2)


def test_a_unit_that_kills_its_workers_is_named(cluster, tmp_path):
    with pytest.raises(KdcacheError, match="c: a worker must live"):
        spread(UNITS, partial(open_writer, tmp_path, {"c": 99, "a": 1}), RAY)
    assert len(list(tmp_path.glob("c.died-*"))) == ATTEMPTS
    with pytest.raises(DataError, match="b: it must be right, got wrong"):  # an error is told as it is
        spread(UNITS, partial(open_writer, tmp_path, {}, "b"), RAY)


def test_a_cluster_without_the_cpus_is_refused(serial, cluster):
    code, _, error = run(*MAKE_CACHE, "--set", "threads=9")
    assert code == 1
    assert "CPUs" in error.splitlines()[-1]


def cache_on_a_cluster_of_its_own() -> None:
    """Make the cache, from the start of a head and a node on."""
    writer.PART_ROWS, cache_teacher.open_elsewhere = PART_ROWS, open_gated
    ray.init(address=open_cluster(1).address, log_to_driver=False)
    app(list(MAKE_CACHE))


def test_the_head_dies_and_the_rerun_goes_on(serial, cluster, monkeypatch):
    code = "import test_cluster; test_cluster.cache_on_a_cluster_of_its_own()"
    with gate(), subprocess.Popen([sys.executable, "-c", code]) as first:
        try:
            wait_until(lambda: len(stored()) >= THIRD, lambda: first.poll() is not None)
            (head,) = [p for p in psutil.Process(first.pid).children() if p.name() == "gcs_server"]
            head.kill()
        finally:
            first.kill()  # it would wait for the head; its node goes with it
    kept, first_begun = stored(), begun()
    assert len(kept) >= THIRD

    monkeypatch.setattr("kdcache.teacher.cache_teacher.open_elsewhere", open_gated)
    assert run(*MAKE_CACHE, "--workers", "1")[0] == 0  # on the cluster that is there now
    assert contents(CACHE) == serial
    assert not kept & set(begun()[len(first_begun) :])  # none of what was there is computed again


def save_and_die(save: Callable[..., None]) -> Callable[..., None]:
    """Save a checkpoint, and kill this process where no other was killed before."""

    def dying(*state: Any, **others: Any) -> None:
        save(*state, **others)
        with contextlib.suppress(FileExistsError):
            Path("killed").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)

    return dying


def open_dying_trainer(*arguments: Any) -> Callable[[Any], None]:
    save_every(6, loop)
    loop.save_runs = save_and_die(loop.save_runs)
    return OPEN_TRAINER(*arguments)


def test_a_student_whose_worker_dies_goes_on_elsewhere(cached_project, cluster, monkeypatch):
    folder = cached_project("wic", distill={"seeds": [0]})
    distill = ("distill", "--task", "wic", "--arm", "ce", "--arm", "kl")
    steps = ("--set", "distill.epochs=null", "--set", "distill.steps=10")
    assert run(*distill, *steps)[0] == 0
    alone = contents(folder / "runs")
    shutil.rmtree(folder / "runs")
    monkeypatch.setattr("kdcache.students.train_grid.open_trainer", open_dying_trainer)
    code, _, error = run(*distill, *steps, *BY_RAY)
    assert code == 0, error
    assert Path("killed").exists()
    assert contents(folder / "runs") == alone


def open_dying_training(*arguments: Any) -> Callable[[Any], None]:
    save_every(2, checkpoints)
    KeepWhole.on_save = save_and_die(KeepWhole.on_save)  # type: ignore[method-assign]
    return OPEN_TRAINING(*arguments)


@pytest.mark.slow
def test_a_teacher_whose_worker_dies_goes_on_elsewhere(built_project, cluster, monkeypatch):
    folder = built_project("prepare", train_teacher={"folds": 2, "epochs": 2, "batch_size": 8})
    assert run("teach", "--task", "wic")[0] == 0
    alone = contents(folder / "models")
    shutil.rmtree(folder / "models")
    monkeypatch.setattr("kdcache.teacher.train_teacher.open_training", open_dying_training)
    code, _, error = run("teach", "--task", "wic", *BY_RAY)
    assert code == 0, error
    assert Path("killed").exists()
    assert contents(folder / "models") == alone


def open_poisoned(*arguments: Any) -> Callable[[Any], None]:
    """A worker that dies at one part."""
    work = OPEN(*arguments)

    def poisoned(part: Any) -> None:
        if str(part) == POISON:
            os._exit(1)
        work(part)

    return poisoned


@pytest.mark.slow
def test_a_part_of_a_cache_that_kills_its_workers_is_named(serial, cluster, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("kdcache.teacher.cache_teacher.open_elsewhere", open_poisoned)
        code, _, error = run(*MAKE_CACHE)
    assert code == 1
    assert POISON in error.splitlines()[-1]
    assert stored()
    assert run(*MAKE_CACHE)[0] == 0  # what was done is kept, and the rest is done now
    assert contents(CACHE) == serial


@pytest.mark.slow
def test_an_error_of_a_worker_is_its_own(serial, cluster):
    Path("models/teacher/wic/fold-1/config.json").write_text("{")
    code, _, error = run(*MAKE_CACHE)
    assert code == 1
    assert "fold-1" in error.splitlines()[-1]
    assert "Traceback" not in error
