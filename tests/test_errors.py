"""The exception tree is what its docstring draws."""

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

import kdcache.errors as errors


def test_tree_is_as_drawn():
    drawn = errors.__doc__ or ""
    classes = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.KdcacheError)]
    assert len(classes) == 10
    for cls in classes:
        assert cls.__name__ in drawn
    assert issubclass(errors.CacheStale, errors.CacheError)
    assert issubclass(errors.ParamsError, ValueError)
    assert issubclass(errors.ShapeError, ValueError)


def test_nearest_lists_all_when_nothing_is_close():
    assert errors.nearest("zzz", ["kl", "gram"]) == "Known: gram, kl."
    assert errors.nearest("grm", ["kl", "gram"]) == "Did you mean gram?"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # of tokenizers
    ],
    ids=["python", "arrow", "safetensors", "tokenizers"],
)
def test_a_full_disk_is_one_line_with_the_path_whoever_met_it(error):
    found = errors.system_error(error, Path("runs") / "x")
    assert found.errno == errno.ENOSPC
    line = errors.system_line(found)
    assert line.startswith("runs/x: ")
    assert "No space left on device" in line
    assert len(line.splitlines()) == 1


def test_the_line_of_a_path_of_any_length_is_short():
    assert len(errors.system_line(OSError(errno.ENAMETOOLONG, "File name too long", "x" * 70000))) < 3000


def test_an_error_of_the_system_keeps_its_path_and_others_stay_what_they_are():
    assert errors.system_error(PermissionError(errno.EACCES, "closed", "a"), "b").filename == "a"
    failed = RuntimeError("[enforce fail at x.cc:1] . PytorchStreamWriter failed writing file data/0")
    assert errors.system_error(failed, "b").filename == "b"
    assert errors.system_error(ValueError("12")) is None
    assert errors.system_error(errors.DataError("got: [errno 28]")) is None


@pytest.mark.parametrize(("text", "shown"), [
    ("a\tb\nc → ß 😀", "a\tb\nc → ß 😀"), ("\x1b[2Ja", "\\x1b[2Ja"), ("a\x00\r\x9b", "a\\x00\\r\\x9b"),
    ("\u202eabc\u2066", "\\u202eabc\\u2066"), ("\ud800", "\\ud800"),
])  # fmt: skip
def test_a_terminal_only_shows_what_it_is_told(text, shown):
    assert errors.printable(text) == shown
