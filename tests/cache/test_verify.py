"""Verification: no damage goes unseen, and wrong numbers under right digests are named."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import IDENTITY, rows, write
from conftest import run

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.diff import diff_caches
from kdcache.cache.join import Batches
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import load_cache
from kdcache.cache.schema import PARQUET, cache_schema, describe_columns, parse_columns
from kdcache.cache.verify import verify_cache
from kdcache.digests import RowsDigest, file_digest, value_digest
from kdcache.errors import CacheCorrupt, CacheError, CacheMissing, CacheStale


def problems(path: Path, data=None) -> list[str]:
    return [check.problem for check in verify_cache(path, data) if check.problem]


def data(split: CacheRows) -> dict[str, Batches]:
    columns = {name: getattr(split, name) for name in ("example_id", "content_hash", "label")}
    return {"train": pa.table(columns).to_batches}


def damages(path: Path, step: int) -> Iterator[None]:
    """Damage a file in place by one flipped bit or one truncation at a time.

    ``step`` 1 tries every bit and every length, n one bit in every n-th byte and every n-th length.
    """
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for position in range(0, len(whole), step):
            byte = whole[position]
            for bit in range(8) if step == 1 else [position // step % 8]:
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), position)
                yield
            os.pwrite(file.fileno(), bytes([byte]), position)
        assert path.read_bytes() == whole
        for length in reversed(range(0, len(whole), step)):
            file.truncate(length)
            yield


def test_a_sound_cache_has_no_problem(tmp_path: Path):
    write(tmp_path / "wic", tmp_path)
    checks = verify_cache(tmp_path / "wic", data(rows()))
    assert [check.what for check in checks] == [
        "manifest.json", "train.parquet: bytes, schema, ids", "train.parquet: finite",
        "train.parquet: labels, folds", "train.parquet: digest of the rows", "train.parquet: accuracy",
        "train.parquet: against the data",
    ]  # fmt: skip
    assert not any(check.problem for check in checks)


@pytest.mark.parametrize("step", [31, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["train.parquet", "manifest.json"])
def test_every_flipped_bit_and_every_truncation_is_found_and_never_read(tmp_path: Path, name: str, step: int):
    cache = tmp_path / "wic"
    write(cache, tmp_path, rows(1, dim=1))
    found = 0
    for _ in damages(cache / name, step):
        with pytest.raises(CacheError):
            load_cache(cache, "train")
        assert problems(cache)
        found += 1
    assert found > (9000 if step == 1 else 2000 / step)


def flip(path: Path, whole: bytes, rng: np.random.Generator) -> None:
    position, bit = int(rng.integers(len(whole))), int(rng.integers(8))
    path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])


@pytest.mark.parametrize("flips", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_random_flips_of_a_large_cache_are_found(tmp_path: Path, flips: int):
    cache = tmp_path / "wic"
    write(cache, tmp_path, rows(9000, dim=16))
    whole = (cache / "train.parquet").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(flips):
        flip(cache / "train.parquet", whole, rng)
        with pytest.raises(CacheCorrupt):
            load_cache(cache, "train")
        assert problems(cache)


def test_a_page_checksum_finds_what_a_renewed_digest_hides(tmp_path: Path):
    cache = tmp_path / "wic"
    write(cache, tmp_path, rows(1000, dim=16))
    path = cache / "train.parquet"
    whole = path.read_bytes()
    middle = pq.ParquetFile(path).metadata.row_group(0).column(5).data_page_offset + 500
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    renew(cache)
    assert len(problems(cache)) == 1
    assert "its pages must be whole, got: " in problems(cache)[0]


def renew(cache: Path, split: CacheRows | None = None, **changes) -> None:
    """Write a manifest that vouches for the file as it is now: what a careless tool would do."""
    manifest, path = read_manifest(cache), cache / "train.parquet"
    if split is not None:
        pq.write_table(pa.Table.from_batches(table(split).to_batches()), path, **PARQUET)
    entry = manifest.files["train.parquet"] | {
        "bytes": path.stat().st_size, "sha256": file_digest(path),
        "rows": pq.ParquetFile(path).metadata.num_rows,
    }  # fmt: skip
    replace(manifest, files={"train.parquet": entry}, **changes).write(cache / "manifest.json")


def table(split: CacheRows) -> pa.Table:
    """As to_table, without its checks."""
    clean = replace(split, logits=np.zeros_like(split.logits)).to_table()
    values = pa.array(split.logits.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, type=clean.schema.field("logits").type)
    return clean.set_column(4, clean.schema.field("logits"), column)


def digest_of(split: CacheRows) -> str:
    digest = RowsDigest()
    digest.update(split.example_id, split.content_hash, split.label)
    return digest.hexdigest()


def test_wrong_numbers_under_right_digests_are_named(tmp_path: Path):
    cache, whole = tmp_path / "wic", rows()
    write(cache, tmp_path)
    logits = whole.logits.copy()
    logits[3, 1] = np.nan
    renew(cache, replace(whole, logits=logits))
    assert any("every number must be finite, not so in train-3." in p for p in problems(cache))

    for value in (np.nan, np.inf, -np.inf):
        logits[3, 1] = value
        renew(cache, replace(whole, logits=logits))
        split = load_cache(cache, "train")
        for read in (lambda s=split: s.rows, lambda s=split: list(s.stream()), split.tensors):
            with pytest.raises(CacheCorrupt, match=r"train-3\."):
                read()

    labels = whole.label.copy()
    labels[5] = 2
    changed = replace(whole, label=labels)
    renew(cache, changed, data={"train": digest_of(changed)})
    with pytest.raises(CacheCorrupt, match=r"train-5\."):
        list(load_cache(cache, "train").stream(("logits",)))
    assert "label or fold is impossible in train-5." in problems(cache)[0]

    renew(cache, replace(whole, fold=np.zeros(10, np.int8)), data={"train": digest_of(whole)})
    assert problems(cache) == []  # fold 0 of a teacher without folds is the teacher's only one
    renew(cache, replace(whole, fold=np.ones(10, np.int8)))
    assert "label or fold is impossible in train-0, train-1" in problems(cache)[0]

    renew(cache, replace(whole, example_id=["a", "a", *whole.example_id[2:]]))
    assert "ids must be unique, got twice a." in problems(cache)[0]

    renew(cache, replace(whole, content_hash=["x", *whole.content_hash[1:]]))
    assert "the digest of its rows must be" in problems(cache)[0]

    renew(cache, replace(whole, logits=-whole.logits))
    right = whole.num_correct
    assert problems(cache) == [
        f"train.parquet: {right} of 10 predictions must be correct, got {10 - right} of 10. "
        "Run: kdcache cache --task wic"
    ]
    renew(cache, whole, metrics={"train": {"accuracy": 0.123, "rows": 10}})
    assert "the manifest's accuracy must be that of the logits, got 0.123" in problems(cache)[0]


def test_rows_that_are_not_the_datas_are_named(tmp_path: Path):
    cache, whole = tmp_path / "wic", rows()
    write(cache, tmp_path)
    assert problems(cache, data(whole.take(range(9)))) == [
        "train.parquet: every row must be in the data, got unknown train-9."
    ]
    more = replace(rows(11), label=np.r_[whole.label, 0])
    assert problems(cache, data(more)) == [
        "train.parquet: every example must be in the cache, got none for train-10."
    ]
    reworded = replace(whole, content_hash=["x", *whole.content_hash[1:]])
    assert problems(cache, data(reworded)) == [
        "train.parquet: the text must be that of the data, got another for train-0."
    ]
    assert problems(cache, data(replace(whole, label=1 - whole.label))) == [
        "train.parquet: the label must be that of the data, got another for "
        "train-0, train-1, train-2, train-3, train-4 and 5 more."
    ]


def test_missing_and_stray_files_are_named(tmp_path: Path):
    cache = tmp_path / "wic"
    write(cache, tmp_path)
    (cache / "notes.txt").touch()
    assert problems(cache) == [f"{cache}/notes.txt: the manifest does not list this file. Remove it."]
    (cache / "notes.txt").unlink()
    (cache / "train.parquet").unlink()
    assert "the file must be there, as the manifest says" in problems(cache)[0]
    shutil.rmtree(cache)
    assert "the cache must hold manifest.json, got none there" in problems(cache)[0]


def test_diff_says_what_made_them_and_how_far_the_logits_moved(tmp_path: Path):
    whole = rows()
    write(tmp_path / "a" / "wic", tmp_path)
    logits = whole.logits.copy()
    logits[0] += [0.5, 0.0]
    logits[4] = logits[4][::-1]
    other = replace(whole, logits=logits, content_hash=["x", *whole.content_hash[1:]]).take([8, 4, 0, 1, 2])
    write(tmp_path / "b" / "wic", tmp_path, other, identity=IDENTITY | {"weights_sha256": "z"})
    found = diff_caches(tmp_path / "a" / "wic", tmp_path / "b" / "wic")
    assert found.fields["identity.weights_sha256"] == ("a", "z")
    assert set(found.fields) <= {"identity.weights_sha256", "data.train", "metrics.train"}
    split = found.splits["train"]
    assert split.rows == 5
    assert split.only_a == [f"train-{i}" for i in (3, 5, 6, 7, 9)]
    assert split.only_b == []
    assert split.texts == ["train-0"]
    assert split.labels == []
    moved = np.abs(logits - whole.logits)[[0, 1, 2, 4, 8]]
    assert split.max_abs == pytest.approx(moved.max())
    assert split.mean_abs == pytest.approx(moved.mean())
    assert split.flips == 1 + int(logits[0].argmax() != whole.logits[0].argmax())

    write(tmp_path / "cb", tmp_path, identity=IDENTITY | {"task": "cb"})
    with pytest.raises(CacheStale, match="one task, got wic and cb"):
        diff_caches(tmp_path / "a" / "wic", tmp_path / "cb")
    same = diff_caches(tmp_path / "a" / "wic", tmp_path / "a" / "wic")
    assert same.same
    assert same.fields == {}
    assert same.splits["train"].max_abs == 0


def test_caches_that_differ_in_their_logits_only_are_not_the_same(tmp_path: Path):
    """As those of one teacher on two machines."""
    whole = rows()
    write(tmp_path / "a" / "wic", tmp_path)
    write(tmp_path / "b" / "wic", tmp_path, replace(whole, logits=whole.logits + np.float32(1e-3)))
    found = diff_caches(tmp_path / "a" / "wic", tmp_path / "b" / "wic")
    assert (found.fields, found.same) == ({}, False)
    code, out, _ = run("diff", str(tmp_path / "a" / "wic"), str(tmp_path / "b" / "wic"))
    assert code == 0
    assert "moved by 0.001 " in out
    assert "the same" not in out


def test_of_caches_of_other_numbers_of_labels_no_distance_is_told(tmp_path: Path):
    whole = rows()
    write(tmp_path / "a" / "wic", tmp_path)
    wider = np.concatenate([whole.logits, whole.logits[:, :1]], axis=1)
    labels = IDENTITY | {"labels": ["a", "b", "c"], "num_labels": 3}
    write(tmp_path / "b" / "wic", tmp_path, replace(whole, logits=wider), identity=labels)
    found = diff_caches(tmp_path / "a" / "wic", tmp_path / "b" / "wic").splits["train"]
    assert (found.max_abs, found.mean_abs) == (None, None)
    assert "moved" not in run("diff", str(tmp_path / "a" / "wic"), str(tmp_path / "b" / "wic"))[1]


def test_labels_in_another_order_are_compared_by_name(tmp_path: Path):
    split = rows()
    write(tmp_path / "a", tmp_path, split)
    turned = replace(split, label=1 - split.label, logits=split.logits[:, ::-1].copy())
    labels = {"identity": IDENTITY | {"labels": IDENTITY["labels"][::-1]}, "metrics": {}}
    write(tmp_path / "b", tmp_path, turned, **labels)
    (found,) = diff_caches(tmp_path / "a", tmp_path / "b").splits.values()
    assert (found.labels, found.max_abs, found.flips) == ([], 0, 0)
    write(tmp_path / "c", tmp_path, split, **labels)
    (found,) = diff_caches(tmp_path / "a", tmp_path / "c").splits.values()
    assert (len(found.labels), found.flips) == (len(split), len(split)), "the same numbers of other labels"


def ensemble(count: int = 10, members: int = 3) -> CacheRows:
    """Rows whose logits are a mean, as those of an ensemble are."""
    said = np.random.default_rng(1).normal(size=(members, count, 2)).astype(np.float32)
    return replace(rows(count), logits=said.mean(axis=0), members=tuple(said))


def test_an_ensembles_logits_are_the_mean_of_its_members(tmp_path: Path):
    whole = ensemble(members=11)  # of two digits: numbers, not names, order the members
    write(tmp_path / "wic", tmp_path, whole)
    assert "train.parquet: mean of the ensemble" in [c.what for c in verify_cache(tmp_path / "wic")]
    assert not problems(tmp_path / "wic")
    found = load_cache(tmp_path / "wic", "train").rows
    assert all((ours == theirs).all() for ours, theirs in zip(found.members, whole.members, strict=True))
    assert (found.take([3, 1]).member(10).logits == whole.members[10][[3, 1]]).all()

    moved = whole.members[2].copy()
    moved[4, 1] += 0.01
    write(tmp_path / "off", tmp_path, replace(whole, members=(*whole.members[:2], moved, *whole.members[3:])))
    assert problems(tmp_path / "off") == [
        "train.parquet: logits must be the mean of the members', not so in train-4. "
        "Run: kdcache cache --task wic"
    ]


def test_a_member_that_is_not_there_is_named():
    with pytest.raises(CacheMissing) as error:
        ensemble().member(3)
    assert str(error.value) == (
        "cache rows: member must be one of the ensemble's 3, from 0, got 3. "
        "Set train_teacher.ensemble, then build the teacher and the cache again."
    )


@pytest.mark.parametrize("names", [["logits_member_1"], ["logits_member_0", "logits_member_2"]])
def test_members_with_a_hole_are_no_schema(names: list[str]):
    columns = [*describe_columns(cache_schema(2, {})), *([name, "float32[2]"] for name in names)]
    with pytest.raises(ValueError, match="columns logits_member_"):
        parse_columns(columns)


def test_what_a_manifest_says_is_shown_in_a_line_that_is_not_long(tmp_path: Path):
    write(tmp_path / "wic", tmp_path)
    path = tmp_path / "wic" / "manifest.json"
    body = json.loads(path.read_text())
    body.pop("digest")
    body["data"]["train"] = "\x1b[31m" + "a" * 70_000
    path.write_text(json.dumps(body | {"digest": value_digest(body)}, indent=2, sort_keys=True) + "\n")
    (found,) = problems(tmp_path / "wic")
    assert "train.parquet" in found
    assert len(found) < 3000
    assert "\x1b" not in found
