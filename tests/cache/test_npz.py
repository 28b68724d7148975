"""Arrays of an npz file are read row by row, and no more is believed than the file can hold."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kdcache.cache.npz import read_npz, write_npz
from kdcache.errors import DataError


def entry(shape: tuple[int, ...], content: bytes, fortran: bool = False, descr: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    header = {"descr": descr, "fortran_order": fortran, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + content


def refused(tmp_path: Path, *entries: bytes) -> str:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for number, content in enumerate(entries):
            file.writestr(f"logits_{number}.npy", content)
    with pytest.raises(DataError) as error:
        list(read_npz(tmp_path / "x.npz", lambda _: True))
    return str(error.value)


def test_claims_are_checked_against_the_file(tmp_path: Path):
    """A header may claim what would take all memory, before it is noticed that nothing follows."""
    assert "1000000000" in refused(tmp_path, entry((10**9, 4), b"\0" * 16))
    assert "-3" in refused(tmp_path, entry((-3,), b"\0" * 16))
    assert "claims" in refused(tmp_path, entry((10**7,), b"\0" * 4 * 10**7))  # 40 MB of zeros in 40 kB
    assert "unpickled" in refused(tmp_path, entry((1,), b"\0" * 16, descr="|O"))
    assert "Fortran" in refused(tmp_path, entry((2, 2), b"\0" * 16, fortran=True))
    assert "logits_0 2, logits_1 3" in refused(tmp_path, entry((2,), b"\0" * 8), entry((3,), b"\0" * 12))
    assert "None" in refused(tmp_path, entry((), b"\0" * 4))


def test_what_is_written_in_parts_numpy_and_we_read(tmp_path: Path):
    values = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    columns = {"id": (np.dtype("<U2"), ()), "logits": (values.dtype, (2,))}
    rows = {"id": [["a", "bb"], ["c", "d", "é"]], "logits": [values[:1], values[1:]]}
    write_npz(tmp_path / "x.npz", 5, columns, rows.__getitem__)
    with np.load(tmp_path / "x.npz") as found:
        assert found["id"].tolist() == ["a", "bb", "c", "d", "é"]
        assert (found["logits"] == values).all()
    ours = list(read_npz(tmp_path / "x.npz", lambda _: True))
    assert [row["id"] for row in ours] == ["a", "bb", "c", "d", "é"]
    assert (np.stack([row["logits"] for row in ours]) == values).all()
