"""Writing: killed or refused at any moment, nothing is lost and nothing half-made is in place."""

import errno
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import IDENTITY, rows, write

from kdcache.cache import schema, writer
from kdcache.cache.reader import load_cache
from kdcache.cache.writer import CacheWriter, write_cache
from kdcache.errors import CacheError, CacheMissing, ShapeError


def test_same_rows_give_the_same_bytes_however_they_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "ROW_GROUP_ROWS", 4)
    monkeypatch.setattr(schema, "ROW_GROUP_ROWS", 4)
    write(tmp_path / "whole" / "wic", tmp_path)
    with CacheWriter(tmp_path / "cut" / "wic", tmp_path / "scratch") as cache:
        cache.write("train", (rows().take(part) for part in ([0], [1, 2, 3, 4, 5, 6, 7, 8], [], [9])))
        facts = load_cache(tmp_path / "whole" / "wic", "train").manifest
        cache.finish(IDENTITY, metrics=facts.metrics, cost=facts.cost)
    for name in ("train.parquet", "manifest.json"):
        assert (tmp_path / "whole" / "wic" / name).read_bytes() == (
            tmp_path / "cut" / "wic" / name
        ).read_bytes()


@pytest.mark.parametrize(("kills", "spread"), [(5, 1), pytest.param(32, 10, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_next_run_ends_in_the_same_bytes(tmp_path: Path, kills: int, spread: int):
    script = Path(__file__).parent / "kill.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(kills)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    killed = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(killed) == kills
    assert sum(0 < k["parts"] < k["of"] for k in killed) >= spread, killed  # some in the middle of the build


def arrays(part: slice) -> dict[str, np.ndarray]:
    return {"logits": np.arange(part.start, part.stop, dtype=np.float32)[:, None]}


def test_whole_parts_are_not_computed_again_and_damaged_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer, "PART_ROWS", 4)
    computed: list[int] = []

    def compute(part: slice) -> dict[str, np.ndarray]:
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(part.start)
        return arrays(part)

    def run() -> list[float]:
        with CacheWriter(tmp_path / "wic", tmp_path / "s" / "key") as cache:
            return [x for _, part in cache.resume("train", 10, compute) for x in part["logits"][:, 0]]

    with pytest.raises(KeyboardInterrupt):
        run()
    assert computed == [0, 4]
    damaged = next((tmp_path / "s" / "key" / "parts").glob("train-0000000004.*"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:100] + bytes([content[100] ^ 4]) + content[101:])
    computed.clear()
    assert run() == list(range(10))
    assert computed == [4, 8]


def test_second_writer_says_so_and_a_dead_one_leaves_no_lock(tmp_path: Path):
    place, scratch = tmp_path / "wic", tmp_path / "s" / "key"
    code = (
        "import sys, os, pathlib; from kdcache.cache.writer import CacheWriter\n"
        f"cache = CacheWriter({str(place)!r}, pathlib.Path({str(scratch)!r})).__enter__()\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"locked\n"
        with pytest.raises(CacheError) as error, CacheWriter(place, scratch):
            pass
    finally:
        first.kill()
        first.communicate()
    assert str(error.value) == (
        f"{place}: only one process may write it at a time, got another at work. "
        "Wait for it to end, then run this again."
    )
    write(place, tmp_path / "s")
    assert len(load_cache(place, "train")) == 10


def test_full_disk_is_one_line_and_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A limit on the size of files stands for the full disk: real errors of real writes."""
    monkeypatch.setattr(writer, "PART_ROWS", 4)
    write(tmp_path / "wic", tmp_path, rows(seed=1))
    before = (tmp_path / "wic" / "train.parquet").read_bytes()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = rows(200_000)
    with CacheWriter(tmp_path / "wic", tmp_path / "s" / "key") as cache:
        list(cache.resume("train", 10, arrays))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(CacheError) as error:
                cache.write("train", [big])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/wic: it must fit where it is written, got: ")
    assert message.endswith("Fix that, then run the same command again. Finished parts are kept.")
    assert len(message.splitlines()) == 1
    assert len(list((tmp_path / "s" / "key" / "parts").iterdir())) == 3
    assert (tmp_path / "wic" / "train.parquet").read_bytes() == before


@pytest.mark.parametrize("moment", ["part", "manifest", "rename"])
def test_refused_writes_at_other_moments_are_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = (writer.Manifest, "write") if moment == "manifest" else (os, "replace")
    with CacheWriter(tmp_path / "wic", tmp_path / "s" / "key") as cache:
        cache.write("train", [rows()])
        monkeypatch.setattr(*target, refuse)
        with pytest.raises(CacheError) as error:
            list(cache.resume("train", 10, arrays)) if moment == "part" else cache.finish(IDENTITY)
    assert str(error.value) == (
        f"{tmp_path}/wic: it must fit where it is written, got: No space left on device. "
        "Fix that, then run the same command again. Finished parts are kept."
    )
    with pytest.raises(CacheMissing):
        load_cache(tmp_path / "wic", "train")


def test_read_only_folder_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(CacheError) as error, CacheWriter(tmp_path / "deep" / "wic", tmp_path / "s" / "key"):
        pass
    assert str(error.value) == (
        f"{tmp_path}/deep/wic: the folder must be writable, got a read-only {tmp_path}. "
        "Set paths.cache to one that is."
    )


def test_an_error_of_the_source_stays_its_own(tmp_path: Path):
    def broken(part: slice) -> dict[str, np.ndarray]:
        raise FileNotFoundError("weights")

    with CacheWriter(tmp_path / "wic", tmp_path / "s" / "key") as cache, pytest.raises(FileNotFoundError):
        cache.write("train", (rows() for _ in cache.resume("train", 10, broken)))


def test_what_no_cache_may_hold_is_refused(tmp_path: Path):
    def refused(changed, message: str) -> None:
        with pytest.raises(ShapeError, match=message):
            write_cache(tmp_path / "wic", tmp_path / "s" / "key", {"train": changed}, identity=IDENTITY)

    whole = rows()
    nan = whole.logits.copy()
    nan[3, 1] = np.nan
    refused(replace(whole, logits=nan), "logits must be finite, got NaN or infinity")
    refused(replace(whole, features=np.full((10, 5), 1e6)), r"features must fit float16, got 1e\+06")
    refused(
        replace(whole, label=np.zeros(9, np.int64)), "all columns must have 10 rows, got 10, 9, 10, 10, 10"
    )
    refused(
        replace(whole, example_id=["a", "a", *whole.example_id[2:]]),
        "ids of train must be unique, got twice a",
    )
    refused(whole.take([]), "train must hold at least one row, got none")
    with CacheWriter(tmp_path / "wic", tmp_path / "s" / "key") as cache:
        cache.write("train", [whole])
        with pytest.raises(ShapeError, match=r"features of tune must be float16\[5\] as before, got none"):
            cache.write("tune", [rows(dim=0)])
    assert not (tmp_path / "wic").exists()
