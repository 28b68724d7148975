"""Parts: whole or absent, whoever stores them at the same time."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from kdcache.errors import CacheError, KdcacheError
from kdcache.store import parts
from kdcache.store.location import Location
from kdcache.store.parts import Parts, clean_parts

ARRAYS = {"logits": np.arange(6.0).reshape(3, 2)}


def test_two_that_store_one_part_at_once_leave_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stored, whole = Parts(tmp_path, "cache/wic"), parts.to_disk

    def meanwhile(path: Path) -> None:
        """Another worker stores the same part while the first one waits for the disk."""
        monkeypatch.setattr(parts, "to_disk", whole)
        Parts(tmp_path, "cache/wic").store("train-0", ARRAYS)
        whole(path)

    monkeypatch.setattr(parts, "to_disk", meanwhile)
    stored.store("train-0", ARRAYS)
    found = stored.read("train-0")
    assert found is not None
    assert (found["logits"] == ARRAYS["logits"]).all()
    assert len(list(stored.folder.iterdir())) == 1


def test_a_part_without_its_end_is_none(tmp_path: Path):
    stored = Parts(tmp_path, "cache/wic")
    assert stored.read("train-0") is None
    stored.store("train-0", ARRAYS)
    (path,) = stored.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert stored.read("train-0") is None
    assert not path.exists()


def test_the_first_machine_decides(tmp_path: Path):
    one, other = Parts(tmp_path, "cache/wic"), Parts(tmp_path, "cache/wic")
    one.require_machine("a")
    other.require_machine("a")
    with pytest.raises(KdcacheError, match="got b here and a before"):
        other.require_machine("b")
    assert [path.name for path in tmp_path.iterdir()] == ["machine"]


@pytest.fixture
def store() -> Iterator[str]:
    yield "memory://stored/parts"
    if (memory := fsspec.filesystem("memory")).exists("/stored"):
        memory.rm("/stored", recursive=True)


def on_store(tmp_path: Path, store: str) -> Parts:
    return Parts(tmp_path / "cache_teacher-0123456789abcdef", "cache/wic", store)


def test_parts_on_a_store_are_whole_or_none_and_leave_the_disk_alone(tmp_path: Path, store: str):
    stored = on_store(tmp_path, store)
    assert stored.read("train-0") is None
    stored.require_machine("a")
    stored.store("train-0", ARRAYS)
    stored.store("train-0", ARRAYS)
    stored.store("train-01", {"logits": ARRAYS["logits"] + 1})
    other = pickle.loads(pickle.dumps(on_store(tmp_path, store)))
    found = other.read("train-0")
    assert found is not None
    assert (found["logits"] == ARRAYS["logits"]).all()
    (name,) = (name for name in stored.place.names(recursive=True) if "/train-0/" in name)
    whole = stored.place.read(name)
    with stored.place.create(name) as file:
        file.write(whole[:-1])
    assert other.read("train-0") is None
    assert not stored.place.exists(name)
    assert other.read("train-01") is not None
    stored.remove()
    assert stored.place.names(recursive=True) == []
    assert other.read("train-01") is None
    assert list(tmp_path.iterdir()) == []


def test_the_first_machine_decides_on_a_store(tmp_path: Path, store: str):
    one, other = on_store(tmp_path, store), on_store(tmp_path, store)
    one.require_machine("a")
    on_store(tmp_path, store).require_machine("a")
    with pytest.raises(KdcacheError, match="got b here and a before"):
        other.require_machine("b")
    assert len(one.place.names(below="machine")) == 1


def test_of_two_kinds_that_come_at_once_no_more_than_one_goes_on(tmp_path: Path, store: str, monkeypatch):
    one, other = on_store(tmp_path, store), on_store(tmp_path, store)
    create = Location.create

    def meanwhile(location: Location, name: str) -> object:
        """Another kind decides after the first one found nothing."""
        monkeypatch.setattr(Location, "create", create)
        other.require_machine("b")
        return create(location, name)

    monkeypatch.setattr(Location, "create", meanwhile)
    with pytest.raises(KdcacheError, match="got a here and b before"):
        one.require_machine("a")
    other.store("train-0", ARRAYS)  # the one that goes on is not disturbed
    again = on_store(tmp_path, store)
    assert again.read("train-0") is not None
    again.require_machine("b")


def test_what_a_process_of_another_kind_stores_too_late_is_not_read(tmp_path: Path, store: str):
    late, now = on_store(tmp_path, store), on_store(tmp_path, store)
    late.require_machine("a")
    late.remove()  # by who published the cache
    late.store("train-0", ARRAYS)
    now.require_machine("b")
    assert now.read("train-0") is None


@pytest.mark.parametrize("there", ["disk", "store"])
def test_files_come_back_as_they_were_the_last_one_last(tmp_path: Path, store: str, monkeypatch, there: str):
    root = store if there == "store" else str(tmp_path / "shared")
    stored = on_store(tmp_path, root)
    stored.scratch.mkdir()
    stored.require_machine("a")
    files = {"b/weights": bytes(range(256)), "b/none": b"", "a/result.json": b"{}"}
    for name, content in files.items():
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_bytes(content)
    assert not stored.fetch_files("kl-0", tmp_path / "two")
    stored.store_files("kl-0", tmp_path / "one", [tmp_path / "one" / name for name in files])
    written, replace = [], os.replace
    monkeypatch.setattr("os.replace", lambda old, new: (replace(old, new), written.append(Path(new).name)))
    assert on_store(tmp_path, root).fetch_files("kl-0", tmp_path / "two")
    assert written == ["weights", "none", "result.json"]
    assert {name: (tmp_path / "two" / name).read_bytes() for name in files} == files


def test_a_file_outside_its_folder_is_refused(tmp_path: Path, store: str):
    stored = on_store(tmp_path, store)
    stored.scratch.mkdir()
    stored.require_machine("a")
    stored.store("kl-0", {"../mine": np.zeros(3, np.uint8)})
    with pytest.raises(CacheError, match="mine"):
        stored.fetch_files("kl-0", tmp_path / "two")
    assert not (tmp_path / "mine").exists()


def test_files_of_another_kind_of_machine_are_not_put_beside_those_of_this_one(tmp_path: Path, store: str):
    scratch = tmp_path / "cache_teacher-0123456789abcdef"
    scratch.mkdir()
    weights = scratch / "weights"
    weights.write_bytes(b"b")
    elsewhere = on_store(tmp_path, store)
    elsewhere.require_machine("b")
    elsewhere.store_files("kl-0", scratch, [weights])
    weights.write_bytes(b"a")
    Parts(scratch, "mine").require_machine("a")  # of this machine alone
    with pytest.raises(KdcacheError, match="got b here and a before"):
        on_store(tmp_path, store).fetch_files("kl-0", scratch)
    with pytest.raises(KdcacheError, match="one kind"):
        on_store(tmp_path, store).require_machine_of_files("b")
    assert weights.read_bytes() == b"a"
    (scratch / "machine").unlink()
    assert on_store(tmp_path, store).fetch_files("kl-0", scratch)
    with pytest.raises(KdcacheError, match="got a here and b before"):
        Parts(scratch, "mine").require_machine("a")


def test_a_lost_lease_is_noticed(tmp_path: Path, store: str):
    stored = on_store(tmp_path, store)
    with stored.leased():
        stored.require_lease()
        Location.parse(store).remove_below("leases")  # as another process does, which thinks this one dead
        with pytest.raises(CacheError, match="took over"):
            stored.require_lease()


def test_a_build_on_a_store_is_one_process_at_a_time(tmp_path: Path, store: str, monkeypatch):
    monkeypatch.setattr("kdcache.store.lease.RENEWED_SECONDS", 0.05)
    with (
        on_store(tmp_path, store).leased(),
        pytest.raises(CacheError, match="one process"),
        on_store(tmp_path, store).leased(),
    ):
        pass
    with Parts(tmp_path, "cache/wic").leased(), Parts(tmp_path, "cache/wic").leased():
        pass  # on a disk a lock does that


def test_clean_removes_builds_and_nothing_else(tmp_path: Path, store: str):
    stored = on_store(tmp_path, store)
    stored.store("train-0", ARRAYS)
    size = sum(stored.place.size(name) for name in stored.place.names(recursive=True))
    root = Location.parse(store)
    kinds = [f"{kind}-0123456789abcdef" for kind in ("training", "recompute", "grid")]
    for kind in kinds:
        Parts(tmp_path / kind, "mine", store).store("one", ARRAYS)
        size += sum(root.size(name) for name in root.names(recursive=True) if name.startswith(kind))
    others = [
        "cache_teacher-1/x",
        "cache_teacher-fedcba9876543210/thesis",
        "mine-0123456789abcdef/x",
        "notes/x",
        "x",
    ]
    for name in others:
        with root.create(name) as file:
            file.write(b"mine")
    assert clean_parts(store) == size > 0
    assert root.names(recursive=True) == others


def test_a_folder_of_its_own_holds_parts_as_scratch_does(tmp_path: Path):
    stored = on_store(tmp_path, str(tmp_path / "shared"))
    stored.require_machine("a")
    stored.store("train-0", ARRAYS)
    there = sorted(path.name for path in (tmp_path / "shared" / "cache_teacher-0123456789abcdef").iterdir())
    assert there == ["machine", "parts"]
    assert stored.read("train-0") is not None
    assert clean_parts(str(tmp_path / "shared")) > 0
    assert list((tmp_path / "shared").iterdir()) == []
