"""A split of several files: the same rows as in one, or refused."""

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import IDENTITY, rows, write

from kdcache.cache import schema, split_files, writer
from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.dataset_card import dataset_card
from kdcache.cache.diff import diff_caches
from kdcache.cache.join import Batches
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.reader import CachedSplit, load_cache
from kdcache.cache.split_files import name_files
from kdcache.cache.verify import verify_cache
from kdcache.cache.writer import CacheWriter
from kdcache.digests import file_digest
from kdcache.errors import CacheCorrupt, CacheError, ParamsError, ShapeError
from kdcache.places import SPLIT_LETTERS
from kdcache.store.location import Location

ROWS, GROUP, FILE = 21, 4, 8
NAMES = [f"train-0000{number}-of-00003.parquet" for number in range(3)]


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two row groups of four rows in a file."""
    for module in (schema, split_files, writer):
        monkeypatch.setattr(module, "ROW_GROUP_ROWS", GROUP)
    monkeypatch.setattr(writer, "FILE_ROWS", FILE)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write(tmp_path / "wic", tmp_path, rows(ROWS))
    return tmp_path / "wic"


@pytest.fixture
def one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same rows in one file."""
    with monkeypatch.context() as patched:
        patched.setattr(writer, "FILE_ROWS", 1000)
        write(tmp_path / "one" / "wic", tmp_path, rows(ROWS))
    return tmp_path / "one" / "wic"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def problems(path: Path | str) -> list[str]:
    return [check.problem for check in verify_cache(path) if check.problem]


def change(cache: Path, **fields: Any) -> None:
    replace(read_manifest(cache), **fields).write(cache / "manifest.json")


def refused(cache: Path, error: type[CacheError] = CacheCorrupt) -> str:
    """What is refused by whoever reads rows and by verify, in the words of both."""
    with pytest.raises(error) as found:
        load_cache(cache, "train")
    return f"{found.value} {' '.join(problems(cache))}" if problems(cache) else ""


def test_files_but_the_last_are_full_and_the_manifest_says_what_each_has(cache: Path):
    manifest = read_manifest(cache)
    assert manifest.format_version == 2
    assert manifest.files_of("train") == sorted(manifest.files) == NAMES
    assert sorted(content(cache)) == ["manifest.json", *NAMES]
    whole = rows(ROWS)
    for number, name in enumerate(NAMES):
        some, entry = whole.between(number * FILE, (number + 1) * FILE), manifest.files[name]
        assert pq.read_table(cache / name).equals(some.to_table())
        assert (entry["rows"], entry["labelled"], entry["correct"]) == (
            len(some),
            len(some),
            some.num_correct,
        )
    assert manifest.sum_of("train", "rows") == ROWS


def keys(some: CacheRows) -> Batches:
    return lambda: some.to_table().to_batches(3)


def everything(split: CachedSplit) -> dict[str, Any]:
    """What a reader can ask for."""
    order = np.random.default_rng(0).permutation(ROWS)[:15]
    some = rows(ROWS).take(order)
    bounds = [(start, stop) for start in range(0, ROWS, 3) for stop in range(start, ROWS + 1, 3)]
    names = ("label", "fold", "logits", "features")
    targets = split.targets(keys(some))
    return {
        "groups": [part.to_table().to_pylist() for part in split.stream()],
        "logits": [split.logits(start, stop).tolist() for start, stop in bounds],
        "keys": pa.Table.from_batches(split.keys()).to_pylist(),
        "align": split.align(some.example_id, some.content_hash).to_table().to_pylist(),
        "targets": [getattr(targets, name).tolist() for name in names],
        "one": split["train-20"].to_table().to_pylist(),
        "frame": split.to_pandas().to_dict(),
        "shown": (len(split), repr(split), "train-9" in split),
    }


def test_rows_are_those_of_one_file_in_the_same_row_groups(cache: Path, one_file: Path):
    several, one = load_cache(cache, "train"), load_cache(one_file, "train")
    assert one.manifest.format_version == 1
    assert everything(several) == everything(one)
    assert several.manifest.data == one.manifest.data
    assert not problems(cache)
    assert len(verify_cache(cache)) == len(verify_cache(one_file))
    found = diff_caches(cache, one_file)
    assert found.fields == {"format_version": (2, 1)}
    assert (found.splits["train"].rows, found.splits["train"].max_abs) == (ROWS, 0)


@pytest.mark.parametrize("cuts", [[], [8, 16], [1, 2, 9, 9, 20], [15], range(1, ROWS)])
def test_same_rows_give_the_same_files_however_they_are_cut(cache: Path, tmp_path: Path, cuts: list[int]):
    bounds = [0, *cuts, ROWS]
    parts = [rows(ROWS).between(*pair) for pair in pairwise(bounds)]
    with CacheWriter(tmp_path / "cut" / "wic", tmp_path / "scratch") as made:
        made.write("train", parts)
        facts = read_manifest(cache)
        made.finish(IDENTITY, metrics=facts.metrics, cost=facts.cost)
    assert content(tmp_path / "cut" / "wic") == content(cache)


@pytest.mark.parametrize(("count", "files"), [(1, 1), (FILE, 1), (FILE + 1, 2), (2 * FILE, 2)])
def test_only_a_split_that_needs_several_files_has_them(tmp_path: Path, count: int, files: int):
    manifest = write(tmp_path / "wic", tmp_path, rows(count))
    assert len(manifest.files) == files
    assert manifest.format_version == min(files, 2)
    assert ("train.parquet" in manifest.files) == (files == 1)
    assert len(load_cache(tmp_path / "wic", "train").rows) == count


def test_a_file_has_whole_row_groups():
    """The sizes as they are, not those of these tests."""
    assert schema.FILE_ROWS % 8192 == 0


def test_files_that_are_missing_renamed_or_swapped_are_refused(cache: Path):
    first, second, last = (cache / name for name in NAMES)
    whole = content(cache)

    def restore() -> None:
        shutil.rmtree(cache)
        cache.mkdir()
        for name, data in whole.items():
            (cache / name).write_bytes(data)

    for path in (first, second, last):
        path.unlink()
        assert path.name in refused(cache)
        restore()
    second.rename(cache / "train.parquet")
    assert second.name in refused(cache)
    restore()
    first.write_bytes(whole[NAMES[1]])
    second.write_bytes(whole[NAMES[0]])
    assert first.name in refused(cache)
    restore()
    shutil.copy(last, cache / "train-00003-of-00003.parquet")
    assert "train-00003-of-00003.parquet" in problems(cache)[0]
    (cache / "train-00003-of-00003.parquet").unlink()
    assert not problems(cache)


def rename(files: dict[str, Any], *names: str) -> dict[str, Any]:
    return dict(zip(names, files.values(), strict=False))


@pytest.mark.parametrize(
    "changed",
    [
        lambda files: rename(files, NAMES[0], NAMES[1]),  # the last is not listed
        lambda files: rename(files, NAMES[1], NAMES[2]),
        lambda files: files | {"train.parquet": files[NAMES[0]]},
        lambda files: files | {"train-00003-of-00003.parquet": files[NAMES[2]]},
        lambda files: rename(files, NAMES[0], NAMES[1], "train-00002-of-00004.parquet"),
        lambda files: rename(files, NAMES[0], NAMES[1], "tune-00002-of-00003.parquet"),
        lambda files: rename(files, "train-00000-of-00001.parquet"),
        lambda files: rename(files, "train-0-of-3.parquet", "train-1-of-3.parquet", "train-2-of-3.parquet"),
        lambda files: {},
        lambda files: rename(dict(reversed(files.items())), *NAMES),  # the last one is full, the first is not
        lambda files: files | {NAMES[0]: files[NAMES[0]] | {"rows": 4}},
        lambda files: {name: entry | {"rows": 6} for name, entry in files.items()},  # no whole row groups
        lambda files: files | {NAMES[2]: files[NAMES[2]] | {"rows": 0}},
        lambda files: files | {NAMES[2]: files[NAMES[2]] | {"rows": 9}},
    ],
)  # fmt: skip
def test_a_manifest_lists_all_files_of_a_split_in_full_sizes(cache: Path, changed):
    change(cache, files=changed(dict(sorted(read_manifest(cache).files.items()))))
    assert "must have this format's fields" in refused(cache)


def test_a_cache_has_the_version_that_it_needs_and_no_other(cache: Path, one_file: Path):
    change(cache, format_version=1)
    assert "format_version 1" in refused(cache)
    change(one_file, format_version=2)
    assert "format_version 2" in refused(one_file)


def test_another_writers_files_may_have_other_sizes(cache: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(writer, "FILE_ROWS", 3 * GROUP)
    write(tmp_path / "other" / "wic", tmp_path, rows(ROWS))
    monkeypatch.setattr(writer, "FILE_ROWS", FILE)
    found = load_cache(tmp_path / "other" / "wic", "train")
    assert len(found.manifest.files) == 2
    assert everything(found) == everything(load_cache(cache, "train"))
    assert not problems(tmp_path / "other" / "wic")


def test_a_split_may_not_be_named_as_one_of_several_files(tmp_path: Path):
    """Else nobody could tell whose file it is."""
    with (
        CacheWriter(tmp_path / "wic", tmp_path / "scratch") as made,
        pytest.raises(ParamsError, match="0-of"),
    ):
        made.write("train-00000-of-00002", [rows()])


@pytest.mark.parametrize("count", [GROUP, ROWS])
def test_the_longest_name_of_a_split_names_one_file_or_several(tmp_path: Path, count: int):
    name = "x" * SPLIT_LETTERS
    with CacheWriter(tmp_path / "wic", tmp_path / "scratch") as made:
        made.write(name, [rows(count)])
        made.finish(IDENTITY)
    assert len(load_cache(tmp_path / "wic", name)) == count
    assert max(map(len, name_files(name, 2))) == 100  # so that no longer name would do


def test_a_longer_name_of_a_split_is_refused_before_its_rows_are_asked_for(tmp_path: Path):
    asked: list[CacheRows] = []
    with CacheWriter(tmp_path / "wic", tmp_path / "scratch") as made, pytest.raises(ParamsError) as found:
        made.write("x" * (SPLIT_LETTERS + 1), (asked.append(rows()) or rows() for _ in range(3)))
    assert not asked
    assert str(SPLIT_LETTERS) in str(found.value)
    assert "\n" not in str(found.value)


def test_an_id_in_two_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = rows(ROWS)
    twice = replace(whole, example_id=["train-20", *whole.example_id[1:]])
    with pytest.raises(ShapeError, match="got twice train-20"):
        write(tmp_path / "wic", tmp_path, twice)
    monkeypatch.setattr(writer, "repeated_in_parts", lambda parts: [])  # a careless writer
    write(tmp_path / "wic", tmp_path, twice)
    assert "got twice train-20" in refused(tmp_path / "wic")


def renew(cache: Path, name: str, **fields: int) -> None:
    """Let the manifest vouch for a file as it is now."""
    manifest, path = read_manifest(cache), cache / name
    entry = manifest.files[name] | {"bytes": path.stat().st_size, "sha256": file_digest(path)} | fields
    change(cache, files=manifest.files | {name: entry})


def test_a_damaged_page_and_a_wrong_count_name_their_file(cache: Path):
    path = cache / NAMES[1]
    whole = path.read_bytes()
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(4)
    last = chunk.data_page_offset + chunk.total_compressed_size - 1
    path.write_bytes(whole[:last] + bytes([whole[last] ^ 1]) + whole[last + 1 :])
    renew(cache, NAMES[1])
    with pytest.raises(CacheCorrupt, match=NAMES[1]):
        list(load_cache(cache, "train").stream())
    assert len(problems(cache)) == 1
    assert NAMES[1] in problems(cache)[0]
    path.write_bytes(whole)
    files = read_manifest(cache).files
    renew(cache, NAMES[0], correct=files[NAMES[0]]["correct"] + 1)  # the sum stays
    renew(cache, NAMES[1], correct=files[NAMES[1]]["correct"] - 1)
    assert [problem[:28] for problem in problems(cache)] == [NAMES[1][:28]]


def test_a_store_keeps_no_file_of_the_cache_before(tmp_path: Path):
    place = "memory://several/cache/wic"
    try:
        for count, files in ((ROWS, 3), (3 * ROWS, 8), (FILE, 1), (ROWS, 3)):
            manifest = write(place, tmp_path, rows(count))
            assert len(manifest.files) == files
            assert Location.parse(place).names() == ["manifest.json", *sorted(manifest.files)]
            assert not problems(place)
            assert len(load_cache(place, "train").rows) == count
    finally:
        fsspec.filesystem("memory").rm("/several", recursive=True)


def test_a_card_lists_each_split_with_all_its_files(cache: Path):
    import yaml

    manifest = read_manifest(cache)
    card = dataset_card(manifest)
    (config,) = yaml.safe_load(card.split("---")[1])["configs"]
    assert config["data_files"] == [{"split": "train", "path": NAMES}]
    assert f"| train | {ROWS} |" in card


def spoil(cache: Path, manifest: Manifest, keep: tuple[str, int]) -> None:
    """Overwrite the pages of every row group but one."""
    for name in manifest.files:
        path, metadata = cache / name, pq.ParquetFile(cache / name).metadata
        data = bytearray(path.read_bytes())
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns if (name, group) != keep else 0):
                chunk = metadata.row_group(group).column(column)
                start = chunk.data_page_offset
                data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
        path.write_bytes(data)


def in_duckdb(files: str, where: str) -> list[str]:
    import duckdb

    found = duckdb.connect().sql(f"select example_id, logits from read_parquet('{files}') where {where}")
    return [example_id for example_id, _ in found.fetchall()]


def in_polars(files: str, where: str) -> list[str]:
    import polars

    found = polars.scan_parquet(files).filter(polars.sql_expr(where)).select("example_id", "logits")
    return found.collect()["example_id"].to_list()


@pytest.mark.parametrize("read", [in_duckdb, in_polars])
@pytest.mark.parametrize("where", ["example_id = 'train-13'", "label = 1", "fold = 2"])
def test_others_read_all_files_and_only_the_row_groups_that_a_filter_needs(tmp_path: Path, read, where: str):
    """What a filter excludes by the smallest and largest value may be no Parquet at all."""
    here = np.arange(ROWS) // GROUP == 3  # the second row group of the second file
    label, fold = here.astype(np.int64), np.where(here, 2, -1).astype(np.int8)
    ids = [f"train-{i:02}" for i in range(ROWS)]  # in order, so that each row group has some of its own
    some = replace(rows(ROWS), example_id=ids, label=label, fold=fold)
    folds = IDENTITY | {"folds_sha256": ["a", "b", "c"]}
    manifest = write(tmp_path / "wic", tmp_path, some, identity=folds)
    files = f"{tmp_path}/wic/train*.parquet"
    assert read(files, "label >= -1") == ids
    wanted = ["train-13"] if "id" in where else ids[12:16]
    assert read(files, where) == wanted
    spoil(tmp_path / "wic", manifest, (NAMES[1], 1))
    assert read(files, where) == wanted
    with pytest.raises(Exception, match=r"(?i)."):
        read(files, "label >= -1")


def test_code_of_the_docs_reads_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = Path(__file__).parents[2] / "docs/concepts/cache.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    write(tmp_path / "cache" / "wic", tmp_path, rows(ROWS))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["rows"]["example_id"].tolist() == rows(ROWS).example_id


def test_row_groups_tell_the_smallest_and_largest_of_each_plain_column(cache: Path):
    for name in NAMES:
        metadata = pq.ParquetFile(cache / name).metadata
        for group in range(metadata.num_row_groups):
            table = pq.ParquetFile(cache / name).read_row_group(group)
            for column in range(4):
                statistics = metadata.row_group(group).column(column).statistics
                values = table.column(column).to_pylist()
                assert (statistics.min, statistics.max) == (min(values), max(values))


def test_the_manifest_of_one_file_is_as_it_was(one_file: Path):
    body = json.loads((one_file / "manifest.json").read_text())
    assert body["format_version"] == 1
    assert list(body["files"]) == ["train.parquet"]


def test_largest_logits_in_several_files_are_those_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = {}
    for size in (FILE, 1000):
        monkeypatch.setattr(writer, "FILE_ROWS", size)
        with CacheWriter(tmp_path / str(size) / "wic", tmp_path / "scratch", top_k=1) as made:
            made.write("train", [rows(ROWS)])
            assert made.finish(IDENTITY).format_version == 2
        found[size] = load_cache(tmp_path / str(size) / "wic", "train")
        assert not problems(tmp_path / str(size) / "wic")
    assert everything(found[FILE]) == everything(found[1000])
    assert sorted(found[FILE].manifest.files) == NAMES
