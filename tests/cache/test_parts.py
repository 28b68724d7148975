"""Parts: whole or absent, whoever stores them at the same time."""

from pathlib import Path

import numpy as np
import pytest

from kdcache.cache import parts
from kdcache.cache.parts import Parts
from kdcache.errors import KdcacheError

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
