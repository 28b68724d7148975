"""Units of work: each done once in whatever process, what kills workers is named, what fails says why."""

import os
from functools import partial
from pathlib import Path

import pytest

from kdcache.errors import DataError, KdcacheError, ParamsError
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
