"""Rows that the teacher computes again: the verdict is the same whoever computes them."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import fails, run

from kdcache.cache import writer
from kdcache.cache.reader import load_cache
from kdcache.teacher import recompute

CACHE = Path("cache/cb")
VERIFY = ("verify", "--task", "cb", "--teacher-rows", "32")  # all
OPEN = recompute.open_recomputing


def move_a_row() -> None:
    """Replace the cache by one of right digests, with a row that is not what the teacher says."""
    cached = {name: load_cache(CACHE, name) for name in ("train", "tune", "validation")}
    manifest = cached["train"].manifest
    rows = {name: split.rows for name, split in cached.items()}
    logits = rows["validation"].logits.copy()
    logits[20] += 0.01  # all alike: no prediction changes
    rows["validation"] = replace(rows["validation"], logits=logits)
    facts = {"tolerance": manifest.tolerance, "metrics": manifest.metrics}
    writer.write_cache(CACHE, Path(".kdcache/x"), rows, identity=manifest.identity, **facts)


def open_dying(*arguments: Any) -> Callable[[Any], None]:
    """A worker that dies at its second chunk, where none did before."""
    work, done = OPEN(*arguments), []

    def dying(chunk: Any) -> None:
        if done and not Path("died").exists():
            Path("died").touch()
            os._exit(9)
        work(chunk)
        done.append(chunk)

    return dying


def test_workers_give_the_verdict_of_one_process_also_where_one_dies(cached_project, monkeypatch):
    cached_project()
    move_a_row()
    monkeypatch.setattr(recompute, "LEAST", 8)  # so there are several chunks
    alone = run(*VERIFY)
    assert alone[0] == 1
    assert f"for {load_cache(CACHE, 'validation').rows.example_id[20]}. " in alone[2]  # and for no other
    monkeypatch.setattr(recompute, "open_recomputing", open_dying)
    assert run(*VERIFY, "--workers", "2") == alone
    assert Path("died").exists()
    assert not list(Path(".kdcache").glob("recompute-*"))


def test_results_that_something_removed_are_no_verdict(cached_project, monkeypatch):
    cached_project()
    monkeypatch.setattr(recompute, "spread", lambda *_: None)
    assert "train-0000000000" in fails(*VERIFY, "--workers", "2")
