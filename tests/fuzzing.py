"""Mutations of small files, where the same integer gives the same bytes, and processes that read them."""

import copy
import json
import os
import random
import resource
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from forks import fork

SECONDS, MEMORY = 10, 2**30  # that reading a mutation may take
BATCH = 1000  # mutations that one process reads, so that nothing piles up

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


def read_apart(attempt: Callable[[int], str], numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield what ``attempt`` says of each number, made in forks of this process, a batch in each.

    A fork may take 1 GiB of memory beyond what this process holds. One that dies, or that its own
    alarm does not wake, costs one number: the next fork goes on behind it.
    """
    left = list(numbers)
    while left:
        pid, pipe = _fork(attempt, left[:BATCH])
        batch, died = left[:BATCH], ""
        with os.fdopen(pipe, "rb", buffering=0) as file:
            held = b""
            while batch and not died:
                if not select.select([file], [], [], 3 * SECONDS)[0]:
                    died = "a hang that no signal ends"
                elif not (part := file.read(65536)):
                    died = "the end of the process"
                else:
                    *lines, held = (held + part).split(b"\n")
                    for line in lines:
                        yield batch.pop(0), json.loads(line)
        os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if died:
            yield batch.pop(0), f"{died} (exit code {code})"
        left = batch + left[BATCH:]


def _fork(attempt: Callable[[int], str], numbers: Sequence[int]) -> tuple[int, int]:
    pid, pipe = fork()
    if pid:
        return pid, pipe
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        signal.signal(signal.SIGALRM, _too_long)
        for number in numbers:
            signal.alarm(SECONDS)
            said = attempt(number)
            signal.alarm(0)
            os.write(pipe, json.dumps(said).encode() + b"\n")
        signal.pause()  # until all has been read
    finally:
        os._exit(70)


def _too_long(*_: object) -> None:
    raise TimeoutError("a hang")
