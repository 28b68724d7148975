"""JSON of strangers: a file of a bounded size, and values of a bounded depth."""

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 50
MAX_VALUES = 1_000_000  # those that several places share count at each


def parse_json(content: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is no JSON, too long or too deep; one line.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    try:
        value = json.loads(content, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"more than {MAX_DEPTH} levels of nesting") from None
    except UnicodeDecodeError:
        raise ValueError("bytes that are not UTF-8") from None
    except ValueError as error:
        raise ValueError(str(error).partition(";")[0]) from None
    require_bounded(value)
    return value


def read_json(path: Path) -> Any:
    """Parse a file; its size is looked at first.

    Raises:
        ValueError: see ``parse_json``.
    """
    with path.open("rb") as file:
        return parse_json(file.read(MAX_BYTES + 1))


def _no_number(name: str) -> None:
    raise ValueError(f"{name}, which is no number of JSON")


def require_bounded(value: Any) -> None:
    """Refuse a value that is too deep, or would be too large when written out.

    Raises:
        ValueError: which of the two.
    """
    level, count = [value], 0
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for one in level:
            found = [*one.keys(), *one.values()] if isinstance(one, dict) else one
            if isinstance(found, list):
                count += len(found)
                if count > MAX_VALUES:
                    raise ValueError(f"more than {MAX_VALUES} values")
                inner += found
        level = inner
        if not level:
            return
    raise ValueError(f"more than {MAX_DEPTH} levels of nesting")
