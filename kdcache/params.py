"""Mappings of YAML, TOML and JSON → checked dataclasses: params.yaml, task files, task.json, student.json.

A section's dataclass sits beside the function it configures, and its annotations say what is allowed.
pydantic checks them; this module turns what it finds into one line per key, and reports all keys at once.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from kdcache.errors import ParamsError, nearest, shorten
from kdcache.plain_yaml import parse_yaml

T = TypeVar("T")

SECTIONS = (
    "tasks", "fine_tune", "threads", "engine", "workers", "gpus", "paths",
    "prepare", "train_teacher", "cache_teacher", "import_teacher", "student_backbone", "distill", "report",
)  # fmt: skip


# Name of a parameter that is gone, with its section where another section has one of that name → why.
GONE = dict.fromkeys(
    ("probe_lr", "probe_epochs", "head_start_lr", "head_start_epochs"),
    "the linear probe is solved now, so it has no learning rate and no epochs",
) | dict.fromkeys(
    (f"student_backbone.{name}" for name in
     ("states", "text", "column", "epochs", "lr", "batch_size", "position_shift", "seed")),
    "healing was removed, since a cut that heads can read needs none",
)  # fmt: skip
# (Parameter, old value) → what to write today.
RENAMED_VALUES = {
    ("targets", "plain"): "all_rows",
    ("source", "sample"): "superglue, with path: sample",
}

# pydantic's name of a wrong type → the words of a message.
TYPE_WORDS = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "string_type": "text", "bool_type": "true or false", "finite_number": "a finite number",
    "tuple_type": "a list", "list_type": "a list", "dict_type": "a mapping",
    "dataclass_type": "a mapping of parameters", "none_required": "null",
}  # fmt: skip


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
            return f"between {_shown(self.low)} and {_shown(self.high)}"
        return f"{'>' if self.above else '>='} {self.low:g}"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Tell pydantic to check the interval after the type."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: float) -> float:
        if value not in self:
            raise PydanticCustomError("range", "{wanted}", {"wanted": str(self)})
        return value


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


MAX_SEED = 2**31 - 1  # all random generators take it, and that of each member of an ensemble after it

Count = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, MAX_SEED)]
PositiveFloat = Annotated[float, Range(0, above=True)]
NonNegativeFloat = Annotated[float, Range(0)]


def read_params(path: str | Path = "params.yaml", overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read params.yaml and apply ``section.key=value`` overrides.

    Args:
        path: the YAML file.
        overrides: strings such as ``distill.lr=1e-3``; values are YAML.

    Returns:
        Nested plain dicts, sections not yet checked beyond their names.

    Raises:
        ParamsError: no file, broken YAML, an unknown section, an override of an unknown section.
    """
    path = Path(path)
    if not path.is_file():
        raise ParamsError(
            f"{path}: the parameters file must exist, got nothing there. "
            "Run kdcache in a project folder (one that holds params.yaml and dvc.yaml)."
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ParamsError(
            f"{path}: the file must be text in UTF-8, got byte {byte:#04x}. Save it anew."
        ) from None
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: the file must be a mapping of sections, got {shorten(raw)}.")
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
    try:
        # As JSON: a list may be a tuple there, and yet no text for a number.
        text = json.dumps(values, default=str)
        return _adapter(cls).validate_json(text, strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = error.errors(include_url=False)
    raise ParamsError("\n".join(_lines(cls, json.loads(text), where, problems)))


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


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    """pydantic's view of a dataclass that refuses unknown keys and numbers that are not finite."""
    for kind in _dataclasses(cls):
        kind.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    return TypeAdapter(cls)


def _dataclasses(kind: Any) -> Iterator[Any]:
    """The dataclasses within a type, those of their fields included."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        yield kind
        for hint in typing.get_type_hints(kind, include_extras=True).values():
            yield from _dataclasses(hint)
    for inner in typing.get_args(kind):
        yield from _dataclasses(inner)


@dataclass(frozen=True)
class _Place:
    """Where pydantic found something.

    Args:
        path: keys and indices from the root.
        value: what stands there; None where nothing does.
        union: whether what was found is of one alternative of a union as a whole.
        within: paths of the unions that lie above.
    """

    path: tuple[str | int, ...]
    value: Any
    union: bool
    within: set[tuple[str | int, ...]]


def _place(values: Any, problem: Mapping[str, Any]) -> _Place:
    """Follow pydantic's location through the value: it also names the alternatives of unions."""
    path: tuple[str | int, ...] = ()
    within, union = set(), False
    for depth, part in enumerate(problem["loc"], start=1):
        inside = part in values if isinstance(values, dict) else isinstance(part, int)
        if not inside and not (depth == len(problem["loc"]) and problem["type"] == "missing"):
            union = True
            continue
        if union:
            within.add(path)
        path, union = (*path, part), False
        values = values[part] if inside else None
    return _Place(path, values, union, within)


def _lines(cls: type, values: Any, where: str, problems: Iterable[Any]) -> list[str]:
    """Say what is wrong, a line for each key; the alternatives of a union are told together."""
    lines: list[str] = []
    places = [(problem, _place(values, problem)) for problem in problems]
    told = {path for _, place in places for path in place.within}  # a mapping's own problems say more
    wanted: dict[str, tuple[Any, list[str]]] = {}
    gone: dict[str, list[str]] = {}
    for problem, place in places:
        kind, path, value = problem["type"], place.path, place.value
        key = where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
        if kind == "value_error":  # raised by a dataclass itself
            lines.append(str(problem["ctx"]["error"]))
        elif kind == "missing":
            lines.append(f"{key}: the parameter must be set, got nothing.")
        elif kind == "unexpected_keyword_argument" and (why := GONE.get(key, GONE.get(str(path[-1])))):
            gone.setdefault(why, []).append(key)
        elif kind == "unexpected_keyword_argument":
            hint = nearest(str(path[-1]), _known(cls, path[:-1]))
            lines.append(f"{key}: the key must be a known parameter, got {path[-1]!r}. {hint}")
        elif renamed := RENAMED_VALUES.get((key.rpartition(".")[2], str(value))):
            lines.append(f"{key}: {value} is now called {renamed}. Change it.")
        elif not place.union or (path not in told and kind != "dataclass_type"):
            wanted.setdefault(key, (value, []))[1].append(_wanted(problem))
    for key, (value, kinds) in wanted.items():
        lines.append(f"{key}: it must be {' or '.join(kinds)}, got {shorten(value)}.")
    for why, keys in gone.items():
        told_as = ("parameters are", "them") if len(keys) > 1 else ("parameter is", "it")
        lines.append(f"{', '.join(keys)}: the {told_as[0]} gone: {why}. Remove {told_as[1]}.")
    return lines


def _wanted(problem: Mapping[str, Any]) -> str:
    """What a value must be, in words."""
    if problem["type"] == "literal_error":
        return "one of " + problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
    return TYPE_WORDS.get(problem["type"], problem["msg"])


def _known(cls: type, path: Sequence[str | int]) -> list[str]:
    """The fields of the dataclass at a place within another."""
    kinds: list[Any] = [cls]
    for part in path:
        hints = [typing.get_type_hints(kind).get(str(part)) for kind in kinds]
        # A key of a dict, or an index of a list, leads no further.
        kinds = [inner for hint in hints for inner in _dataclasses(hint)][:1] or kinds
    return [field.name for kind in kinds for field in dataclasses.fields(kind)]
