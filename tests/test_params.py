"""params.yaml: every bad key at once, in sentences; numbers as DVC reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from kdcache.errors import ParamsError
from kdcache.params import MAX_SEED, Count, PositiveFloat, Range, Seed, build, read_params


@dataclass(frozen=True)
class Inner:
    name: str
    weight: PositiveFloat = 1.0


@dataclass(frozen=True)
class Outer:
    epochs: Count
    lr: PositiveFloat
    mode: Literal["a", "b"]
    layers: Count | Literal["all"]
    fraction: Annotated[float, Range(0, 0.5)]
    inner: Inner | None
    seeds: tuple[int, ...]
    many: dict[str, Inner]


GOOD = {
    "epochs": 3, "lr": 0.1, "mode": "a", "layers": "all", "fraction": 0.5,
    "inner": None, "seeds": [0, 1], "many": {"x": {"name": "n"}},
}  # fmt: skip


def test_good_values_become_the_dataclass():
    built = build(Outer, {**GOOD, "lr": 1}, "outer")
    assert built == Outer(3, 1.0, "a", "all", 0.5, None, (0, 1), {"x": Inner("n")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": "three"}, "outer.epochs: it must be a whole number, got 'three'."),
        ({"epochs": True}, "outer.epochs: it must be a whole number, got True."),
        ({"epochs": 0}, "outer.epochs: it must be >= 1, got 0."),
        ({"lr": 0.0}, "outer.lr: it must be > 0, got 0.0."),
        ({"lr": float("nan")}, "outer.lr: it must be a finite number, got nan."),
        ({"mode": "c"}, "outer.mode: it must be one of a, b, got 'c'."),
        ({"layers": "some"}, "outer.layers: it must be a whole number or one of all, got 'some'."),
        ({"fraction": 0.6}, "outer.fraction: it must be between 0 and 0.5, got 0.6."),
        ({"inner": {"weight": 1.0}}, "outer.inner.name: the parameter must be set, got nothing."),
        ({"seeds": 3}, "outer.seeds: it must be a list, got 3."),
        ({"seeds": [0, "b"]}, "outer.seeds[1]: it must be a whole number, got 'b'."),
        ({"many": {"x": []}}, "outer.many.x: it must be a mapping of parameters, got []."),
        (
            {"epoch": 3},
            "outer.epoch: the key must be a known parameter, got 'epoch'. Did you mean epochs?",
        ),
    ],
)
def test_bad_value_is_named_with_its_constraint(change, message):
    with pytest.raises(ParamsError) as caught:
        build(Outer, {**GOOD, **change}, "outer")
    assert message in str(caught.value).splitlines()


def test_every_bad_key_is_reported_at_once():
    with pytest.raises(ParamsError) as caught:
        build(Outer, {**GOOD, "epochs": 0, "lr": -1, "typo": 1}, "outer")
    assert len(str(caught.value).splitlines()) == 3


def test_scientific_notation_is_a_number(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("distill: {a: 3e-3, b: 1E2, c: -2e+1, d: 0.5, e: e3}\n")
    values = read_params(path)["distill"]
    assert values == {"a": 0.003, "b": 100.0, "c": -20.0, "d": 0.5, "e": "e3"}


def test_override_sets_a_nested_value(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("distill: {lr: 1, arms: {ce: {}}}\ntasks: [wic]\n")
    raw = read_params(path, ["distill.lr=1e-4", "distill.arms.ce.ce_weight=2", "tasks=[cb]"])
    assert raw == {"distill": {"lr": 1e-4, "arms": {"ce": {"ce_weight": 2}}}, "tasks": ["cb"]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.lr", "--set distill.lr: it must be section.key=value, got no '='."),
        (
            "distil.lr=1",
            "--set distil.lr=1: distil must be a section of params.yaml, got no such section. "
            "Did you mean distill?",
        ),
        ("thread=1", "--set thread=1: thread must be a known key, got none. Did you mean threads?"),
    ],
)
def test_bad_override_is_one_line(tmp_path: Path, override, message):
    path = tmp_path / "params.yaml"
    path.write_text("distill: {lr: 1}\n")
    with pytest.raises(ParamsError) as caught:
        read_params(path, [override])
    assert str(caught.value) == message


def test_missing_file_says_where_to_run(tmp_path: Path):
    with pytest.raises(ParamsError, match="Run kdcache in a project folder"):
        read_params(tmp_path / "params.yaml")


def test_unknown_section_is_refused(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("distil: {}\n")
    with pytest.raises(ParamsError, match=r"got 'distil'. Did you mean distill\?"):
        read_params(path)


def test_broken_yaml_names_the_line(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("tasks: [wic]\ndistill: {lr: 1\n")
    with pytest.raises(ParamsError, match=r"params.yaml:3: the text must be YAML"):
        read_params(path)


@pytest.mark.parametrize("content", [b"\xff\xfea\x00", b"\x80\x81", "tasks: [größe]".encode("latin-1")])
def test_a_file_that_is_no_text_is_one_line(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ParamsError, match="UTF-8") as error:
        read_params(path)
    assert len(str(error.value).splitlines()) == 1
    path.write_bytes(b"\xef\xbb\xbftasks: [a]")  # a byte-order mark
    assert read_params(path) == {"tasks": ["a"]}


@dataclass(frozen=True)
class Seeded:
    seed: Seed


def test_a_seed_is_one_that_every_generator_takes():
    assert build(Seeded, {"seed": MAX_SEED}, "x").seed == MAX_SEED
    for seed in (MAX_SEED + 1, 2**32, 10**30, -1):
        with pytest.raises(ParamsError, match=r"^x.seed: .*2147483647"):
            build(Seeded, {"seed": seed}, "x")
