"""The cache in numbers: storage choices, 10⁷ rows in a bounded memory, gathering targets.

Usage: python benchmarks/cache.py [CACHE]   (CACHE: a folder made by kdcache cache, such as cache/wic)
       python benchmarks/cache.py --verbs [ROWS CLASSES [COMMAND …]]   (peak memory of each command)
       python benchmarks/cache.py --labels   (bytes per row of many labels, all logits and the largest)

Prints Markdown. Every speed is the best of several rounds, one thread, measured in this run.
"""

import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.reader import load_cache
from kdcache.cache.schema import PARQUET, ROW_GROUP_ROWS
from kdcache.cache.verify import verify_cache
from kdcache.cache.writer import CacheWriter, write_cache
from kdcache.data.splits import split_schema
from kdcache.data.task import Task, write_task
from kdcache.digests import seal

ROUNDS = 7

IDENTITY = {"task": "wic", "labels": ["false", "true"]}


def best(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Seconds of the fastest of several rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def enlarge(rows: CacheRows, count: int) -> CacheRows:
    """Many rows like a few real ones: noise of 1 % keeps compression honest."""
    rng = np.random.default_rng(0)
    picked = rows.take(rng.integers(0, len(rows), count))

    def jitter(values: np.ndarray) -> np.ndarray:
        return (values * rng.normal(1, 0.01, values.shape)).astype(values.dtype)

    ids = [f"train-{i}" for i in range(count)]
    hashes = [f"{value:032x}" for value in rng.integers(0, 2**63, count).tolist()]
    return CacheRows(ids, hashes, picked.label, picked.fold, jitter(picked.logits), jitter(picked.features))


def storage(rows: CacheRows) -> Iterator[str]:
    """Bytes per row and reading time over types, encodings and compressions."""
    import duckdb
    import polars

    fixed = rows.to_table()
    variable = fixed.set_column(5, "features", pa.array(list(rows.features), pa.list_(pa.float16())))
    float32 = fixed.set_column(
        5, "features", pa.FixedSizeListArray.from_arrays(
            pa.array(rows.features.astype(np.float32).reshape(-1)), rows.features.shape[1]
        ),
    )  # fmt: skip
    split = {"logits.list.element": "BYTE_STREAM_SPLIT", "features.list.element": "BYTE_STREAM_SPLIT"}
    plain = {"use_dictionary": False, "write_page_checksum": True}
    zstd = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}
    choices = {
        "**fixed-size list, float16, zstd 1 (the format)**": (fixed, PARQUET),
        "… without page checksums": (fixed, zstd),
        "… zstd 9": (fixed, PARQUET | {"compression_level": 9}),
        "… uncompressed": (fixed, plain | {"compression": "none"}),
        "… snappy": (fixed, plain | {"compression": "snappy"}),
        "… BYTE_STREAM_SPLIT": (fixed, PARQUET | {"column_encoding": split}),
        "… features float32": (float32, PARQUET),
        "variable list, pyarrow's defaults": (variable, {}),
    }  # fmt: skip
    yield f"{len(rows)} rows, {rows.logits.shape[1]} logits, {rows.features.shape[1]} features:"
    yield ""
    yield "| choice | bytes/row | write MB/s | read MB/s | DuckDB | Polars |"
    yield "|---|---:|---:|---:|---|---|"
    logical = fixed.nbytes / 1e6
    for name, (table, options) in choices.items():

        def write(table: pa.Table = table, options: dict = options) -> bytes:
            buffer = io.BytesIO()
            pq.write_table(table, buffer, row_group_size=ROW_GROUP_ROWS, **options)
            return buffer.getvalue()

        seconds = best(write, 3)
        content = write()
        check = bool(options.get("write_page_checksum"))
        reading = best(lambda content=content, check=check: pq.ParquetFile(
            pa.BufferReader(content), page_checksum_verification=check).read(use_threads=False))  # fmt: skip
        with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
            file.write(content)
            file.flush()
            wanted = rows.features[-1].astype(np.float32)
            duck = _same(lambda: duckdb.sql(f"select features from '{file.name}'").fetchall()[-1][0], wanted)
            polar = _same(lambda: polars.read_parquet(file.name)["features"][-1].to_list(), wanted)
        yield (
            f"| {name} | {len(content) / len(rows):.0f} | {logical / seconds:.0f} | {logical / reading:.0f} "
            f"| {duck} | {polar} |"
        )


def _same(read: Callable[[], object], wanted: np.ndarray) -> str:
    try:
        return "yes" if np.array_equal(np.array(read(), np.float32), wanted) else "**wrong values**"
    except Exception as error:  # what a reader of another project raises is its own affair
        return f"no: {type(error).__name__}"


def library(rows: CacheRows) -> Iterator[str]:
    """kdcache's own way, digests and checks included."""
    with tempfile.TemporaryDirectory() as base:
        folder, scratch = Path(base) / "wic", Path(base) / "s" / "key"
        size = rows.to_table().nbytes / 1e6

        def write() -> None:
            write_cache(folder, scratch, {"train": rows}, identity=IDENTITY)

        speeds = {
            "write (with digests, unique ids, fsync)": best(write, 3),
            "open (sha256, schema, ids)": best(lambda: load_cache(folder, "train"), 3),
            "open and read all rows": best(lambda: load_cache(folder, "train").rows, 3),
            "open and stream": best(lambda: [len(part) for part in load_cache(folder, "train").stream()], 3),
            "verify": best(lambda: verify_cache(folder), 3),
        }
        yield "| the library, same rows | MB/s | rows/s |"
        yield "|---|---:|---:|"
        for name, seconds in speeds.items():
            yield f"| {name} | {size / seconds:.0f} | {len(rows) / seconds:,.0f} |"


def gather(rows: CacheRows) -> Iterator[str]:
    """A batch of targets: from the tensors of a cache, against a plain tensor of the same size."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as base:
        write_cache(
            Path(base) / "wic",
            Path(base) / "s" / "key",
            {"train": rows},
            identity=IDENTITY,
        )
        targets = load_cache(Path(base) / "wic", "train").tensors()
    plain = {
        "logits": torch.randn(rows.logits.shape), "features": torch.randn(rows.features.shape).half(),
    }  # fmt: skip
    order = torch.randperm(len(rows))
    batches = [order[i : i + 32] for i in range(0, min(len(rows), 6400), 32)]

    def run(source: dict[str, torch.Tensor]) -> float:
        return best(lambda: [(source["logits"][b], source["features"][b]) for b in batches]) / len(batches)

    pairs = [(run(targets), run(plain)) for _ in range(5)]
    ours, theirs = (min(column) for column in zip(*pairs, strict=True))
    yield "| gather 32 rows (logits and features) | µs per batch |"
    yield "|---|---:|"
    yield f"| from `load_cache(…).tensors()` | {1e6 * ours:.1f} |"
    yield f"| from tensors made in memory | {1e6 * theirs:.1f} |"
    yield f"| ratio | {ours / theirs:.2f} |"


def memory(count: int) -> None:
    """In a process of its own: write, verify and stream ``count`` rows × 3 logits."""

    def chunks() -> Iterator[CacheRows]:
        for start in range(0, count, ROW_GROUP_ROWS):
            rng = np.random.default_rng(start)
            rows = min(ROW_GROUP_ROWS, count - start)
            yield CacheRows(
                [f"train-{i}" for i in range(start, start + rows)],
                [f"{i:016x}{j:016x}" for i, j in rng.integers(0, 2**63, (rows, 2)).tolist()],
                rng.integers(0, 3, rows), np.full(rows, -1, np.int8),
                rng.normal(size=(rows, 3)).astype(np.float32), np.empty((rows, 0), np.float16),
            )  # fmt: skip

    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "wic"
        start = time.perf_counter()
        with CacheWriter(folder, Path(base) / "s" / "key") as writer:
            writer.write("train", chunks())
            manifest = writer.finish({"task": "wic", "labels": ["a", "b", "c"]})
        written = time.perf_counter()
        assert not [check for check in verify_cache(folder) if check.problem]
        verified = time.perf_counter()
        assert sum(len(part) for part in load_cache(folder, "train").stream()) == count
        streamed = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        size = manifest.sum_of("train", "bytes") / count
        speeds = [count / s for s in (written - start, verified - written, streamed - verified)]
        print(f"| {count:,} | {size:.0f} | " + " | ".join(f"{s:,.0f}" for s in speeds) + f" | {peak:.0f} |")


def many_labels() -> Iterator[str]:
    """Bytes per row and reading time of all logits, and of the largest; logits as random as can be."""
    yield "| labels | rows | kept logits | bytes/row | × smaller | open and stream, µs/row |"
    yield "|---:|---:|---:|---:|---:|---:|"
    for count, labels in ((8192, 150), (4096, 10**4), (512, 10**5)):
        rng = np.random.default_rng(0)
        hashes = [f"{i:016x}{j:016x}" for i, j in rng.integers(0, 2**63, (count, 2)).tolist()]
        rows = CacheRows(
            [f"train-{i}" for i in range(count)], hashes, rng.integers(0, labels, count),
            np.full(count, -1, np.int8), rng.standard_normal((count, labels), np.float32),
            np.empty((count, 0), np.float16),
        )  # fmt: skip
        identity = {"task": "wic", "labels": [f"label {k}" for k in range(labels)]}
        whole = 0.0
        for top_k in (None, 32, 8):
            with tempfile.TemporaryDirectory() as base:
                folder, scratch = Path(base) / "wic", Path(base) / "s" / "key"
                manifest = write_cache(folder, scratch, {"train": rows}, top_k, identity=identity)
                seconds = best(lambda folder=folder: list(load_cache(folder, "train").stream()), 3)
            size = manifest.files["train.parquet"]["bytes"] / count
            whole = whole or size
            kept = f"{top_k or 'all'} | {size:,.0f} | {whole / size:,.0f}"
            yield f"| {labels:,} | {count:,} | {kept} | {1e6 * seconds / count:,.0f} |"


VERBS = {
    "verify PATH": "verify cache/cb", "verify --task": "verify --task cb --teacher-rows 0",
    "distill": (
        "distill --task cb --arm kl --seed 0 --set distill.steps=20 --set distill.batch_size=256 "
        "--set distill.workers=1 --set distill.max_length=32 --set distill.num_virtual_tokens=2"
    ),
    "inspect": "inspect cache/cb --json", "diff": "diff cache/cb other/cb",
    **{f"export .{kind}": f"export x.{kind} --task cb" for kind in ("csv", "jsonl", "parquet", "npz")},
    **{f"import .{kind}": f"import x.{kind} --task cb" for kind in ("csv", "jsonl", "parquet", "npz")},
}  # fmt: skip


def prepare_verbs(folder: Path, count: int, classes: int) -> None:
    """In a process of its own: a project with prepared data of ``count`` rows, and two caches of them."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from conftest import build_tiny_model

    labels = tuple(f"c{k}" for k in range(classes))
    correct = dict.fromkeys(("train", "tune", "validation"), 0)
    task = Task("cb", labels, "cb/1", ("accuracy",), pairs=False)
    data = folder / "data" / "cb"
    data.mkdir(parents=True)
    write_task(task, data)
    shutil.copy(Path(__file__).parent.parent / "params.yaml", folder)

    def chunks(split: str, count: int) -> Iterator[CacheRows]:
        with pq.ParquetWriter(data / f"{split}.parquet", split_schema(task), compression="zstd") as file:
            for start in range(0, count, ROW_GROUP_ROWS):
                rng = np.random.default_rng(start)
                rows = min(ROW_GROUP_ROWS, count - start)
                ids = [f"{split}-{i}" for i in range(start, start + rows)]
                hashes = [f"{i:016x}{j:016x}" for i, j in rng.integers(0, 2**63, (rows, 2)).tolist()]
                truth = rng.integers(0, classes, rows)
                logits = rng.normal(size=(rows, classes)).astype(np.float32)
                logits[np.arange(rows), truth] += 2
                correct[split] += int((logits.argmax(axis=1) == truth).sum())
                texts = [f"{i} the bank on the river and a bat on a tree" for i in ids]
                columns = {"group": ids, "text": texts, "text_pair": [""] * rows}
                file.write_table(pa.table(
                    {"example_id": ids, "label": truth, "content_hash": hashes, **columns}, split_schema(task)
                ))  # fmt: skip
                yield CacheRows(
                    ids, hashes, truth, np.full(rows, -1, np.int8), logits, np.empty((rows, 0), np.float16)
                )
        seal(data / f"{split}.parquet")

    with CacheWriter(folder / "cache" / "cb", folder / "s" / "key") as writer:
        writer.write("train", chunks("train", count))
        for split in ("tune", "validation"):
            writer.write(split, chunks(split, 1000))
        scores = {"validation": {"accuracy": correct["validation"] / 1000}}
        writer.finish(
            {"task": "cb", "labels": list(labels), "num_labels": classes, "kind": "external"},
            metrics=scores,
            all_rows_teacher=scores,
            cost=dict.fromkeys(("training_steps", "training_examples", "forward_examples"), 0),
        )
    build_tiny_model(folder / "models" / "backbone", num_layers=1)
    shutil.copytree(folder / "cache", folder / "other")


def measure_verbs(count: int, classes: int, only: list[str]) -> None:
    """Print a row per command: seconds and peak memory of its process."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("KDCACHE_BENCH")) as base:
        subprocess.run([sys.executable, __file__, "--prepare", base, str(count), str(classes)], check=True)
        for name, arguments in VERBS.items():
            if only and name not in only:
                continue
            start = time.perf_counter()
            command = [sys.executable, "-m", "kdcache", *arguments.split()]
            with subprocess.Popen(command, cwd=base, stdout=subprocess.DEVNULL) as process:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - start
            state = "" if process.returncode == 0 else f" (exit code {process.returncode})"
            peak = usage.ru_maxrss / 1024
            print(f"| {name}{state} | {count:,} × {classes} | {seconds:.0f} | {peak:.0f} |", flush=True)


def main(cache: str | None) -> None:
    """Print all tables."""
    # First, since a process inherits the peak of the one that starts it.
    print("| rows × 3 logits | bytes/row | write rows/s | verify rows/s | open + stream rows/s | peak MiB |")
    print("|---:|---:|---:|---:|---:|---:|", flush=True)
    for count in (10**5, 10**6, 10**7):
        subprocess.run([sys.executable, __file__, "--memory", str(count)], check=True)
    print("\n", flush=True)
    if cache:
        few = load_cache(cache, "train").rows
    else:
        rng = np.random.default_rng(0)
        few = CacheRows(
            [str(i) for i in range(500)], ["x"] * 500, rng.integers(0, 2, 500), np.full(500, -1, np.int8),
            rng.normal(size=(500, 2)).astype(np.float32),
            np.tanh(rng.normal(size=(500, 384))).astype(np.float16),
        )  # fmt: skip
    many = enlarge(few, 20_000)
    for part in (storage(many), library(many), gather(many)):
        print("\n".join(part), "\n", sep="\n", flush=True)


if __name__ == "__main__":
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    if sys.argv[1:2] == ["--memory"]:
        memory(int(sys.argv[2]))
    elif sys.argv[1:2] == ["--labels"]:
        for line in many_labels():
            print(line, flush=True)
    elif sys.argv[1:2] == ["--prepare"]:
        prepare_verbs(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ["--verbs"]:
        print("| command | rows × classes | s | peak MiB |\n|---|---:|---:|---:|", flush=True)
        sizes = [tuple(map(int, sys.argv[2:4]))] if sys.argv[2:] else [(10**6, 3), (10**5, 150)]
        for count, classes in sizes:
            measure_verbs(count, classes, sys.argv[4:])
    else:
        main(sys.argv[1] if sys.argv[1:] else None)
