"""YAML: scalars that only look like something else stay the text that was written."""

import math
import time

import pytest
import yaml

from kdcache.errors import ParamsError
from kdcache.plain_yaml import parse_yaml


@pytest.mark.parametrize(
    "text",
    ["no", "yes", "No", "on", "off", "y", "n", "007", "010", "-01", "2020-01-01", "2020-01-01 10:00:00",
     "1:30", "0x1F", "0o17", "0b11", "1_000", ".inf", ".nan", "1.2.3", "="],
)  # fmt: skip
def test_text_stays_text(text):
    assert parse_yaml(f"a: [{text}, x]", "x") == {"a": [text, "x"]}
    assert parse_yaml(text, "x") == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("0", 0), ("-12", -12), ("+3", 3), ("1.5", 1.5), (".5", 0.5), ("1.", 1.0), ("3e-3", 3e-3),
        ("1E5", 1e5), ("-2.5e+3", -2500.0), ("true", True), ("False", False), ("null", None), ("~", None),
        ("", None), ('"1"', "1"), ("'true'", "true"),
    ],
)  # fmt: skip
def test_numbers_truths_and_nothing_are_read(text, value):
    found = parse_yaml(f"a: {text}", "x")["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("key", ["1", "0.0", "1.50", "off", "true", "2020-01-01", "007", "null", "1e3"])
def test_keys_are_text_as_written(key):
    assert parse_yaml(f"a: {{{key}: x}}", "x") == {"a": {key: "x"}}


@pytest.mark.parametrize(
    "text", ['a: {1: a, "1": b}', "a: 1\na: 2\n", "{b: {c: 1, d: 2, c: 3}}", "{? [1, 2] : x}"]
)
def test_keys_that_are_there_twice_or_no_text_are_refused(text):
    with pytest.raises(ParamsError, match=r"^x:\d+: "):
        parse_yaml(text, "x")


def test_anchors_and_merges_are_read():
    assert parse_yaml("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}", "x") == {
        "a": {"k": 1, "l": 2}, "b": {"k": 1, "l": 3},
    }  # fmt: skip


def test_what_is_dumped_is_read_back():
    value = {"a": [1, 2.5, True, None, "no", "007", "2020-01-01", 1e-6], "off": {"1": math.pi}}
    assert parse_yaml(yaml.safe_dump(value), "x") == value


def bomb(levels: int, width: int = 9) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * width)}]" for k in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(9), bomb(30, 2), "&a [*a]", "a: &a {b: *a}", "a: &a [[[*a]]]", "[" * 3000, "{a: " * 3000,
        "- " * 3000, "a: \x00", "a: \x1b", "!!python/object:os.system x", "a: !!binary x",
        "a: !!bool maybe", "a: !!int ''",
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_hostile_text_is_one_short_line_at_once(text):
    start = time.perf_counter()
    with pytest.raises(ParamsError) as error:
        parse_yaml(text, "params.yaml")
    assert time.perf_counter() - start < 20
    assert len(str(error.value)) < 300
    assert len(str(error.value).splitlines()) == 1


def test_an_alias_that_is_no_bomb_is_read():
    assert parse_yaml("a: &a {b: 1}\nc: {<<: *a, d: *a}", "x") == {
        "a": {"b": 1},
        "c": {"b": 1, "d": {"b": 1}},
    }
