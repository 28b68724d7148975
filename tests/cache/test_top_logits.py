"""A cache of the k largest logits: what it keeps is exact, what it does not keep shares its mass."""

from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdcache.cache import top_logits
from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.dataset_card import dataset_card
from kdcache.cache.diff import diff_caches
from kdcache.cache.exchange import write_outputs
from kdcache.cache.manifest import read_manifest
from kdcache.cache.read_outputs import read_outputs
from kdcache.cache.reader import load_cache
from kdcache.cache.schema import MEAN_OF_FOLDS, PARQUET, cache_schema, describe_columns, parse_columns
from kdcache.cache.top_logits import expand_logits, keep_largest, kept_labels, share_rest
from kdcache.cache.verify import verify_cache
from kdcache.cache.writer import write_cache
from kdcache.digests import file_digest
from kdcache.errors import CacheCorrupt, ShapeError

LABELS = [f"label {k}" for k in range(6)]
IDENTITY = builders.IDENTITY | {"labels": LABELS, "num_labels": 6}


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def rows(count: int = 30, seed: int = 0) -> CacheRows:
    """Cross-fitted rows of an ensemble of two."""
    rng = np.random.default_rng(seed)
    all_rows, first, second = (3 * rng.normal(size=(count, 6)).astype(np.float32) for _ in range(3))
    plain = builders.rows(count)
    return replace(
        plain, label=rng.integers(-1, 6, count), fold=np.full(count, MEAN_OF_FOLDS, np.int8),
        logits=(first + second) / 2, logits_plain=all_rows, members=(first, second),
    )  # fmt: skip


def write(folder: Path, split: CacheRows, top_k: int | None = 2):
    scratch = folder.parent / "scratch" / folder.name
    labelled = int((split.label >= 0).sum())
    metrics = {"train": {"accuracy": split.num_correct / labelled, "rows": labelled}}
    return write_cache(folder, scratch, {"train": split}, top_k, identity=IDENTITY, metrics=metrics)


def as_read(split: CacheRows, top_k: int = 2) -> CacheRows:
    """What readers of a cache see, by another way: sort all labels of a row, and share the rest."""

    def of(logits: np.ndarray) -> np.ndarray:
        found = logits.astype(np.float64)
        for row in found:
            rest = np.lexsort((np.arange(6), -row))[top_k:]
            row[rest] = np.log(np.mean(np.exp(row[rest])))
        return found.astype(np.float32)

    members = tuple(map(of, split.members))
    return replace(split, logits=of(split.logits), logits_plain=of(split.logits_plain), members=members)


@pytest.mark.parametrize("top_k", range(1, 6))
@pytest.mark.parametrize("ties", [False, True])
def test_kept_probabilities_the_mass_of_the_rest_and_the_argmax_are_exact(top_k: int, ties: bool):
    logits = 4 * np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    if ties:
        logits = np.round(logits / 4).astype(np.float32)
        logits[:3] = 0  # as large as any
    labels, largest, rest = keep_largest(logits, top_k)
    order = np.lexsort((np.broadcast_to(np.arange(6), logits.shape), -logits), axis=1)
    assert (labels == order[:, :top_k]).all(), "by falling logit, then by label"
    assert (labels.dtype, largest.dtype, rest.dtype) == (np.int32, np.float32, np.float32)
    found = expand_logits(labels, largest, rest, 6)
    assert (np.take_along_axis(found, order[:, :top_k], 1) == largest).all()
    assert (found.argmax(1) == logits.argmax(1)).all()
    exact, seen = softmax(logits), softmax(found)
    np.testing.assert_allclose(
        *(np.take_along_axis(p, order[:, :top_k], 1) for p in (seen, exact)), rtol=3e-6
    )
    mass = [np.take_along_axis(p, order[:, top_k:], 1).sum(axis=1) for p in (seen, exact)]
    np.testing.assert_allclose(*mass, rtol=3e-6)
    assert (kept_labels(found).sum(axis=1) == top_k).all(), "kept labels are told from the others"
    for again, before in zip(keep_largest(found, top_k), (labels, largest, rest), strict=True):
        assert (again == before).all(), "to keep what was kept changes no bit"


def test_labels_as_likely_as_any_and_extreme_logits_are_kept_too():
    logits = np.array([[0.0] * 6, [-3e38, 3e38, 0, 0, 0, 0], [5e4, -5e4, 0, 0, 0, 1]], np.float32)
    found = expand_logits(*keep_largest(logits, 2), 6)
    assert np.isfinite(found).all()
    assert (kept_labels(found) == kept_labels(logits + np.array([1.0] * 2 + [0.0] * 4, np.float32)))[0].all()
    assert (found.argmax(1) == logits.argmax(1)).all()


@pytest.mark.parametrize("top_k", [0, 6, 7])
def test_to_keep_none_or_all_is_refused(tmp_path: Path, top_k: int):
    with pytest.raises(ShapeError, match="top_k must be from 1 to 5 of 6 labels"):
        keep_largest(rows().logits, top_k)
    if top_k:
        with pytest.raises(ShapeError):
            write(tmp_path / "wic", rows(), top_k)


def test_nothing_is_hidden_among_the_labels_that_are_not_kept():
    wrong = rows()
    wrong.logits[3, wrong.logits[3].argmin()] = -np.inf
    with pytest.raises(ShapeError, match="logits must be finite"):
        wrong.to_table(top_k=2)


def test_readers_see_all_logits_of_each_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kdcache.cache.writer.ROW_GROUP_ROWS", 8)
    monkeypatch.setattr("kdcache.cache.schema.ROW_GROUP_ROWS", 8)
    monkeypatch.setattr("kdcache.cache.cached_rows.EXPANDED", 5 * 6)
    split = rows()
    manifest = write(tmp_path / "wic", split)
    assert manifest.format_version == 2
    card = dataset_card(manifest)
    assert "| `rest` | float32 | log mean exp of the other logits |" in card
    assert "| `top_labels_member_1` | int32[2] | of one member of the ensemble |" in card
    assert [name for name, _ in manifest.columns][4:8] == ["top_labels", "top_logits", "rest", "features"]
    wanted = as_read(split)

    def same(found: CacheRows, wanted: CacheRows) -> bool:
        assert (found.label == wanted.label).all()
        for name, values in wanted.vectors.items():
            np.testing.assert_allclose(found.vectors[name], values, rtol=3e-7, atol=1e-7)
        return True

    cached = load_cache(tmp_path / "wic", "train")
    assert same(cached.rows, wanted)
    order = [17, 3, 29]
    ids = [split.example_id[i] for i in order]
    assert same(cached.align(ids), wanted.take(order))
    assert same(load_cache(tmp_path / "wic", "train").align(ids), wanted.take(order))
    table = pa.table({name: getattr(split, name) for name in ("example_id", "content_hash", "label")})
    assert same(
        load_cache(tmp_path / "wic", "train").targets(table.take(order).to_batches), wanted.take(order)
    )
    assert (cached.logits(5, 21) == cached.rows.logits[5:21]).all()
    (first, *_) = cached.stream(("logits",))
    assert first.logits_plain is None
    assert (first.logits == cached.rows.logits[:5]).all(), "as many as may be held, not a row group"
    assert (cached.rows.all_rows_teacher().logits == cached.rows.logits_plain).all()
    assert [check.problem for check in verify_cache(tmp_path / "wic") if check.problem] == []
    assert manifest.files["train.parquet"]["correct"] == split.num_correct == cached.rows.num_correct


def test_a_cache_of_all_logits_is_of_version_1(tmp_path: Path):
    assert write(tmp_path / "wic", rows(), top_k=None).format_version == 1


def test_rows_that_no_writer_writes_are_refused(tmp_path: Path):
    write(tmp_path / "wic", rows())
    path = tmp_path / "wic" / "train.parquet"
    good, manifest = pq.read_table(path), read_manifest(tmp_path / "wic")
    labels, largest = (np.array(good[name].to_pylist()) for name in ("top_labels", "top_logits"))

    def reasons(name: str, row: list[float] | float) -> list[str]:
        values = good[name].to_pylist()
        values[7] = row
        place = good.column_names.index(name)
        table = good.set_column(
            place, good.schema.field(name), pa.array(values, good.schema.field(name).type)
        )
        pq.write_table(table, path, **PARQUET)
        entry = manifest.files["train.parquet"] | {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        replace(manifest, files={"train.parquet": entry}).write(tmp_path / "wic" / "manifest.json")
        found = [check.problem for check in verify_cache(tmp_path / "wic") if check.problem]
        if found:
            with pytest.raises(CacheCorrupt, match="cache of wic, train: "):
                _ = load_cache(tmp_path / "wic", "train").rows
        return found

    assert reasons("rest", good["rest"][7].as_py()) == []
    first, second = labels[7].tolist()
    for name, row in (
        ("top_labels", [first, 6]), ("top_labels", [-1, second]), ("top_labels", [first, first]),
        ("top_logits", largest[7, ::-1].tolist()), ("top_logits", [float("nan"), largest[7, 1]]),
        ("rest", largest[7, 1]), ("rest", 99.0), ("rest", float("nan")),
    ):  # fmt: skip
        (found,) = reasons(name, row)
        assert "train.parquet: top_labels must be" in found
        assert "got others in train-7" in found
    (found,) = reasons("rest", -float("inf"))
    assert "every number must be finite, not so in train-7" in found


TOP = [["top_labels", "int32[2]"], ["top_logits", "float32[2]"], ["rest", "float32"]]
PLAIN = [["top_labels_plain", "int32[3]"], ["top_logits_plain", "float32[3]"], ["rest_plain", "float32"]]


@pytest.mark.parametrize(
    "columns",
    [TOP[:2], TOP[1:], [TOP[0], TOP[2], TOP[1]], [*TOP, *PLAIN], [*TOP, ["logits_plain", "float32[6]"]],
     [["logits", "float32[6]"], *TOP], [["top_labels", "int64[2]"], *TOP[1:]],
     [*TOP[:2], ["rest", "float32[1]"]], [TOP[0], ["top_logits", "float32[3]"], TOP[2]], [*TOP, TOP[2]]],
)  # fmt: skip
def test_columns_of_the_largest_logits_stand_three_together(columns: list[list[str]]):
    before = describe_columns(cache_schema(6, {}))[:4]
    assert describe_columns(parse_columns(before + TOP)) == before + TOP
    with pytest.raises(ValueError, match="column"):
        parse_columns(before + columns)


def test_a_manifest_of_as_many_kept_labels_as_there_are_or_of_another_version_is_refused(tmp_path: Path):
    manifest = write(tmp_path / "wic", rows())
    for changes, reason in (
        (
            {"identity": IDENTITY | {"labels": LABELS[:2], "num_labels": 2}},
            "2 labels, and logits of 2 numbers",
        ),
        ({"format_version": 1}, "format_version 1 of a cache of version 2"),
    ):
        replace(manifest, **changes).write(tmp_path / "wic" / "manifest.json")
        with pytest.raises(CacheCorrupt, match=reason):
            read_manifest(tmp_path / "wic")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "npz"])
def test_an_export_has_all_logits(tmp_path: Path, ending: str):
    write(tmp_path / "wic", rows())
    cached, path = load_cache(tmp_path / "wic", "train"), tmp_path / f"x.{ending}"
    write_outputs(cached.stream, LABELS, path)
    np.testing.assert_allclose(read_outputs(path, LABELS).values, cached.rows.logits, rtol=1e-6)


def test_caches_differ_in_what_both_keep_and_in_the_mass_of_the_rest(tmp_path: Path):
    split = rows()
    order = np.argsort(-split.logits, axis=1)
    write(tmp_path / "all" / "wic", split, None)
    write(tmp_path / "two" / "wic", split, 2)
    write(tmp_path / "four" / "wic", split, 4)

    def moved(a: str, b: str) -> tuple[float, int]:
        found = diff_caches(tmp_path / a / "wic", tmp_path / b / "wic").splits["train"]
        return found.max_abs, found.flips

    for pair in (("all", "two"), ("two", "all"), ("two", "four"), ("two", "two")):
        assert moved(*pair) == (pytest.approx(0, abs=2e-6), 0)
    fields = diff_caches(tmp_path / "all" / "wic", tmp_path / "two" / "wic").fields
    assert fields["columns.logits"] == ("float32[6]", None)
    assert fields["format_version"] == (1, 2)
    for name, place, far in (("second", 1, 0.01), ("last", 5, -0.5)):
        other = replace(split, logits=split.logits.copy())
        other.logits[4, order[4, place]] += far
        write(tmp_path / name / "wic", other, 2)
    assert moved("all", "second") == (pytest.approx(0.01, abs=1e-6), 0)
    assert moved("second", "four") == (pytest.approx(0.01, abs=1e-6), 0)
    assert 1e-4 < moved("all", "last")[0] < 0.5, "the mass of the rest is another"


def test_labels_that_are_not_kept_share_their_mass():
    logits = rows().logits
    kept = kept_labels(as_read(rows()).logits)
    np.testing.assert_allclose(share_rest(logits, kept), as_read(rows()).logits, rtol=3e-7, atol=1e-7)
    assert (share_rest(logits, np.ones_like(kept)) == logits).all()


def test_rows_are_looked_at_some_at_a_time_to_the_same_end(monkeypatch: pytest.MonkeyPatch):
    logits = rows(50).logits
    whole = keep_largest(logits, 2)
    shared = share_rest(logits, kept_labels(expand_logits(*whole, 6)))
    monkeypatch.setattr(top_logits, "AT_ONCE_LOGITS", 20)  # three rows
    for found, wanted in zip(keep_largest(logits, 2), whole, strict=True):
        assert np.array_equal(found, wanted)
    assert np.array_equal(share_rest(logits, kept_labels(expand_logits(*whole, 6))), shared)


def test_a_mask_among_the_kept_logits_is_refused_before_anything_is_written(tmp_path: Path):
    split = rows()
    least = np.finfo(np.float32).min
    split.logits[3] = [1, 0, least, least, least, least]
    assert write(tmp_path / "two", split, 2)
    with pytest.raises(ShapeError, match=r"cache_teacher\.top_k"):
        write(tmp_path / "three", split, 3)
    assert not (tmp_path / "three").exists()


def test_columns_have_one_order_and_stand_there_once():
    schema = cache_schema(6, {"features": 4, "logits_plain": 6}, 2)
    columns = describe_columns(schema)
    assert parse_columns(columns) == schema
    moved = [columns[k] for k in (0, 1, 2, 3, 4, 7, 5, 6, *range(8, len(columns)))]
    for wrong in (
        moved,
        [*columns[:-1], columns[0], columns[-1]],
        [*columns, ["features_b", "float16[2]"]][::-1],
    ):
        with pytest.raises(ValueError, match="column"):
            parse_columns(wrong)
    with pytest.raises(ValueError, match="column"):
        parse_columns([*columns[:4], ["logits", "float32[99999999999999999999]"]])
