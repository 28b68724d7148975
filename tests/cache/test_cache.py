"""The cache: whole or refused, joined by id, made by the teacher it says."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdcache.cache.manifest import Manifest, check_identity, read_manifest
from kdcache.cache.reader import load_cache
from kdcache.cache.writer import CacheRows, write_cache
from kdcache.errors import CacheCorrupt, CacheMissing, CacheStale, ParamsError, ShapeError

IDENTITY = {
    "task": "wic", "template": "wic/1", "labels": ["false", "true"], "num_labels": 2, "max_length": 64,
    "model": "tiny", "weights_sha256": "a", "config_sha256": "b", "tokenizer_sha256": "c", "folds_sha256": [],
}  # fmt: skip


def rows(count: int = 10, seed: int = 0) -> CacheRows:
    rng = np.random.default_rng(seed)
    return CacheRows(
        [f"train-{i}" for i in range(count)], [f"hash-{i}" for i in range(count)],
        rng.integers(0, 2, count), np.full(count, -1, np.int8),
        rng.normal(size=(count, 2)).astype(np.float32), rng.normal(size=(count, 5)),
    )  # fmt: skip


def write(folder: Path, split: CacheRows | None = None) -> Manifest:
    folder.mkdir(parents=True)
    return write_cache(
        folder, {"train": split or rows()}, identity=IDENTITY, dtype="float32",
        metrics={"train": {"accuracy": 0.5, "rows": 10}}, all_rows_teacher={}, cost={"forward_examples": 10},
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write(tmp_path / "wic")
    return tmp_path / "wic"


def test_round_trip_keeps_every_value(cache: Path):
    split, manifest = load_cache(cache, "train")
    wanted = rows()
    assert split.example_id == wanted.example_id
    assert (split.logits == wanted.logits).all()
    assert (split.features == wanted.features.astype(np.float16)).all()
    assert (split.label == wanted.label).all()
    assert (split.fold == -1).all()
    assert manifest.identity == IDENTITY


def test_same_rows_give_the_same_bytes(cache: Path, tmp_path: Path):
    write(tmp_path / "again" / "wic")
    for name in ("train.parquet", "manifest.json"):
        assert (cache / name).read_bytes() == (tmp_path / "again" / "wic" / name).read_bytes()


def test_plain_pandas_reads_it(cache: Path):
    frame = pd.read_parquet(cache / "train.parquet")
    assert list(frame.columns) == ["example_id", "label", "content_hash", "fold", "logits", "features"]
    assert np.stack(frame["logits"]).shape == (10, 2)
    assert frame["features"][0].dtype == np.float16


def test_rows_are_joined_by_id_never_by_position(cache: Path):
    split, _ = load_cache(cache, "train")
    order = np.random.default_rng(1).permutation(10)[:6]
    ids, hashes = [f"train-{i}" for i in order], [f"hash-{i}" for i in order]
    aligned = split.align(ids, hashes)
    assert (aligned.logits == rows().logits[order]).all()
    assert aligned.example_id == ids


@pytest.mark.parametrize(
    ("ids", "hashes", "message"),
    [
        (["train-0", "train-99"], ["hash-0", "x"], "ids must be in the cache, got unknown train-99"),
        (["train-1", "train-1"], ["hash-1", "hash-1"], "ids must be unique, got twice train-1"),
        (["train-1"], ["other"], "the text must be what the teacher read, got another text for train-1"),
        ([f"x{i}" for i in range(8)], ["h"] * 8, "got unknown x0, x1, x2, x3, x4 and 3 more"),
    ],
)
def test_rows_that_are_not_the_teachers_are_named(cache: Path, ids, hashes, message):
    split, _ = load_cache(cache, "train")
    with pytest.raises(CacheStale, match=message):
        split.align(ids, hashes)


def test_cache_without_manifest_is_refused(cache: Path):
    (cache / "manifest.json").unlink()
    with pytest.raises(
        CacheMissing, match=r"the cache must hold manifest.json.*Run: kdcache cache --task wic"
    ):
        load_cache(cache, "train")


def test_unknown_split_names_the_known(cache: Path):
    with pytest.raises(CacheMissing, match=r"got 'trian'. Did you mean train\?"):
        load_cache(cache, "trian")


def test_missing_file_is_refused(cache: Path):
    (cache / "train.parquet").unlink()
    with pytest.raises(CacheCorrupt, match="the file must be there, as the manifest says"):
        load_cache(cache, "train")


def test_every_flipped_byte_of_a_file_is_refused(cache: Path):
    path = cache / "train.parquet"
    whole = path.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 97)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(CacheCorrupt, match="its sha256 must be"):
            load_cache(cache, "train")


def test_every_flipped_byte_of_the_manifest_is_refused(cache: Path):
    path = cache / "manifest.json"
    whole = path.read_bytes()
    before = json.loads(whole)
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            same = json.loads(path.read_bytes()) == before  # white space alone
        except ValueError:
            same = False
        if not same:
            with pytest.raises((CacheCorrupt, CacheStale)):
                read_manifest(cache, "wic")


def test_other_format_version_is_refused(cache: Path):
    body = json.loads((cache / "manifest.json").read_text())
    (cache / "manifest.json").write_text(json.dumps(body | {"format_version": 99}))
    with pytest.raises(CacheStale, match="format_version must be 1, got 99"):
        read_manifest(cache, "wic")


def test_not_finite_and_uneven_rows_are_refused(tmp_path: Path):
    bad = rows()
    bad.logits[3, 1] = np.nan
    with pytest.raises(ShapeError, match="must be finite"):
        write(tmp_path / "a", bad)
    with pytest.raises(ShapeError, match="all columns must have 10 rows"):
        write(tmp_path / "b", dataclasses.replace(rows(), label=np.zeros(9)))


def check(manifest: Manifest, **changes) -> None:
    arguments = {
        "task_name": "wic", "label_names": ("false", "true"), "data": dict(manifest.data),
        "teacher": IDENTITY, "expect": {},
    }  # fmt: skip
    check_identity(manifest, **(arguments | changes))


def test_own_cache_is_accepted(cache: Path):
    manifest = read_manifest(cache, "wic")
    check(manifest)
    check(manifest, teacher=None, expect={"model": "tiny", "max_length": 64})


@pytest.mark.parametrize("field", [key for key in IDENTITY if key != "folds_sha256"])
def test_each_field_of_another_teacher_is_named(cache: Path, field: str):
    manifest = read_manifest(cache, "wic")
    with pytest.raises(
        CacheStale, match=rf"cache of wic: teacher {field} must be 'other', got .* in the cache"
    ):
        check(manifest, teacher=IDENTITY | {field: "other"})


def test_other_data_labels_and_expectations_are_named(cache: Path):
    manifest = read_manifest(cache, "wic")
    with pytest.raises(CacheStale, match=r"data.train must be 'x', got '\w{64}' in the cache"):
        check(manifest, data={"train": "x"})
    with pytest.raises(CacheStale, match=r"labels must be \['no', 'yes'\]"):
        check(manifest, label_names=("no", "yes"))
    with pytest.raises(CacheStale, match=r"distill.expect weights_sha256 must be 'z', got 'a' in the cache"):
        check(manifest, expect={"weights_sha256": "z"})
    with pytest.raises(
        ParamsError, match=r"weights must be a field of the identity.*Did you mean weights_sha256\?"
    ):
        check(manifest, expect={"weights": "z"})


def test_half_written_folder_is_no_cache(cache: Path, tmp_path: Path):
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(cache / "train.parquet", half)
    with pytest.raises(CacheMissing):
        load_cache(half, "train")
