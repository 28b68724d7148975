"""YAML of parameters and task files: what reads as text stays the text that was written."""

import re
from typing import Any

import yaml

from kdcache.errors import ParamsError, shorten
from kdcache.plain_json import MAX_DEPTH

MAX_TEXT = 1_000_000  # characters
MAX_EXPANDED = 100_000  # aliases expanded


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


def _count(root: Any, where: str) -> None:
    """Refuse what aliases make endless or huge before it is built."""
    sizes: dict[int, int] = {}

    def size(node: Any, above: tuple[int, ...] = ()) -> int:
        if id(node) in above:
            raise ParamsError(
                f"{where}:{node.start_mark.line + 1}: a value must not hold itself. Write it out."
            )
        if len(above) > MAX_DEPTH:
            raise RecursionError
        if id(node) not in sizes:
            children = node.value if isinstance(node.value, list) else []
            flat = [c for child in children for c in (child if isinstance(child, tuple) else (child,))]
            sizes[id(node)] = 1 + sum(size(child, (*above, id(node))) for child in flat)
        return sizes[id(node)]

    if root is not None and size(root) > MAX_EXPANDED:
        raise ParamsError(f"{where}: the text must hold at most {MAX_EXPANDED} values, got more. Shorten it.")


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML; see ``_Loader`` for what is a number.

    Raises:
        ParamsError: it does not parse; names the line.
    """
    try:
        if len(text) > MAX_TEXT:
            raise ValueError(f"more than {MAX_TEXT} characters")
        loader = _Loader(text)
        node = loader.get_single_node()
        _count(node, where)
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it does not parse"
        raise ParamsError(f"{where}{line}: the text must be YAML, got an error: {problem}.") from None
    except RecursionError:
        raise ParamsError(
            f"{where}: the text must be YAML of at most {MAX_DEPTH} levels, got more."
        ) from None
    except ParamsError:
        raise
    except (ValueError, AttributeError, LookupError) as error:  # a number of thousands of digits, a wrong tag
        raise ParamsError(f"{where}: the text must be plain YAML, got an error: {error}.") from None
