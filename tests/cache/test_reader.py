"""Reading: whole or refused, joined by id, the same values whoever reads."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from builders import IDENTITY, rows, write
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.join import Batches
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import CachedSplit, load_cache
from kdcache.cache.schema import cache_schema, parse_columns
from kdcache.errors import CacheCorrupt, CacheError, CacheMissing, CacheStale


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write(tmp_path / "wic", tmp_path)
    return tmp_path / "wic"


def test_round_trip_keeps_every_value(cache: Path):
    split = load_cache(cache, "train")
    wanted = rows()
    assert len(split) == 10
    assert split.rows.example_id == wanted.example_id
    assert (split.rows.logits == wanted.logits).all()
    assert (split.rows.features == wanted.features).all()
    assert (split.rows.label == wanted.label).all()
    assert (split.rows.fold == -1).all()
    assert split.manifest.identity == IDENTITY
    assert repr(split) == "<wic train: 10 rows, float32[2] logits, float16[5] features>"


def test_features_of_further_layers_and_no_features_at_all(tmp_path: Path):
    deep = replace(rows(), layers={"features_3": np.ones((10, 7), np.float16)})
    write(tmp_path / "deep", tmp_path, deep)
    assert (load_cache(tmp_path / "deep", "train").rows.layers["features_3"] == 1).all()
    write(tmp_path / "bare", tmp_path, rows(dim=0))
    bare = load_cache(tmp_path / "bare", "train")
    assert bare.rows.features.shape == (10, 0)
    assert [name for name, _ in bare.manifest.columns][-1] == "logits"


@pytest.mark.parametrize(
    "columns",
    [
        [["example_id", "string"]],
        [*[[f.name, str(f.type)] for f in cache_schema(2, {})][:4], ["logits", "float16[2]"]],
        [*[[f.name, str(f.type)] for f in cache_schema(2, {})][:4], ["logits", "float32[2]"], ["x", "int64"]],
    ],
)
def test_columns_of_another_format_are_not_understood(columns):
    with pytest.raises(ValueError, match="column"):
        parse_columns(columns)


# ids → any selection of them in any order, cut into any parts
orders = st.permutations(range(10)).flatmap(
    lambda order: st.integers(1, 10).map(lambda cut: [order[:cut], order[cut:]])
)


def by_id(split: CachedSplit, ids: list[str]) -> CacheRows:
    return split.align(ids, [f"hash-{i.split('-')[1]}" for i in ids])


def by_position(split: CachedSplit, ids: list[str]) -> CacheRows:
    return split.rows.take(range(len(ids)))


def check_every_example_gets_its_own_row(read, folder: Path) -> None:
    wanted = rows()
    split = load_cache(folder, "train")

    @settings(max_examples=100, deadline=None, database=None, phases=[Phase.generate])
    @given(orders)
    def own_row(parts):
        for part in parts:
            found = read(split, [f"train-{i}" for i in part])
            assert found.example_id == [f"train-{i}" for i in part]
            assert (found.logits == wanted.logits[part]).all()
            assert (found.features == wanted.features[part]).all()
            assert (found.label == wanted.label[part]).all()

    own_row()


def test_shuffles_subsets_and_resplits_give_each_example_its_own_row(cache: Path):
    check_every_example_gets_its_own_row(by_id, cache)


def test_a_reader_by_position_fails_that_test(cache: Path):
    with pytest.raises(AssertionError):
        check_every_example_gets_its_own_row(by_position, cache)


def test_one_row_by_its_id(cache: Path):
    split = load_cache(cache, "train")
    assert (split["train-7"].logits[0] == rows().logits[7]).all()
    assert "train-7" in split
    assert "train-77" not in split


def keys(ids: list[str], hashes: list[str]) -> Batches:
    """A table's keys, three rows at a time."""
    columns = {"example_id": ids, "content_hash": hashes, "label": [0] * len(ids)}
    return lambda: pa.table(columns).to_batches(3)


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
    split = load_cache(cache, "train")
    for ask in (lambda: split.align(ids, hashes), lambda: split.targets(keys(ids, hashes))):
        with pytest.raises(CacheStale) as error:
            ask()
        assert message in str(error.value)
        assert str(error.value).startswith("cache of wic, train: ")
        assert str(error.value).endswith(
            "Build it from the data that is trained on. Run: kdcache cache --task wic"
        )


def test_streaming_gives_the_same_rows_group_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from kdcache.cache import schema, writer

    monkeypatch.setattr(writer, "ROW_GROUP_ROWS", 4)
    monkeypatch.setattr(schema, "ROW_GROUP_ROWS", 4)
    write(tmp_path / "wic", tmp_path)
    split = load_cache(tmp_path / "wic", "train")
    parts = list(split.stream())
    assert [len(part) for part in parts] == [4, 4, 2]
    assert (CacheRows.joined(parts).logits == split.rows.logits).all()


def test_tensors_go_to_the_device_in_the_order_asked_for(cache: Path):
    targets = load_cache(cache, "train").tensors("cpu", ids=["train-3", "train-1"])
    assert targets["logits"].dtype == torch.float32
    assert targets["features"].dtype == torch.float16
    assert (targets["logits"].numpy() == rows().logits[[3, 1]]).all()
    assert load_cache(cache, "train").tensors()["label"].tolist() == rows().label.tolist()


def test_targets_too_large_for_the_device_say_how_to_read_them(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 100))
    with pytest.raises(
        CacheError, match=r"must fit on cuda \(100 bytes free\), got 260 bytes. Use stream\(\)"
    ):
        load_cache(cache, "train").tensors("cuda")


def test_flat_frame_has_one_number_per_cell(cache: Path):
    split = load_cache(cache, "train")
    text = pd.DataFrame({"example_id": split.rows.example_id[::-1], "text": list("abcdefghij"), "label": 9})
    frame = split.to_pandas(text)
    assert list(frame.columns) == [
        "example_id", "label", "fold", "logit_0", "logit_1",
        "prediction", "confidence", "entropy", "margin", "text",
    ]  # fmt: skip
    logits = rows().logits.astype(float)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert (frame["prediction"] == logits.argmax(1)).all()
    assert np.allclose(frame["confidence"], p.max(1))
    assert np.allclose(frame["entropy"], -(p * np.log(p)).sum(1))
    assert np.allclose(frame["margin"], np.abs(logits[:, 0] - logits[:, 1]))
    assert frame["text"].tolist() == list("jihgfedcba")
    assert (frame["label"] == rows().label).all()
    with pytest.raises(CacheStale, match=r"the texts must hold every id, got none for train-0, train-1"):
        split.to_pandas(text.head(3))


def test_pandas_duckdb_and_polars_read_the_same_values(cache: Path):
    import duckdb
    import polars

    path = cache / "train.parquet"
    ours = load_cache(cache, "train").rows
    frames = {
        "pandas": pd.read_parquet(path),
        "duckdb": duckdb.connect().sql(f"select * from '{path}'").arrow().read_all().to_pandas(),
        "polars": polars.read_parquet(path).to_pandas(),
    }
    for name, frame in frames.items():
        assert frame["example_id"].tolist() == ours.example_id, name
        assert frame["content_hash"].tolist() == ours.content_hash, name
        assert (frame["label"] == ours.label).all(), name
        assert (frame["fold"] == ours.fold).all(), name
        assert (np.stack(frame["logits"]) == ours.logits).all(), name
        assert (np.stack(frame["features"]) == ours.features).all(), name


def test_cache_without_manifest_is_refused(cache: Path):
    (cache / "manifest.json").unlink()
    with pytest.raises(
        CacheMissing, match=r"the cache must hold manifest.json.*Run: kdcache cache --task wic"
    ):
        load_cache(cache, "train")


def test_half_written_folder_is_no_cache(cache: Path, tmp_path: Path):
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(cache / "train.parquet", half)
    with pytest.raises(CacheMissing):
        load_cache(half, "train")


def test_unknown_split_names_the_known(cache: Path):
    with pytest.raises(CacheMissing, match=r"got 'trian'. Did you mean train\?"):
        load_cache(cache, "trian")


def test_missing_file_is_refused(cache: Path):
    (cache / "train.parquet").unlink()
    with pytest.raises(CacheCorrupt, match="the file must be there, as the manifest says"):
        load_cache(cache, "train")


def test_file_of_other_columns_or_rows_is_refused_though_its_digest_is_right(cache: Path, tmp_path: Path):
    """A manifest that was written for another file: what the digest alone would let through."""
    manifest = write(tmp_path / "other" / "wic", tmp_path, rows(12, dim=6))
    shutil.copy(tmp_path / "other" / "wic" / "train.parquet", cache)
    ours = read_manifest(cache)
    replace(ours, files=manifest.files).write(cache / "manifest.json")
    with pytest.raises(CacheCorrupt, match="its column types must be"):
        load_cache(cache, "train")
    files = {"train.parquet": manifest.files["train.parquet"] | {"rows": 11}}
    replace(ours, files=files, columns=manifest.columns).write(cache / "manifest.json")
    with pytest.raises(CacheCorrupt, match="its number of rows must be 11, got 12"):
        load_cache(cache, "train")


def test_repeated_ids_are_found_by_their_hashes_and_then_compared(
    cache: Path, monkeypatch: pytest.MonkeyPatch
):
    from kdcache.data import ids

    split = load_cache(cache, "train")
    monkeypatch.setattr(ids, "hash", lambda i: 0, raising=False)  # every hash collides
    assert ids.repeated_in_parts(lambda: (part.example_id for part in split.stream())) == []


def test_rows_that_are_gathered_are_those_of_the_whole(tmp_path: Path, monkeypatch):
    """Over several row groups, in any order, with all columns, and with a part of the rows in memory."""
    monkeypatch.setattr("kdcache.cache.schema.ROW_GROUP_ROWS", 7)
    monkeypatch.setattr("kdcache.cache.writer.ROW_GROUP_ROWS", 7)
    write(tmp_path / "wic", tmp_path, rows(40))
    whole = load_cache(tmp_path / "wic", "train")
    some = [whole.rows.example_id[k] for k in (39, 0, 7, 6, 21)]
    apart = load_cache(tmp_path / "wic", "train")
    found, wanted = apart.align(some), whole.align(some)
    assert "rows" not in vars(apart)
    assert found.to_table().equals(wanted.to_table())
    assert len(apart.align([])) == 0
    targets = apart.targets(keys(found.example_id, found.content_hash))
    assert (targets.example_id, targets.content_hash) == ([], [])
    strings = {"example_id": found.example_id, "content_hash": found.content_hash}
    assert replace(targets, **strings).to_table().equals(wanted.to_table())
    for split in (whole, load_cache(tmp_path / "wic", "train")):
        with pytest.raises(CacheStale, match="nobody"):
            split.align([*some, "nobody"])
        with pytest.raises(CacheStale, match="twice"):
            split.align([some[0], *some])
