"""params.yaml → one checked dataclass per section.

A section's dataclass sits beside the function it configures. Ranges are written in the
annotation (``Annotated[float, Range(0, 1)]``), so that this module alone turns a bad value
into a sentence, and reports every bad key of a section at once.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml

from kdcache.errors import ParamsError, nearest

T = TypeVar("T")

SECTIONS = (
    "tasks", "threads", "paths",
    "prepare", "train_teacher", "cache_teacher", "student_backbone", "distill", "report",
)  # fmt: skip


@dataclass(frozen=True)
class Range:
    """The closed interval a number must lie in; ``above`` opens it at the low end."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        low_ok = value > self.low if self.above else value >= self.low
        return low_ok and value <= self.high

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"between {self.low:g} and {self.high:g}"
        return f"{'>' if self.above else '>='} {self.low:g}"


Count = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(0, above=True)]
NonNegativeFloat = Annotated[float, Range(0)]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``3e-3`` as a string; DVC, and people, read it as a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_params(path: str | Path = "params.yaml", overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read params.yaml and apply ``section.key=value`` overrides.

    Args:
        path: the YAML file.
        overrides: strings such as ``distill.lr=1e-3``; values are YAML.

    Returns:
        Nested plain dicts, sections not yet checked beyond their names.

    Raises:
        ParamsError: no file, broken YAML, an unknown section, an override of no known key.
    """
    path = Path(path)
    if not path.is_file():
        raise ParamsError(
            f"{path}: the parameters file must exist, got nothing there. "
            "Run kdcache in a project folder (one that holds params.yaml and dvc.yaml)."
        )
    raw = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: the file must be a mapping of sections, got {raw!r}.")
    for name in raw:
        if name not in SECTIONS:
            raise ParamsError(
                f"{path}: a section must be a known one, got {name!r}. {nearest(str(name), SECTIONS)}"
            )
    for override in overrides:
        _apply(raw, override)
    return raw


def build(cls: type[T], values: Any, where: str) -> T:
    """Build a dataclass from a mapping, checking every key before complaining.

    Args:
        cls: the dataclass.
        values: the mapping, as YAML gave it.
        where: dotted name of the section, for messages.

    Returns:
        An instance of ``cls``.

    Raises:
        ParamsError: one line per bad key: unknown, missing, wrong type or out of range.
    """
    problems: list[str] = []
    result = _convert(cls, values, where, problems)
    if problems:
        raise ParamsError("\n".join(problems))
    return typing.cast(T, result)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML whose numbers people write: 3e-3 is one.

    Raises:
        ParamsError: it does not parse; names the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it does not parse"
        raise ParamsError(f"{where}{line}: the text must be YAML, got an error: {problem}.") from None


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ParamsError(f"--set {override}: it must be section.key=value, got no '='.")
    *parents, last = key.strip().split(".")
    place = raw
    for depth, part in enumerate(parents):
        if not isinstance(place.get(part), dict):
            known = [name for name, value in place.items() if isinstance(value, dict)]
            raise ParamsError(
                f"--set {override}: {'.'.join(parents[: depth + 1])} must be a section of "
                f"params.yaml, got no such section. {nearest(part, known)}"
            )
        place = place[part]
    if not parents and last not in SECTIONS:
        raise ParamsError(
            f"--set {override}: {last} must be a known key, got none. {nearest(last, SECTIONS)}"
        )
    place[last] = parse_yaml(text, f"--set {override}")


def _convert(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Return ``value`` as ``kind``; on failure append a line to ``problems``."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        number = _convert(args[0], value, where, problems)
        for limit in args[1:]:
            if isinstance(number, (int, float)) and number not in limit:
                problems.append(f"{where}: it must be {limit}, got {number!r}.")
        return number
    if origin is Literal:
        if value not in args:
            choices = ", ".join(map(str, args))
            problems.append(f"{where}: it must be one of {choices}, got {value!r}.")
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where, problems)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            problems.append(f"{where}: it must be a list, got {value!r}.")
            return None
        return tuple(_convert(args[0], v, f"{where}[{i}]", problems) for i, v in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            problems.append(f"{where}: it must be a mapping, got {value!r}.")
            return None
        return {k: _convert(args[1], v, f"{where}.{k}", problems) for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, value, where, problems)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        problems.append(f"{where}: it must be {names[kind]}, got {value!r}.")
        return None
    if kind is float and not math.isfinite(value):
        problems.append(f"{where}: it must be a finite number, got {value!r}.")
    return value


def _convert_union(args: tuple[Any, ...], value: Any, where: str, problems: list[str]) -> Any:
    if value is None and type(None) in args:
        return None
    options = [kind for kind in args if kind is not type(None)]
    if isinstance(value, dict):  # only one of the alternatives can be meant: its own problems say more
        options = [kind for kind in options if dataclasses.is_dataclass(kind)] or options
    attempts: list[list[str]] = []
    for kind in options:
        attempt: list[str] = []
        result = _convert(kind, value, where, attempt)
        if not attempt:
            return result
        attempts.append(attempt)
    if len(attempts) == 1:
        problems.extend(attempts[0])
    else:  # a value that fits none: say what each alternative asked for
        wants = [a[0].split(" must be ", 1)[1].rsplit(", got ", 1)[0] for a in attempts]
        problems.append(f"{where}: it must be {' or '.join(wants)}, got {value!r}.")
    return None


def _convert_dataclass(cls: Any, value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        problems.append(f"{where}: it must be a mapping of parameters, got {value!r}.")
        return None
    kinds = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    before = len(problems)
    for key in value:
        if key not in fields:
            problems.append(
                f"{where}.{key}: the key must be a known parameter, got {key!r}. {nearest(str(key), fields)}"
            )
    converted = {}
    for name, field in fields.items():
        if name in value:
            converted[name] = _convert(kinds[name], value[name], f"{where}.{name}", problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{where}.{name}: the parameter must be set, got nothing.")
    return cls(**converted) if len(problems) == before else None
