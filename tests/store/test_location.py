"""Places of a cache: any folder, another disk, memory, an S3-compatible store."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from builders import rows, write

from kdcache.cache.diff import diff_caches
from kdcache.cache.reader import load_cache
from kdcache.cache.verify import verify_cache
from kdcache.errors import CacheCorrupt, CacheError, CacheMissing
from kdcache.store.location import Location


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://bucket/cache/wic"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def check_place(uri: str, scratch: Path, local: Path) -> None:
    """The same bytes as in a local folder; verified, replaced and refused like there."""
    write(local, scratch)
    manifest = write(uri, scratch)
    place = Location.parse(uri)
    for name in ("train.parquet", "manifest.json"):
        assert place.read(name) == (local / name).read_bytes()
    split = load_cache(uri, "train")
    assert split.manifest == manifest
    assert (split.align(["train-3"]).logits == rows().logits[[3]]).all()
    assert sum(len(part) for part in split.stream()) == 10
    assert not [check for check in verify_cache(uri) if check.problem]
    assert diff_caches(uri, local).fields == {}
    write(uri, scratch, rows(seed=2))
    assert (load_cache(uri, "train").rows.logits == rows(seed=2).logits).all()


def test_memory(memory: str, tmp_path: Path):
    check_place(memory, tmp_path, tmp_path / "wic")
    fsspec.filesystem("memory").pipe_file("/bucket/cache/wic/train.parquet", b"x")
    with pytest.raises(CacheCorrupt, match=r"memory://bucket/cache/wic/train.parquet: its length in bytes"):
        load_cache(memory, "train")


@pytest.mark.parametrize("name", ["train.parquet", "manifest.json"])
def test_upload_that_stops_half_way_leaves_no_cache(memory: str, tmp_path: Path, monkeypatch, name: str):
    import pyarrow.fs as pafs

    write(memory, tmp_path)
    copy = pafs.copy_files

    def stop_before(source, target, **options):
        if target.endswith(name):
            raise OSError("connection lost")
        copy(source, target, **options)

    monkeypatch.setattr(pafs, "copy_files", stop_before)
    with pytest.raises(CacheError, match=r"must fit where it is written, got: connection lost. Fix that"):
        write(memory, tmp_path, rows(seed=2))
    with pytest.raises(CacheMissing):
        load_cache(memory, "train")


def test_files_that_the_new_cache_does_not_have_are_gone(memory: str, tmp_path: Path):
    fsspec.filesystem("memory").pipe_file("/bucket/cache/wic/tune.parquet", b"x")
    write(memory, tmp_path)
    assert not [check for check in verify_cache(memory) if check.problem]


def test_another_disk_than_the_scratch_folder(tmp_path: Path):
    folder = Path(tempfile.mkdtemp(dir="/dev/shm")) if Path("/dev/shm").is_dir() else tmp_path
    if os.stat(folder).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("this machine has no second file system at /dev/shm")
    try:
        write(folder / "wic", tmp_path)
        write(folder / "wic", tmp_path, rows(seed=2))
        assert (load_cache(folder / "wic", "train").rows.logits == rows(seed=2).logits).all()
        assert [path.name for path in folder.iterdir()] == ["wic"]
    finally:
        shutil.rmtree(folder)


def test_unknown_scheme_is_one_line():
    with pytest.raises(CacheError) as error:
        load_cache("nosuch://bucket/wic", "train")
    assert str(error.value) == (
        "nosuch://bucket/wic: it must be a folder or a URI that pyarrow or fsspec opens, got: "
        "Protocol not known: nosuch. Check its scheme, or install what fsspec needs for it."
    )


def test_a_file_uri_is_the_local_folder_with_blanks_and_umlauts(tmp_path: Path):
    folder = tmp_path / "ein Käse?"
    write(folder / "wic", tmp_path)
    place = Location.parse(f"file://{tmp_path}/ein Käse", "wic")
    assert place.folder == tmp_path / "ein Käse" / "wic"
    assert Location.parse(folder, "wic").folder == folder / "wic"
    assert len(load_cache(Location.parse(folder, "wic"), "train")) == 10


def test_the_task_goes_before_the_options_of_a_uri():
    place = Location.parse("s3://bucket/cache?region=eu-west-1", "wic")
    assert (place.uri, place.path, place.name) == (
        "s3://bucket/cache/wic?region=eu-west-1", "bucket/cache/wic", "wic"
    )  # fmt: skip
    assert Location.parse("cache", "wic").folder == Path("cache/wic")


@pytest.mark.slow
def test_s3_compatible_store(s3: str, tmp_path: Path):
    check_place(f"s3://bucket/cache/wic?{s3}", tmp_path, tmp_path / "wic")


@pytest.mark.parametrize("uri", ["s3:/bucket/x", "s3://", "memory://", "memory:///", "http:/x"])
def test_a_uri_that_names_no_place_is_refused_in_one_line(uri):
    with pytest.raises(CacheError) as error:
        Location.parse(uri, "wic")
    assert len(str(error.value).splitlines()) == 1
