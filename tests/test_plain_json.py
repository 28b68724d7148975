"""JSON, YAML and TOML from strangers are bounded in size, depth and what aliases make of them."""

from pathlib import Path

import pytest

from kdcache.data.taskfile import read_task_file
from kdcache.errors import ParamsError, shorten
from kdcache.plain_json import MAX_BYTES, parse_json
from kdcache.plain_yaml import parse_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 60 + "]" * 60, "NaN", "9" * 5000, "\ud800", " " * (MAX_BYTES + 1), "{"]
)
def test_json_out_of_bounds_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"\A.{3,200}\Z"):
        parse_json(text.encode("utf-8", "surrogatepass"))


def test_json_within_bounds_is_read():
    assert parse_json(b'{"a": [1, 2.5, null, "x"]}') == {"a": [1, 2.5, None, "x"]}
    assert parse_json("[" * 49 + "]" * 49)


@pytest.mark.parametrize(
    "text", [BOMB, "a: " + "[" * 5000, "&a [*a]", "a: " + "[" * 60 + "]" * 60, "- " * 5000]
)
def test_yaml_out_of_bounds_is_refused(text):
    with pytest.raises(ParamsError) as error:
        parse_yaml(text, "x.yaml")
    assert len(str(error.value)) < 300


def test_task_files_out_of_bounds_are_refused(tmp_path: Path):
    for name, text in {"a.yaml": BOMB, "b.toml": "a = " + "[" * 5000, "c.toml": f"a = {'9' * 5000}"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ParamsError) as error:
            read_task_file(tmp_path / name)
        assert len(str(error.value)) < 400, name


def test_values_in_messages_are_short_and_printable():
    wide = [["x" * 1000] * 1000] * 1000
    for value in (wide, {"a": wide}, "x" * 10**7, 10**300):
        assert len(shorten(value)) <= 60
    assert str(ParamsError("a\x1b[31m\u2028b\ud800")) == r"a\x1b[31m\u2028b\ud800"
    assert len(str(ParamsError("x" * 10**6))) < 3000
