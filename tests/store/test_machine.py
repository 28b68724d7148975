"""One kind of machine computes all of a thing."""

import errno
import os
from pathlib import Path

import pytest

from kdcache.errors import KdcacheError
from kdcache.store.machine import one_machine_kind


@pytest.mark.parametrize("links", [True, False])
def test_the_first_kind_of_machine_decides(tmp_path: Path, monkeypatch, links):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:  # as on a FAT disk
        monkeypatch.setattr(os, "link", refuse)
    one_machine_kind(tmp_path, "a", "the teacher")
    one_machine_kind(tmp_path, "a", "the teacher")
    with pytest.raises(KdcacheError, match="got b here and a before"):
        one_machine_kind(tmp_path, "b", "the teacher")
    assert [path.name for path in tmp_path.iterdir()] == ["machine"]
