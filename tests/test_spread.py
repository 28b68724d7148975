"""Units of work: each done once in whatever process, what kills workers is named, what fails says why."""

import io
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from kdcache.errors import DataError, KdcacheError, ParamsError
from kdcache.progress import UnitBar, tell
from kdcache.spread import ATTEMPTS, Engine, spread


def open_writer(folder: Path, kills: dict[str, int], wrong: str = ""):
    """A worker that leaves a file per unit; ``kills``: unit → how many workers die at it."""

    def work(unit: str) -> None:
        died = len(list(folder.glob(f"{unit}.died-*")))
        if died < kills.get(unit, 0):
            (folder / f"{unit}.died-{died}").touch()
            os._exit(9)
        if unit == wrong:
            raise DataError(f"{unit}: it must be right, got wrong.")
        (folder / f"{unit}.{os.getpid()}").touch()

    return work


def done(folder: Path) -> dict[str, str]:
    """Unit → the process that did it."""
    return dict(path.name.split(".") for path in folder.iterdir() if "died" not in path.name)


TWO = Engine("local", workers=2)
UNITS = list("abcdefgh")


def test_one_worker_is_this_process_and_keeps_the_order(tmp_path: Path):
    after: list[str] = []
    spread(UNITS, partial(open_writer, tmp_path, {}), after=after.append)
    assert after == UNITS
    assert done(tmp_path) == dict.fromkeys(UNITS, str(os.getpid()))


def test_a_unit_whose_worker_dies_is_done_by_another(tmp_path: Path):
    after: list[str] = []
    spread(UNITS, partial(open_writer, tmp_path, {"c": ATTEMPTS - 1, "a": 1}), TWO, after=after.append)
    assert sorted(after) == UNITS
    assert sorted(done(tmp_path)) == UNITS
    assert str(os.getpid()) not in done(tmp_path).values()


def test_a_unit_that_kills_every_worker_is_named(tmp_path: Path):
    with pytest.raises(KdcacheError, match="c: a worker must live"):
        spread(UNITS, partial(open_writer, tmp_path, {"c": 99}), TWO)
    assert len(list(tmp_path.glob("c.died-*"))) == ATTEMPTS


def open_teller(folder: Path):
    """A worker that tells twice how much it did; the first one at "a" dies in between."""

    def work(unit: str) -> None:
        tell(2)
        if unit == "a" and not (folder / "died").exists():
            (folder / "died").touch()
            os._exit(9)
        tell(1)

    return work


def test_what_is_told_of_a_unit_is_heard_and_none_counts_twice(tmp_path: Path):
    heard: list[tuple[str, int]] = []
    bar = UnitBar(dict.fromkeys(UNITS, 4), 5, file=io.StringIO())

    def during(unit: str, count: int) -> None:
        heard.append((unit, count))
        bar.during(unit, count)

    spread(UNITS, partial(open_teller, tmp_path), TWO, 1, bar.after, during)
    assert (tmp_path / "died").exists()
    assert sorted(heard) == sorted([("a", 2)] + [(unit, count) for unit in UNITS for count in (1, 2)])
    assert bar.n == bar.total == 5 + 4 * len(UNITS)
    heard.clear()
    spread(UNITS, partial(open_teller, tmp_path), during=during)
    assert heard == [(unit, count) for unit in UNITS for count in (2, 1)]
    tell(1)  # nobody listens


def open_and_die(folder: Path):
    (folder / f"died-{os.getpid()}").touch()
    os._exit(9)


def test_workers_that_die_as_they_start_end_it(tmp_path: Path):
    with pytest.raises(KdcacheError, match="start of a worker"):
        spread(UNITS, partial(open_and_die, tmp_path), TWO)
    assert ATTEMPTS <= len(list(tmp_path.glob("died-*"))) <= ATTEMPTS + 1


def broken() -> None:
    raise DataError("rows: they must be there, got none.")


def test_the_error_of_a_unit_or_of_a_worker_is_its_own(tmp_path: Path):
    with pytest.raises(DataError) as error:
        spread(UNITS, partial(open_writer, tmp_path, {}, "b"), TWO)
    assert str(error.value) == "b: it must be right, got wrong."
    with pytest.raises(DataError, match="rows: they must"):
        spread(UNITS, broken, TWO)  # type: ignore[arg-type]


def test_no_unit_needs_no_worker():
    for engine in (Engine(), TWO, Engine("ray")):
        spread([], broken, engine)  # type: ignore[arg-type]


def test_the_engine_is_read_from_the_top_level():
    assert Engine.of({"tasks": [], "engine": "ray", "workers": 3}) == Engine("ray", 3)
    with pytest.raises(ParamsError, match=r"params\.engine"):
        Engine.of({"engine": "dask"})


def open_sleeper(folder: Path):
    def work(unit: str) -> None:
        (folder / str(os.getpid())).touch()
        time.sleep(60)

    return work


def test_a_worker_ends_soon_after_the_process_that_started_it_whatever_it_is_at(tmp_path: Path):
    code = (
        "import sys; from functools import partial; from pathlib import Path\n"
        "from kdcache.spread import Engine, spread; from test_spread import open_sleeper\n"
        "spread(['a', 'b'], partial(open_sleeper, Path(sys.argv[1])), Engine('local', workers=2))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    first = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    while len(found := list(tmp_path.iterdir())) < 2:
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    until = time.monotonic() + 20
    while any(Path("/proc", path.name).exists() for path in found):
        assert time.monotonic() < until, "a worker goes on alone"
        time.sleep(0.05)
