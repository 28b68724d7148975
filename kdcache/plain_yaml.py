"""YAML of parameters and task files: what reads as text stays the text that was written."""

import re
from typing import Any

import yaml

from kdcache.errors import ParamsError, shorten
from kdcache.plain_json import MAX_DEPTH, require_bounded

MAX_TEXT = 1_000_000  # characters


class _Loader(yaml.SafeLoader):
    """YAML as people and DVC read it: 3e-3 is a number, and ``no``, ``off``, 010 and dates are text.

    Keys are text as written, whatever they look like, and none is there twice.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in seen:
                problem = f"the key {shorten(key.value)} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


_Loader.yaml_implicit_resolvers = {}  # not those of YAML 1.1
for _tag, _spelling, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"0|[-+]?[1-9][0-9]*", "-+0123456789"),
    ("float", r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_spelling})$"), list(_first))


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML; see ``_Loader`` for what is a number.

    Raises:
        ParamsError: it does not parse; names the line.
    """
    try:
        if len(text) > MAX_TEXT:
            raise ValueError(f"more than {MAX_TEXT} characters")
        value = yaml.load(text, Loader=_Loader)
        require_bounded(value)  # aliases make much of little
        return value
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it does not parse"
        raise ParamsError(f"{where}{line}: the text must be YAML, got an error: {problem}.") from None
    except RecursionError:
        raise ParamsError(
            f"{where}: the text must be YAML of at most {MAX_DEPTH} levels, got more."
        ) from None
    except (
        ValueError,
        AttributeError,
    ) as error:  # a number of thousands of digits, a tag on what it does not fit
        raise ParamsError(f"{where}: the text must be plain YAML, got an error: {error}.") from None
