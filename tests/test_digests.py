"""Files that later stages read carry a digest beside them, which their readers check."""

import random
from pathlib import Path

import pytest
from conftest import run

from kdcache.digests import SEAL, check_seal, seal
from kdcache.errors import DataError


def test_a_sealed_file_is_known_by_its_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        seal(tmp_path / name)
    assert check_seal(tmp_path / "a", "Run: x", DataError) == tmp_path / "a"
    (tmp_path / "c").write_text("never sealed")
    (tmp_path / "b").write_text("B")
    for name in ("b", "c"):
        with pytest.raises(DataError, match=r"Run: x$") as error:
            check_seal(tmp_path / name, "Run: x", DataError)
        assert len(str(error.value).splitlines()) == 1
    for broken in (b"", b"[]", b"\xff", b"null"):
        (tmp_path / SEAL).write_bytes(broken)
        with pytest.raises(DataError):
            check_seal(tmp_path / "a", "Run: x", DataError)


@pytest.mark.parametrize("flips", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_random_flips_of_what_stages_read_are_found(distilled_project: Path, flips: int):
    """Of data, and of the teacher's small files."""
    rng = random.Random(0)
    files = [p for p in Path("data/cb").iterdir() if p.name not in (SEAL, "test.parquet")]
    read = {path: ["verify", "--task", "cb", "--teacher-rows", "0"] for path in files}
    for name in ("identity.json", "folds.parquet", "cost.json", "probe.json"):
        read[Path("models/teacher/cb") / name] = ["cache", "--task", "cb"]
    for path in rng.choices(list(read), k=flips):
        whole = path.read_bytes()
        position, bit = rng.randrange(len(whole)), rng.randrange(8)
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
        code, _, error = run(*read[path])
        assert code == 1, (path, position, bit)
        assert "sha256" in error or "folds.parquet" in error, (path, error)
        path.write_bytes(whole)
