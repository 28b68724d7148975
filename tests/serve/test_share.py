"""Sharing: what is pulled is what was pushed, or nothing; what lies at a place stays."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from builders import rows, write
from conftest import fails, run

import kdcache
from kdcache.cache.manifest import read_manifest
from kdcache.cache.verify import verify_cache
from kdcache.errors import KdcacheError
from kdcache.store.location import Location


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://shared"
    store = fsspec.filesystem("memory")
    if store.exists("/shared"):
        store.rm("/shared", recursive=True)


@pytest.fixture
def students(tmp_path: Path) -> Path:
    """Two folders that say what a student says; sharing reads no weights."""
    task = {
        "name": "wic", "template": "wic/1", "labels": ["false", "true"], "metrics": ["accuracy"],
        "pairs": False,
        "num_choices": 1, "truncate": "longest",
    }  # fmt: skip
    about = {
        "method": "prefix", "backbone": "models/backbone", "backbone_sha256": "ab", "num_virtual_tokens": 2,
        "max_length": 64, "task": task,
    }  # fmt: skip
    for seed in (0, 1):
        folder = tmp_path / f"runs/wic/kl-{seed}"
        folder.mkdir(parents=True)
        (folder / "student.json").write_text(json.dumps(about))
        (folder / "README.md").write_text(f"# the card of {seed}")
        (folder / "head.safetensors").write_bytes(bytes([seed]) * 1000)
    return tmp_path / "runs/wic"


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def check_place(uri: str, tmp_path: Path, students: Path) -> None:
    """A cache and students go there and come back as they were, twice; damage does not come back."""
    local = tmp_path / "cache/wic"
    write(local, tmp_path)
    for folder, name, also in ((local, "cache", set()), (students, "students", {"digests.json"})):
        place = Location.parse(uri, name).uri
        assert run("push", str(folder), place)[0] == 0
        assert kdcache.push(folder, place).copied == 0, "it is there"
        back = tmp_path / "back" / name
        assert run("pull", place, str(back))[0] == 0
        found = content(back)
        assert {key: value for key, value in found.items() if key not in also} == content(folder)
        assert kdcache.pull(place, back).copied == 0
        assert content(back) == found
    assert not [check for check in verify_cache(Location.parse(uri, "cache")) if check.problem]
    card = Location.parse(uri, "cache").read("README.md").decode()
    assert "| train | 10 |" in card
    assert "false, true" in card
    other = write(tmp_path / "other/wic", tmp_path, rows(seed=2))
    assert other.digest not in card
    before = Location.parse(uri, "cache").digest("train.parquet")
    with pytest.raises(KdcacheError, match="another"):
        kdcache.push(tmp_path / "other/wic", Location.parse(uri, "cache").uri)
    assert Location.parse(uri, "cache").digest("train.parquet") == before
    for name, damaged in (("cache", "train.parquet"), ("students", "kl-1/head.safetensors")):
        place = Location.parse(uri, name)
        whole = place.read(damaged)
        for bad in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), None):
            if bad is None:
                place.filesystem.delete_file(place._file(damaged))
            else:
                with place.create(damaged) as file:
                    file.write(bad)
            assert damaged in fails("pull", place.uri, str(tmp_path / "new"))
            assert [path for path in tmp_path.iterdir() if path.name == "new" or "part" in path.name] == []
        assert kdcache.push(tmp_path / "cache/wic" if name == "cache" else students, place.uri).copied == 1
        kdcache.pull(place.uri, tmp_path / f"new-{name}")


def test_a_folder(tmp_path: Path, students: Path):
    check_place(str(tmp_path / "share"), tmp_path, students)
    assert sorted(path.name for path in (tmp_path / "share").iterdir()) == ["cache", "students"]


def test_memory(memory: str, tmp_path: Path, students: Path):
    check_place(memory, tmp_path, students)


@pytest.mark.slow
def test_s3(s3: str, tmp_path: Path, students: Path):
    check_place(f"s3://bucket/shared?{s3}", tmp_path, students)


def test_what_lies_somewhere_stays(memory: str, tmp_path: Path, students: Path):
    write(tmp_path / "cache/wic", tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    assert "thesis.txt" in fails("push", str(students), str(mine))
    kdcache.push(students, f"{memory}/students")
    assert "another" in fails("pull", f"{memory}/students", str(mine))
    fsspec.filesystem("memory").pipe_file("/shared/used/train.parquet", b"of somebody")
    assert "train.parquet" in fails("push", str(tmp_path / "cache/wic"), f"{memory}/used")
    assert fsspec.filesystem("memory").cat_file("/shared/used/train.parquet") == b"of somebody"
    assert content(mine) == {"thesis.txt": b"x"}
    fsspec.filesystem("memory").pipe_file("/shared/repo/README.md", b"mine")
    fsspec.filesystem("memory").pipe_file("/shared/repo/.gitattributes", b"as a hub has it")
    kdcache.push(tmp_path / "cache/wic", f"{memory}/repo")
    assert fsspec.filesystem("memory").cat_file("/shared/repo/README.md") == b"mine"
    assert len(kdcache.load_cache(f"{memory}/repo", "train")) == 10


def test_a_push_that_stopped_is_nothing_and_goes_on(memory: str, tmp_path: Path, students: Path, monkeypatch):
    create = Location.create
    left = [3]

    def stop(self, name):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("connection lost")
        return create(self, name)

    monkeypatch.setattr(Location, "create", stop)
    assert "connection lost" in fails("push", str(students), f"{memory}/students")
    assert "neither" in fails("pull", f"{memory}/students", str(tmp_path / "new"))
    assert "connection lost" in fails("push", str(students), str(tmp_path / "local"))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    monkeypatch.undo()
    done = kdcache.push(students, f"{memory}/students")
    assert done.copied == len(done.files) - 3, "three were there; the list of digests is none of them"
    kdcache.pull(f"{memory}/students", tmp_path / "new")


def test_a_pull_verifies_what_lies_there_already(memory: str, tmp_path: Path):
    """The same files under another manifest are no copy: it says what the numbers mean."""
    local = tmp_path / "cache/wic"
    write(local, tmp_path)
    kdcache.push(local, f"{memory}/cache")
    assert kdcache.pull(f"{memory}/cache", local).copied == 0
    manifest = read_manifest(local)
    turned = manifest.identity | {"labels": manifest.identity["labels"][::-1]}
    replace(manifest, identity=turned).write(local / "manifest.json")
    assert "another manifest.json" in fails("pull", f"{memory}/cache", str(local))
    (local / "manifest.json").unlink()
    assert "another manifest.json" in fails("pull", f"{memory}/cache", str(local))
    manifest.write(local / "manifest.json")
    (local / "stray.parquet").write_bytes(b"")
    assert "stray.parquet" in fails("pull", f"{memory}/cache", str(local))


def test_a_push_that_stopped_within_a_file_goes_on(memory: str, tmp_path: Path, monkeypatch):
    write(tmp_path / "cache/wic", tmp_path)
    there = tmp_path / "there"
    there.mkdir()
    (there / "README.md").write_text("my card")
    copy = shutil.copyfileobj

    def stop(source, target):
        target.write(source.read(10))
        raise OSError("no space left")

    monkeypatch.setattr(shutil, "copyfileobj", stop)
    assert "no space left" in fails("push", str(tmp_path / "cache/wic"), str(there))
    assert [path.name for path in there.iterdir()] == ["README.md"]
    assert "no space left" in fails("push", str(tmp_path / "cache/wic"), f"{memory}/cache")
    monkeypatch.setattr(shutil, "copyfileobj", copy)
    kdcache.push(tmp_path / "cache/wic", f"{memory}/cache")
    kdcache.push(tmp_path / "cache/wic", there)
    assert (there / "README.md").read_text() == "my card"
    assert len(kdcache.load_cache(there, "train")) == 10


def test_a_list_cannot_lead_out_of_the_folder(tmp_path: Path):
    for name in ("../out.txt", "/tmp/out.txt", "a/../../out.txt", ".ssh/x"):
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad/digests.json").write_text(json.dumps({name: "0" * 64}))
        assert "within the folder" in fails("pull", str(tmp_path / "bad"), str(tmp_path / "new"))
    for text in ("[]", "{", '{"a": 1}'):
        (tmp_path / "bad/digests.json").write_text(text)
        assert "sha256" in fails("pull", str(tmp_path / "bad"), str(tmp_path / "new"))


def test_only_what_kdcache_made_is_shared(tmp_path: Path):
    (tmp_path / "x.txt").write_text("x")
    assert "dvc push" in fails("push", str(tmp_path), "memory://shared/x")
    write(tmp_path / "cache/wic", tmp_path)
    path = tmp_path / "cache/wic/train.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert "train.parquet" in fails("push", str(tmp_path / "cache/wic"), "memory://shared/x")


def test_what_no_pull_could_fetch_is_not_pushed(tmp_path: Path, students: Path):
    (students / "kl-1" / "my notes.md").write_text("x")
    assert "my notes.md" in fails("push", str(students), str(tmp_path / "share"))
    assert not (tmp_path / "share").exists()


@pytest.mark.slow
def test_a_pulled_student_labels_as_before(distilled_project, memory):
    wanted = kdcache.load_student("runs/cb/kl+gram-0").logits(["It rains."], ["It is dry."])
    assert run("push", "runs/cb/kl+gram-0", f"{memory}/kl")[0] == 0
    code, _, error = run("pull", f"{memory}/kl", "pulled/kl")
    assert (code, error) == (0, "")
    assert np.array_equal(kdcache.load_student("pulled/kl").logits(["It rains."], ["It is dry."]), wanted)
    assert run("push", "models/backbone", f"{memory}/backbone")[0] == 0
    Path("models/backbone").rename("gone")
    code, _, error = run("pull", f"{memory}/kl", "pulled/again")
    assert code == 0
    assert "backbone=FOLDER" in error
    assert run("pull", f"{memory}/backbone", "models/backbone")[0] == 0
    assert np.array_equal(kdcache.load_student("pulled/again").logits(["It rains."], ["It is dry."]), wanted)
