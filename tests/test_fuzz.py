"""What strangers hand over, mutated: it is read, or refused in one line; never a traceback, hang or bomb.

Each file is mutated 60 times by default and 10,000 times with ``-m slow``. The number of a mutation is its
seed: ``mutations(target, [number])`` in a shell repeats one.
"""

import hashlib
import io
import json
import os
import random
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import rows as cache_rows
from builders import write as write_small_cache
from fuzzing import mutate_bytes, mutate_json, read_apart
from peft import PeftType
from served import make_home

from kdcache.cache.manifest import MANIFEST
from kdcache.cache.read_outputs import read_outputs
from kdcache.cache.reader import load_cache
from kdcache.cache.verify import verify_cache
from kdcache.data.examples import read_examples
from kdcache.data.parsers import Layout
from kdcache.data.readers import read_rows
from kdcache.data.taskfile import read_task_file
from kdcache.digests import value_digest
from kdcache.encoder.adapter_config import read_adapter_config
from kdcache.encoder.adapters import load_trained
from kdcache.encoder.weights import read_weights
from kdcache.errors import KdcacheError, printable, system_line
from kdcache.serve.pool import load_student
from kdcache.students.about import read_about

MESSAGE = 8000  # characters of an error's text
Target = tuple[bytes, Callable[[bytes, random.Random], bytes], Callable[[bytes], None]]


def mutations(target: Target, numbers: Sequence[int]) -> Counter[str]:
    """Read each mutation; count those that are read and those refused, and fail at all others."""
    data, mutate, read = target
    read(data)

    def attempt(number: int) -> str:
        try:
            read(mutate(data, random.Random(number)))
        except (KdcacheError, OSError) as error:
            text = system_line(error) if isinstance(error, OSError) else str(error)
            fair = len(text) <= MESSAGE and (printable(text) == text or isinstance(error, OSError))
            return "refused" if fair else f"a message of {len(text)} characters: {text[:200]!r}"
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)[-5:]
            places = " ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
            return f"{type(error).__name__} at {places}: {str(error)[:150]}"
        return "read"

    counts: Counter[str] = Counter()
    wrong: dict[str, list[int]] = {}
    for number, said in read_apart(attempt, numbers):
        if said in ("read", "refused"):
            counts[said] += 1
        else:
            wrong.setdefault(said, []).append(number)
    if wrong:
        pytest.fail("\n".join(f"{len(n)} of {n[:5]}: {what}" for what, n in sorted(wrong.items())))
    return counts


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def manifest(home: Path, _: Path) -> Target:
    folder = home / "wic"
    write_small_cache(folder, home)

    def sealed(data: bytes, rng: random.Random) -> bytes:
        """A mutation under a digest of its own, in canonical form where that can be had."""
        content = mutate_json(data, rng)
        try:
            body = json.loads(content)
            body.pop("digest", None)
            body |= {"digest": value_digest(body)}
            return (json.dumps(body, indent=2, sort_keys=True) + "\n").encode()
        except (ValueError, TypeError, AttributeError, RecursionError):
            return content

    def read(content: bytes) -> None:
        put(folder / MANIFEST, content)
        for check in verify_cache(folder):
            assert len(check.problem) < MESSAGE
        assert len(load_cache(folder, "train").rows)

    return (folder / MANIFEST).read_bytes(), sealed, read


def footer(home: Path, _: Path) -> Target:
    folder = home / "wic"
    write_small_cache(folder, home, cache_rows(20))
    body = json.loads((folder / MANIFEST).read_bytes())
    path = folder / "train.parquet"
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")

    def mutate(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return mutate_bytes(data, rng)
        inner = mutate_bytes(data[start:-8], rng)
        return data[:start] + inner + len(inner).to_bytes(4, "little") + b"PAR1"

    def read(content: bytes) -> None:
        put(path, content)
        entry = body["files"]["train.parquet"] | {
            "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()
        }  # fmt: skip
        claimed = {k: v for k, v in body.items() if k != "digest"} | {"files": {"train.parquet": entry}}
        text = json.dumps(claimed | {"digest": value_digest(claimed)}, indent=2, sort_keys=True)
        (folder / MANIFEST).write_text(text + "\n")
        sound = not any(check.problem for check in verify_cache(folder))
        try:
            assert len(load_cache(folder, "train").rows) == 20
        except KdcacheError:
            assert not sound
        raised = []
        for reader in (
            lambda: list(read_rows(path, Layout(), [], None)),
            lambda: read_outputs(path, ("a", "b")),
        ):
            try:
                reader()
            except KdcacheError as error:
                raised.append(error)
        if raised:
            raise raised[0]

    return data, mutate, read


def student(name: str, file: str) -> Callable[[Path, Path], Target]:
    def target(home: Path, model: Path) -> Target:
        from served import WIC

        make_home(home, model, {name: (WIC, name, 0 if name == "lora" else 4)})
        path, base = home / name / file, home / "backbone"
        weights = read_weights(home / name / "adapter_model.safetensors")
        kind = PeftType.LORA if name == "lora" else PeftType.PREFIX_TUNING
        ids = torch.tensor([[2, 5, 3]])
        tries: Counter[str] = Counter()

        def read(content: bytes) -> None:
            """Load a model and run it; one in fifty of those whose file says what another's said."""
            put(path, content)
            about = read_about(home / name)
            config = read_adapter_config(home / name, kind, weights, ["classifier"])
            said = repr((about, sorted(config.to_dict().items(), key=str)))
            tries[said] += 1
            if tries[said] % 50 != 1:
                return
            if file == "student.json":
                load_student(name).predict(["a river"], ["the bank"])
            else:
                model = load_trained(home / name, 2, "cls", kind, base)
                assert model(ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()

        return path.read_bytes(), mutate_json, read

    return target


TOML = b"""
text = "{title}. {body}"
label = "label"
labels = ["no", "yes"]
id = "id"
group = "group"
metrics = ["accuracy"]
required = ["title"]
holdout = {fraction = 0.2, seed = 1}
[splits]
train = "train.csv"
[read]
encoding = "utf-8"
delimiter = ","
"""
YAML = b"""
text: "{title}. {body}"
label: label
labels: &names ["no", "yes"]
id: id
holdout: {fraction: 0.2, seed: 1}
splits: {train: train.csv}
read: {encoding: utf-8}
"""
PATTERN = b"""
text = "text"
labels = ["no", "yes"]
holdout = {fraction = 0.2}
splits = {train = "lines.txt"}
read = {pattern = "{label} {text}"}
"""
CSV = b"id,group,title,body,label\n" + b"".join(
    b'%d,g%d,"a ""title"", %d",body %d,%s\n' % (i, i % 15, i, i, (b"no", b"yes")[i % 2]) for i in range(30)
)


def task_file(ending: str, data: bytes) -> Callable[[Path, Path], Target]:
    def target(home: Path, _: Path) -> Target:
        put(home / "train.csv", CSV)
        put(
            home / "lines.txt",
            b"".join(b"%s %d %s\n" % ((b"no", b"yes")[i % 2], i, b"a " * 400) for i in range(30)),
        )
        path = home / f"own.{ending}"

        def mutate(data: bytes, rng: random.Random) -> bytes:
            if data != PATTERN or rng.random() < 0.2:
                return mutate_bytes(data, rng)
            pattern = mutate_bytes(b"{label} {text}", rng).decode("latin-1")
            return data.replace(b'"{label} {text}"', json.dumps(pattern).encode())

        def read(content: bytes) -> None:
            file = read_task_file(put(path, content))
            read_examples("own", file, home)

        return data, mutate, read

    return target


def rows_of(ending: str, data: bytes) -> Callable[[Path, Path], Target]:
    def target(home: Path, _: Path) -> Target:
        file = read_task_file(
            put(home / "own.toml", TOML.replace(b"train.csv", b"train.%s" % ending.encode()))
        )
        path = home / f"train.{ending}"

        def mutate(data: bytes, rng: random.Random) -> bytes:
            if ending == "csv" or rng.random() < 0.3:
                return mutate_bytes(data, rng)
            lines = data.splitlines()
            at = rng.randrange(len(lines))
            lines[at] = mutate_json(lines[at], rng)
            return b"\n".join(lines)

        def read(content: bytes) -> None:
            read_examples("own", file, put(path, content).parent)

        return data, mutate, read

    return target


def outputs(ending: str, data: bytes) -> Callable[[Path, Path], Target]:
    def target(home: Path, _: Path) -> Target:
        def mutate(data: bytes, rng: random.Random) -> bytes:
            if ending != "jsonl" or rng.random() < 0.3:
                return mutate_bytes(data, rng)
            lines = data.splitlines()
            at = rng.randrange(len(lines))
            lines[at] = mutate_json(lines[at], rng)
            return b"\n".join(lines)

        path = home / f"teacher.{ending}"
        return data, mutate, lambda content: void(read_outputs(put(path, content), ("no", "yes")))

    return target


def void(_: Any) -> None: ...


def npz() -> bytes:
    buffer = io.BytesIO()
    values = np.linspace(-1, 1, 20, dtype=np.float32).reshape(10, 2)
    np.savez(buffer, example_id=np.array([f"train-{i}" for i in range(10)]), logits=values, features=values)
    return buffer.getvalue()


JSONL = b"".join(
    json.dumps(
        {"id": i, "group": f"g{i % 15}", "title": f"t {i}", "body": "b", "label": ("no", "yes")[i % 2]}
    ).encode()
    + b"\n"
    for i in range(30)
)
TEACHER = b"".join(
    json.dumps({"example_id": str(i), "logits": [0.5, float(i)], "features": [1.0, 2.0]}).encode() + b"\n"
    for i in range(10)
)
TARGETS: dict[str, Callable[[Path, Path], Target]] = {
    "manifest": manifest,
    "footer": footer,
    "student": student("prefix", "student.json"),
    "adapter_prefix": student("prefix", "adapter_config.json"),
    "adapter_lora": student("lora", "adapter_config.json"),
    "toml": task_file("toml", TOML),
    "yaml": task_file("yaml", YAML),
    "pattern": task_file("toml", PATTERN),
    "csv": rows_of("csv", CSV),
    "jsonl": rows_of("jsonl", JSONL),
    "teacher_csv": outputs(
        "csv", b"example_id,logit_no,logit_yes\n" + b"".join(b"%d,0.5,%d\n" % (i, i) for i in range(10))
    ),
    "teacher_jsonl": outputs("jsonl", TEACHER),
    "npz": outputs("npz", npz()),
}


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_are_read_or_refused(name, in_memory, tiny_model):
    found = mutations(TARGETS[name](in_memory, tiny_model), range(60))
    assert found["refused"]
    assert found["read"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_many_mutations_are_read_or_refused(name, in_memory, tiny_model):
    found = mutations(
        TARGETS[name](in_memory, tiny_model), range(int(os.environ.get("KDCACHE_FUZZ", "10000")))
    )
    print(f"{name}: {found['read']} read, {found['refused']} refused")
