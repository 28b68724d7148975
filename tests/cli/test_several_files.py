"""Commands on a cache whose splits have several files, beside the same cache of one file per split."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from conftest import run

import kdcache
from kdcache.cache import schema, split_files, writer
from kdcache.cache.manifest import Manifest, read_manifest

CB = Path("cache/cb")
SECOND = "train-00001-of-00003.parquet"


def done(*arguments: str) -> str:
    code, out, error = run(*arguments)
    assert code == 0, error
    return out


def counts(manifest: Manifest) -> dict[str, int]:
    return {split: len(manifest.files_of(split)) for split in manifest.splits}


def inspected() -> dict[str, Any]:
    found = json.loads(done("inspect", "--task", "cb", "--json"))["cache/cb"]
    return {name: value for name, value in found.items() if name != "digest"}


def taught() -> dict[str, pd.DataFrame]:
    """Train two students anew; return their predictions."""
    shutil.rmtree("runs", ignore_errors=True)
    done("distill", "--task", "cb", "--arm", "head", "--arm", "kl", "--seed", "0")
    return {arm: pd.read_parquet(f"runs/cb/{arm}-0/validation.parquet") for arm in ("head", "kl")}


def test_every_command_gives_what_it_gives_of_one_file(built_project, monkeypatch):
    built_project("prepare", "teach --task cb", "shrink")
    for module in (schema, split_files, writer):
        monkeypatch.setattr(module, "ROW_GROUP_ROWS", 4)
    monkeypatch.setattr(writer, "PART_ROWS", 5)  # no part ends where a file ends
    done("cache", "--task", "cb")
    one, seen, students = read_manifest(CB), inspected(), taught()
    done("export", "one.csv", "--task", "cb")
    shutil.copytree(CB, "one/cb")

    monkeypatch.setattr(writer, "FILE_ROWS", 8)
    shown = done("cache", "--task", "cb")
    several = read_manifest(CB)
    assert (one.format_version, several.format_version) == (1, 2)
    assert counts(several) == {"train": 3, "tune": 1, "validation": 4}
    assert several.data == one.data
    assert "cached 64 rows" in shown
    assert "train-00000-of-00003.parquet …: 8 rows by the teacher" in done("verify", "--task", "cb")
    assert "train: 24 shared rows, logits moved by 0 at most" in done("diff", "one/cb", str(CB))
    assert inspected() == seen
    for arm, frame in taught().items():
        pd.testing.assert_frame_equal(frame, students[arm])
    done("export", "several.csv", "--task", "cb")
    assert Path("several.csv").read_bytes() == Path("one.csv").read_bytes()

    assert set(kdcache.push(CB, "shared").files) == set(several.files)
    kdcache.pull("shared", "back")
    assert read_manifest("back") == several
    Path("back", SECOND).rename("back/train.parquet")
    code, _, error = run("verify", "back")
    assert code == 1
    assert SECOND in error

    out = done("import", "one.csv", "--task", "cb")
    assert counts(read_manifest(CB)) == counts(several)
    assert "format 2" in out
    assert re.search(r"train +│ +24 │", out)
    assert "train: 24 shared rows, logits moved by 0 at most" in done("diff", "one/cb", str(CB))
