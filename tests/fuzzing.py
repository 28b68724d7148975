"""Mutations of small files: the same integer gives the same bytes."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, 0, -1, -5, 1, 3, 255, 10**9, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, "", " ", "a", "x" * 3000,
    "\ud800", "\0", "../../out", "/etc/passwd", "(a+)+$", "^(?:.*a){30}$", "{a}{b}", "[]", "LORA", "cls", [],
    {}, [[]], [None], [1, "a"],
    {"a": 1}, ["", ""], float("nan"), float("inf"), {"": {"": []}}, ["x"] * 2000,
)  # fmt: skip
TOKENS = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b'"', b"'", b",", b";", b"\t", b"{", b"}",
    b"[" * 2000, b'{"a":' * 2000, b"&a [*a,*a]", b"\xe2\x80\xa8", b"\\ud800", b"NaN", b"1e999", b"-1",
    b"9" * 5000, b"null", b"\x80\x80\x80\x80\x10", b"\xff\xff\xff\xff\x0f", b"a" * 70000, b"#", b"<<", b"=",
    b"*", b"\\", b"\x1b[31m",
)  # fmt: skip


def nest(depth: int) -> Any:
    """Lists within lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def mutate_bytes(data: bytes, rng: random.Random, low: int = 0) -> bytes:
    """Flip, cut, repeat, insert or drop some bytes from position ``low`` on."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(low, len(out)) if len(out) > low else len(out)
        length = rng.choice((1, 1, 2, 4, 16, 64))
        match rng.randrange(6):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                out[at : at + length] = b""
            case 2:
                out[at:at] = out[at : at + length]
            case 3:
                out[at:at] = rng.choice(TOKENS)
            case 4:
                out[at : at + length] = rng.randbytes(length)
            case 5 if len(out) > low:
                out[at] ^= 1 << rng.randrange(8)
    return bytes(out if rng.random() > 0.05 else out[: rng.randrange(len(out) + 1)])


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Replace, drop, rename or add parts of a value of JSON's types."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []

        def walk(node: Any, places: list[tuple[Any, Any]] = places) -> None:
            keys = (
                list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
            )
            for key in keys:
                places.append((node, key))
                walk(node[key])

        walk(value)
        if not places:
            return rng.choice(HOSTILE)
        node, key = rng.choice(places)
        hostile = nest(rng.choice((20, 3000))) if rng.random() < 0.03 else copy.deepcopy(rng.choice(HOSTILE))
        match rng.randrange(6):
            case 0 if isinstance(node, dict):
                del node[key]
            case 1 if isinstance(node, dict):
                node[rng.choice(("", "a", "../x", "r", "\ud800", str(key).upper()))] = node.pop(key)
            case 2 if isinstance(node, list):
                node.insert(key, hostile)
            case 3 if isinstance(node[key], (int, float)):
                node[key] *= rng.choice((-1, 2, 10, 10**6, 10**9))
            case _:
                node[key] = hostile
    return value if rng.random() > 0.02 else rng.choice(HOSTILE)


def mutate_json(data: bytes, rng: random.Random, dump: Callable[[Any], str] = json.dumps) -> bytes:
    """Change a value within a JSON file, or some of its bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    try:
        return dump(mutate_value(json.loads(data), rng)).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b'{"a":' * 3000
