"""The parts of a cache: whoever computes them, the bytes are those of one process."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import fails, run

from kdcache.cache import writer
from kdcache.teacher import cache_teacher, extraction

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


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(serial):
    assert run("cache", "--task", "cb", "--workers", "2")[0] == 0
    assert content() == serial
