"""The manifest: one spelling, its own digest, and every field of the identity looked at."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import IDENTITY, write

from kdcache.cache.manifest import Manifest, check_identity, read_manifest
from kdcache.digests import value_digest
from kdcache.errors import CacheCorrupt, CacheStale, ParamsError, ShapeError


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write(tmp_path / "wic", tmp_path)
    return tmp_path / "wic"


def test_other_format_version_is_refused(cache: Path):
    body = json.loads((cache / "manifest.json").read_text())
    (cache / "manifest.json").write_text(json.dumps(body | {"format_version": 99}))
    with pytest.raises(CacheStale, match="format_version must be 1 or 2, got 99"):
        read_manifest(cache)


def test_same_values_in_another_spelling_are_refused(cache: Path):
    body = json.loads((cache / "manifest.json").read_text())
    (cache / "manifest.json").write_text(json.dumps(body, sort_keys=True))
    with pytest.raises(CacheCorrupt, match="it must be in canonical form"):
        read_manifest(cache)


def test_a_probe_is_written_where_there_is_one_only(cache: Path):
    """So that manifests of before keep their bytes."""
    manifest = read_manifest(cache)
    assert "probe" not in json.loads((cache / "manifest.json").read_text())
    replace(manifest, probe={"strength": 0.1, "tune": {"accuracy": 0.5}}).write(cache / "manifest.json")
    assert read_manifest(cache).probe == {"strength": 0.1, "tune": {"accuracy": 0.5}}
    assert read_manifest(cache).digest != manifest.digest
    replace(manifest, probe={"tune": {}}).write(cache / "manifest.json")
    with pytest.raises(CacheCorrupt, match=r"probe\.strength: field required"):
        read_manifest(cache)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"\xff", b'{"digest": "x"}'])
def test_other_bytes_are_no_manifest(cache: Path, content: bytes):
    (cache / "manifest.json").write_bytes(content)
    with pytest.raises(CacheCorrupt, match="it must be a whole manifest, got other bytes"):
        read_manifest(cache)


def test_fields_of_no_format_are_refused_though_their_digest_is_right(cache: Path):
    manifest = read_manifest(cache)
    replace(manifest, columns=[["x", "y"]]).write(cache / "manifest.json")
    with pytest.raises(CacheCorrupt, match="it must have this format's fields, got: column x of type y"):
        read_manifest(cache)


ENTRY = {"rows": 1, "bytes": 1, "sha256": "x", "labelled": 1, "correct": 1}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tolerance": "a"}, "tolerance: input should be a valid number"),
        ({"tolerance": False}, "canonical form"),
        ({"files": []}, "files: input should be a valid dictionary"),
        ({"files": {"train.parquet": {"rows": 1}}}, "files.train.parquet.correct: field required"),
        ({"data": {"train": 3}}, "data.train: input should be a valid string"),
        (
            {"metrics": {"train": {"accuracy": None}}},
            "metrics.train.accuracy: input",
        ),
        ({"columns": [["label"]]}, "not enough values"),
        ({"columns": [1]}, "columns.0: input should be a valid list"),
        ({"identity": {"task": "wic"}}, "labels: field required"),
        ({"identity": {"task": "wic", "labels": "ab"}}, "labels: input should be a valid list"),
        *(({"tolerance": t}, f"tolerance {t:g}") for t in (1e9, 2e-4, -1e-9)),
        ({"tolerance": 0.2, "dtype": "bfloat16"}, "tolerance 0.2"),
        ({"dtype": "float8"}, "float8"),
        *(({"data": {name: "x"}}, repr(name)) for name in ("../out", "a/b", ".", "..", "", "-x", "a\nb")),
        *(
            ({"files": {name: ENTRY}}, repr(name))
            for name in ("../../out.parquet", "/etc/x.parquet", "train")
        ),
        ({"identity": IDENTITY | {"labels": ["a", "b", "c"]}}, "3 labels, and logits of 2 numbers"),
        ({"identity": IDENTITY | {"labels": ["a"], "num_labels": 1}}, "1 labels, and logits of 2 numbers"),
        ({"identity": IDENTITY | {"num_labels": 3}}, "2 labels, and logits of 2 numbers"),
    ],
)
def test_wrong_types_are_one_line_that_names_the_field(cache: Path, changes: dict[str, Any], named: str):
    replace(read_manifest(cache), **changes).write(cache / "manifest.json")
    with pytest.raises(CacheCorrupt) as error:
        read_manifest(cache)
    assert named in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["tolerance", "cost", "drift"])
def test_numbers_that_are_none_are_refused(cache: Path, field: str, number: float):
    value: Any = number if field == "tolerance" else {"x": number}
    replace(read_manifest(cache), **{field: value}).write(cache / "manifest.json")
    with pytest.raises(CacheCorrupt):
        read_manifest(cache)


def test_a_tolerance_may_be_tighter_and_bfloat16_has_its_own(cache: Path):
    for dtype, tolerance in (("float32", 0), ("float32", 1e-5), ("bfloat16", 0.1)):
        replace(read_manifest(cache), dtype=dtype, tolerance=tolerance).write(cache / "manifest.json")
        assert read_manifest(cache).tolerance == tolerance


def test_the_manifests_own_digest_can_be_expected(cache: Path):
    manifest = read_manifest(cache)
    check(manifest, expect={"digest": manifest.digest})
    with pytest.raises(CacheStale, match=r"distill\.expect digest must be 'x'"):
        check(manifest, expect={"digest": "x"})
    changed = replace(manifest, cost={"x": 1})  # the same teacher and data
    with pytest.raises(CacheStale, match="digest"):
        check(changed, expect={"digest": manifest.digest})


def test_unknown_fields_and_missing_ones_are_named(cache: Path):
    body = json.loads((cache / "manifest.json").read_text())
    del body["digest"], body["cost"]
    body["extra"] = 1
    text = json.dumps(body | {"digest": value_digest(body)}, indent=2, sort_keys=True) + "\n"
    (cache / "manifest.json").write_text(text)
    with pytest.raises(CacheCorrupt, match="must have this format's fields, got: extra: "):
        read_manifest(cache)


@pytest.mark.parametrize("number", [0, 0.0, 1e-4])
def test_numbers_keep_their_spelling(cache: Path, number: float):
    """So that a cache of before, or of another writer, keeps its bytes and its digest."""
    replace(read_manifest(cache), tolerance=number, cost={"rows": number}).write(cache / "manifest.json")
    before = (cache / "manifest.json").read_bytes()
    assert read_manifest(cache).to_bytes() == before


def test_a_manifest_that_no_reader_would_take_is_not_written(cache: Path, tmp_path: Path):
    with pytest.raises(ShapeError, match="cache manifest: labels: field required"):
        write(tmp_path / "other", tmp_path, identity={"task": "wic"})
    assert not (tmp_path / "other").exists()


def check(manifest: Manifest, **changes) -> None:
    arguments = {
        "task_name": "wic", "label_names": ("false", "true"), "data": dict(manifest.data),
        "teacher": IDENTITY, "expect": {},
    }  # fmt: skip
    check_identity(manifest, **(arguments | changes))


def test_own_cache_is_accepted(cache: Path):
    manifest = read_manifest(cache)
    check(manifest)
    check(manifest, teacher=None, expect={"model": "tiny", "max_length": 64})


@pytest.mark.parametrize("field", IDENTITY)
def test_each_field_of_another_teacher_is_named(cache: Path, field: str):
    manifest = read_manifest(cache)
    with pytest.raises(
        CacheStale, match=rf"cache of wic: teacher {field} must be 'other', got .* in the cache"
    ):
        check(manifest, teacher=IDENTITY | {field: "other"})
    with pytest.raises(CacheStale, match=rf"cache of wic: distill.expect {field} must be 'other', got "):
        check(manifest, expect={field: "other"})


@pytest.mark.parametrize("field", IDENTITY)
def test_each_field_that_changed_in_the_cache_is_named(cache: Path, field: str):
    changed = replace(read_manifest(cache), identity=IDENTITY | {field: "other"})
    with pytest.raises(CacheStale, match=rf"cache of wic: (teacher )?{field} must be .* got 'other'"):
        check(changed)


def test_other_data_labels_and_expectations_are_named(cache: Path):
    manifest = read_manifest(cache)
    with pytest.raises(CacheStale, match=r"task must be 'cb', got 'wic'.*Run: kdcache cache --task cb"):
        check(manifest, task_name="cb")
    with pytest.raises(CacheStale, match=r"data.train must be 'x', got '\w{64}' in the cache"):
        check(manifest, data={"train": "x"})
    with pytest.raises(CacheStale, match=r"data.tune must be 'x', got None in the cache"):
        check(manifest, data={"tune": "x"})
    with pytest.raises(CacheStale, match=r"labels must be \['no', 'yes'\]"):
        check(manifest, label_names=("no", "yes"))
    with pytest.raises(
        ParamsError, match=r"weights must be a field of the identity.*Did you mean weights_sha256\?"
    ):
        check(manifest, expect={"weights": "z"})


def test_a_teacher_nearby_says_nothing_about_an_imported_cache(cache: Path):
    manifest = read_manifest(cache)
    identity = {"kind": "external", "task": "wic", "labels": ["false", "true"], "source_sha256": "f"}
    imported = replace(manifest, identity=identity)
    check(imported)
    assert imported.teacher_digest == "f"
    assert imported.num_folds == 0
    with pytest.raises(CacheStale, match="Run: kdcache import FILE --task wic"):
        check(imported, data={"train": "x"})


def test_a_mismatch_of_weights_names_the_models(tmp_path: Path):
    manifest = write(tmp_path / "wic", tmp_path)
    teacher = {**manifest.identity, "model": "larger", "config_sha256": "other"}
    with pytest.raises(CacheStale, match=r"larger here, tiny in the cache"):
        check_identity(manifest, "wic", ("false", "true"), {}, teacher, {})
