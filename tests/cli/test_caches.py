"""Commands on caches in a project: build, kill, verify, import, export, clean."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import fails, run

from kdcache.cache import writer
from kdcache.cache.reader import load_cache
from kdcache.cache.verify import verify_cache
from kdcache.digests import seal
from kdcache.errors import CacheCorrupt, CacheMissing
from kdcache.teacher import extraction

CACHE = Path("cache/cb")


TAUGHT = ("prepare", "teach --task cb")
CACHED = (*TAUGHT, "cache --task cb")


@pytest.fixture
def taught(built_project):
    """A project with a teacher of cb, two folds."""
    return built_project(*TAUGHT)


@pytest.fixture
def cached(built_project):
    """The same with its cache."""
    return built_project(*CACHED)


def content(folder: Path = CACHE) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_interrupted_extraction_goes_on_and_equals_an_uninterrupted_one(taught, monkeypatch):
    monkeypatch.setattr(writer, "PART_ROWS", 8)
    assert run("cache", "--task", "cb")[0] == 0
    whole, time = content(), Path("timings/cache_teacher-cb.json")
    assert time.exists()
    shutil.rmtree(CACHE)
    ran: list[int] = []
    extract = extraction.extract

    def stop_at_the_seventh(model, encoded, *arguments):
        if len(ran) == 6:
            raise KeyboardInterrupt
        ran.append(len(encoded))
        return extract(model, encoded, *arguments)

    monkeypatch.setattr(extraction, "extract", stop_at_the_seventh)
    assert run("cache", "--task", "cb")[0] == 130
    assert not CACHE.exists()
    first = sum(ran)
    ran[:] = [0] * 7  # no stop any more
    assert run("cache", "--task", "cb")[0] == 0
    assert content() == whole
    assert not time.exists(), "that of the rest is not that of a cache"
    cost = json.loads(whole["manifest.json"])["cost"]["forward_examples"]
    assert first + sum(ran) == cost == 24 * 2 + 8 * 3 + 32 * 3  # no row twice: one pass on all, k on the rest
    assert not list(Path(".kdcache").glob("cache_teacher-*/parts"))


@pytest.mark.slow
def test_bfloat16_says_how_far_it_moved_the_logits(cached):
    exact = load_cache(CACHE, "train")
    assert exact.manifest.drift == {}
    assert run("cache", "--task", "cb", "--set", "cache_teacher.dtype=bfloat16")[0] == 0
    half = load_cache(CACHE, "train")
    assert half.manifest.dtype == "bfloat16"
    drift = half.manifest.drift
    assert drift["rows"] == 24
    assert 0 < drift["mean_abs"] <= drift["max_abs"] < 0.1
    moved = np.abs(half.align(exact.rows.example_id).logits - exact.rows.logits).max()
    assert 0 < moved < 0.1
    assert run("verify", "--task", "cb")[0] == 0  # within the tolerance of its own dtype


def test_verify_asks_the_teacher_again(cached):
    code, out, _ = run("verify", "--task", "cb", "--teacher-rows", "5")
    assert code == 0
    assert "cb: 23 checks passed, 0 failed" in out
    assert "validation.parquet: 5 rows by the teacher" in out
    assert "by the teacher" not in run("verify", "--task", "cb", "--teacher-rows", "0")[1]
    assert "16 checks passed" in run("verify", "cache/cb")[1]
    for option in (("--task", "cb"), ("--teacher-rows", "0"), ("--set", "threads=1"), ("--workers", "2")):
        assert fails("verify", "cache/cb", *option).startswith(option[0]), "it would be ignored"
    shutil.move("data", "elsewhere")
    assert "cb: 17 checks passed, 0 failed" in run("verify", "--task", "cb")[1]
    shutil.move("elsewhere", "data")

    # The same bytes under right digests, but not what this teacher says.
    split, identity = load_cache(CACHE, "train"), load_cache(CACHE, "train").manifest.identity
    rows = {name: load_cache(CACHE, name).rows for name in ("train", "tune", "validation")}
    facts = {"tolerance": split.manifest.tolerance, "metrics": split.manifest.metrics}
    for column in ("logits", "logits_plain"):
        moved = getattr(rows["train"], column).copy()
        moved[3] += 0.01  # all alike: no prediction changes
        damaged = rows | {"train": replace(rows["train"], **{column: moved})}
        writer.write_cache(CACHE, Path(".kdcache/x"), damaged, identity=identity, **facts)
        assert fails("verify", "--task", "cb", "--teacher-rows", "24") == (
            f"train.parquet: the teacher must give its logits again within 0.0001, got up to 0.01 away for "
            f"{rows['train'].example_id[3]}. Run: kdcache cache --task cb"
        )

    identity_path = Path("models/teacher/cb/identity.json")
    other = json.loads(identity_path.read_text()) | {"folds_sha256": ["0", "1"]}
    identity_path.write_text(json.dumps(other))
    assert fails("verify", "--task", "cb").endswith("Run: kdcache teach --task cb")  # its digest is another
    seal(identity_path)
    assert fails("verify", "--task", "cb").startswith("cache of cb: teacher folds_sha256 must be [")


def test_a_teacher_of_other_parameters_is_said(cached):
    assert "max_length" not in run("cache", "--task", "cb")[2]
    told = run("cache", "--task", "cb", "--set", "train_teacher.max_length=32")[2]
    assert "train_teacher.max_length 64, not 32" in told


@pytest.mark.parametrize("flips", [30, pytest.param(500, marks=pytest.mark.slow)])
def test_random_flips_of_a_real_cache_are_found(cached, flips):
    rng = random.Random(0)
    for _ in range(flips):
        path = rng.choice([p for p in CACHE.iterdir() if p.suffix == ".parquet"])
        whole = path.read_bytes()
        position = rng.randrange(len(whole))
        path.write_bytes(
            whole[:position] + bytes([whole[position] ^ 1 << rng.randrange(8)]) + whole[position + 1 :]
        )
        with pytest.raises(CacheCorrupt):
            load_cache(CACHE, path.stem)
        assert [check for check in verify_cache(CACHE) if check.problem]
        path.write_bytes(whole)


def outside_teacher(path: Path, name: str = "cb", wrong: str = "") -> Path:
    """Write a CSV of some teacher's probabilities for every prepared row, shuffled."""
    lines = []
    for split in ("validation", "train", "tune"):
        table = pq.read_table(f"data/{name}/{split}.parquet").to_pydict()
        for example_id, label in zip(table["example_id"], table["label"], strict=True):
            p = [0.8 if k == label else 0.1 for k in range(3)]
            lines.append(f"{example_id}{wrong}," + ",".join(map(str, p)))
    random.Random(0).shuffle(lines)
    header = "example_id,probability_entailment,probability_contradiction,probability_neutral"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_three_commands_from_a_csv_of_probabilities_to_a_student(built_project):
    """The backbone belongs to no teacher and to no task, so it is built before."""
    built_project("prepare", "shrink")
    shutil.rmtree("data")

    assert run("prepare", "--task", "cb")[0] == 0
    code, out, error = run("import", str(outside_teacher(Path("p.csv"))), "--task", "cb")
    assert code == 0
    assert "content_hash" in error, "whether texts are the same cannot be known"
    assert run("distill", "--task", "cb", "--arm", "kl+gram", "--seed", "0")[0] == 0

    assert "100.0%" in out
    assert Path("runs/cb/kl+gram-0/adapter_model.safetensors").is_file()
    cached = load_cache(CACHE, "train")
    assert cached.manifest.identity["kind"] == "external"
    p = np.exp(cached.rows.logits)
    assert np.allclose(p[np.arange(len(p)), cached.rows.label], 0.8, atol=1e-6)
    assert run("verify", "--task", "cb")[0] == 0
    assert (
        fails("distill", "--task", "cb", "--arm", "feature_mse", "--seed", "0")
        == "distill.arms.feature_mse.feature: the cache must hold features, got logits only. "
        "Remove the term, or choose other arms with --arm."
    )

    # What it was imported for has changed.
    assert run("prepare", "--task", "cb", "--set", "prepare.seed=7")[0] == 0
    assert fails("distill", "--task", "cb", "--arm", "kl").endswith("Run: kdcache import FILE --task cb")


def test_import_refuses_a_file_that_does_not_fit_the_data(project):
    project()
    path = Path("p.csv")
    path.write_text("example_id,logit_0,logit_1,logit_2\n")
    assert fails("import", "p.csv", "--task", "cb").endswith("Run: kdcache prepare --task cb")
    assert run("prepare", "--task", "cb")[0] == 0
    first = outside_teacher(path).read_text().splitlines()
    path.write_text("\n".join([*first, "nobody,0.1,0.1,0.8"]) + "\n")
    assert fails("import", "p.csv", "--task", "cb").startswith(
        "p.csv: every id must be in data/cb, got unknown nobody. The ids there look like 'train-"
    )
    path.write_text("\n".join(line for line in first if not line.startswith("tune-1,")) + "\n")
    lacking = pq.read_table("data/cb/tune.parquet")["example_id"].to_pylist()[0]
    path.write_text("\n".join(line for line in first if not line.startswith(f"{lacking},")) + "\n")
    assert fails("import", "p.csv", "--task", "cb") == (
        f"p.csv: every row of tune must be in the file, got none for {lacking}."
    )
    path.write_text("\n".join(line if k else line + ",content_hash" for k, line in enumerate(first)))
    path.write_text(path.read_text().replace("\n", ",x\n").replace("content_hash,x", "content_hash") + ",x\n")
    assert "the texts must be those of the prepared data, got another content_hash for " in fails(
        "import", "p.csv", "--task", "cb"
    )
    assert not Path("cache").exists()


def test_export_and_import_keep_every_logit(cached):
    assert run("export", "out/all.jsonl", "--task", "cb")[1] == "out/all.jsonl: 64 rows\n"
    assert run("export", "tune.csv", "--task", "cb", "--split", "tune")[1] == "tune.csv: 8 rows\n"
    for name in ("old.csv", "old.npz", "old.parquet"):
        Path(name).write_text("mine")
        assert fails("export", name, "--task", "cb", "--split", "nope")
        assert Path(name).read_text() == "mine"
        assert run("export", name, "--task", "cb")[0] == 0
        assert Path(name).read_bytes()[:4] != b"mine"
    assert not list(Path().glob(".*.part*"))
    assert fails("export", "x.txt", "--task", "cb").startswith("x.txt: the file must end in .csv")
    shutil.copytree("cache", "before")
    assert run("import", "out/all.jsonl", "--task", "cb")[0] == 0
    code, out, _ = run("diff", "before/cb", "cache/cb")
    assert code == 0
    assert "train: 24 shared rows, logits moved by 0 at most, 0 on average, 0 argmax flips" in out
    assert "identity.kind: — → external" in out
    assert "columns.features: float16[16] → —" in out


def test_clean_empties_scratch_but_never_under_a_writer(built_project):
    built_project("prepare")
    Path(".kdcache/cache-0123456789abcdef/parts").mkdir(parents=True)
    Path(".kdcache/cache-0123456789abcdef/parts/x").write_bytes(b"x" * 2_000_000)
    with filelock.FileLock(".kdcache/cache-cb-12345678.lock"):
        assert fails("clean") == (
            ".kdcache: nothing may be in the making, got cache-cb-12345678 at work. Wait for it to end."
        )
    assert run("clean")[1] == ".kdcache: freed 2.0 MB\n"
    assert not list(Path(".kdcache").glob("*/"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_stage_killed_at_any_moment_ends_in_the_same_bytes(taught):
    code = (
        "import kdcache.cache.writer as w; w.PART_ROWS = 4\n"
        "from kdcache.project import Project\n"
        "from kdcache.teacher.cache_teacher import cache_teacher\n"
        "print('imported', flush=True)\n"
        "cache_teacher(Project.load(), 'cb')"
    )

    def start() -> subprocess.Popen[str]:
        build = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert build.stdout is not None
        assert build.stdout.readline() == "imported\n"
        return build

    begun = time.perf_counter()
    build = start()
    imported = time.perf_counter()
    build.communicate()
    assert build.returncode == 0
    seconds = time.perf_counter() - imported
    assert begun < imported
    whole = content()
    rng, killed = random.Random(0), 0
    for _ in range(3):
        shutil.rmtree(CACHE)
        build = start()
        time.sleep(rng.uniform(0.2, 0.8) * seconds)
        build.send_signal(signal.SIGKILL)
        build.communicate()
        killed += build.returncode == -signal.SIGKILL
        try:
            load_cache(CACHE, "train")
        except CacheMissing:
            assert not CACHE.exists()
        build = start()
        build.communicate()
        assert build.returncode == 0
        assert content() == whole
    assert killed >= 2
