"""Faults put into each verb that writes: kills, a full disk, closed folders, two processes at once.

Usage: python tests/faults/faults.py FOLDER KIND EVERY VERB…   (a JSON line per verb: tried, held, the others)

KIND is kill, full, closed or twice. Of the faults of a verb, every EVERY-th is tried. A fault holds if

- each output is the old one, the new one, or absent, never a part of one;
- the verb ends with rc 0, or with rc 1 and a line that is no traceback;
- the same command afterwards gives the bytes of an undisturbed run.

Of two verbs at once, one may write what the other reads or writes, such as ``import`` a cache. Then "new" and
"undisturbed" are also what the two give one after the other; what is refused then may be refused afterwards.

Each run is a fork of one process in which the verb has run, so that it costs what the verb costs.
"""

import gc
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from children import child, count, end, kill_at, must, obey_permissions, run_here
from conftest import build_tiny_model, write_project
from save_every import save_every

FULL = (0, 8, 64)  # kB that a file may hold
SECTIONS = {"train_teacher": {"epochs": 2, "select": "tune"}, "distill": {"seeds": [0]}}
ROWS = '{"text": "the bank", "text_pair": "it is near"}\n{"text": "a bat", "text_pair": "it flew"}\n'

# Verb → its arguments, what makes other outputs of it first, and the outputs.
VERBS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "prepare": ("prepare --task cb", "--set prepare.seed=1", ("data/cb",)),
    "teach": ("teach --task cb", "--set train_teacher.seed=1", ("models/teacher/cb",)),
    "cache": ("cache --task cb", "--set cache_teacher.dtype=bfloat16", ("cache/cb",)),
    "shrink": ("shrink --num-layers 1", "--num-layers 2", ("models/backbone",)),
    "explore": ("distill --task cb --arm kl+gram", "--set distill.lr=0.1", ("runs/cb",)),
    "distill": ("stage distill cb", "", ("models/students/cb", "metrics", "predictions", "curves")),
    "report": ("report --task cb", "--set report.control=ce", ("reports",)),
    "import": ("import out.csv --task cb", "", ("cache/cb",)),
    "export": ("export --task cb e.parquet", "--split validation", ("e.parquet",)),
    "predict": (
        "predict --student models/students/cb/ce-0 --input rows.jsonl --output p.csv", "", ("p.csv",)
    ),
    "figure": ("inspect --task cb --figure f.svg", "", ("f.svg",)),
    "evaluate": ("evaluate --task cb --arm ce --split validation", "", ("evaluations",)),
    "student": ("export-student models/students/cb/ce-0 --to folder --out out", "", ("out",)),
    "init": ("init new", "", ("new",)),
}  # fmt: skip

# Outputs of which each file or folder is moved by itself: each of them is whole.
ONE_BY_ONE = ("models/students/cb", "metrics", "predictions", "curves", "runs/cb", "evaluations", "new")

Tree = dict[str, bytes]
LEFT = re.compile(r"\..*\.(part(\..*)?|replaced)")


def tree(path: Path) -> Tree:
    """Every file below a path; what a killed process left beside a place has a name with a dot."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in files
        if file.is_file() and not any(map(LEFT.fullmatch, file.relative_to(path).parts))
    }


class Fault:
    """The trials of one verb.

    Args:
        name: of the verb.
        base: a folder for it.
        whole: a project in which every verb has run.
    """

    def __init__(self, name: str, base: Path, whole: Path) -> None:
        self.name, self.base, self.command = name, base, VERBS[name][0]
        self.outputs = VERBS[name][2]
        self.tried, self.events, self.failed = 0, 0, []  # type: ignore[var-annotated]
        self.start = base / "start"  # with other outputs of this verb, where it has a way to make them
        shutil.copytree(whole, self.start, symlinks=True)
        shutil.rmtree(self.start / ".kdcache", ignore_errors=True)
        if other := VERBS[name][1]:
            must(self.start, f"{self.command} {other}")
        else:
            for output in self.outputs:
                _remove(self.start / output)
        done = self.copy("done")
        run_here(done, self.command)
        gc.collect()
        gc.freeze()  # else each fork would copy what the collector visits
        self.before, self.wanted = self.content(self.start), self.content(done)
        assert self.before != self.wanted, name
        self.ways = [(0, self.wanted)]  # how the command may end afterwards
        self.others: list[list[Tree]] = []  # outputs that are whole too

    def content(self, folder: Path) -> list[Tree]:
        return [tree(folder / output) for output in self.outputs]

    def copy(self, name: str) -> Path:
        _remove(self.base / name)
        return shutil.copytree(self.start, self.base / name, symlinks=True)

    def judge(self, what: str, folder: Path, ends: list[tuple[int, str]]) -> None:
        """Count a trial, after which the command is run again."""
        self.tried += 1
        print(f"{self.name}: {what}", file=sys.stderr, flush=True)  # how far it came, for one who waits
        wrong = [fault for code, text in ends for fault in self._unsaid(code, text)]
        for output, found, old, new in zip(
            self.outputs, self.content(folder), self.before, self.wanted, strict=True
        ):
            whole = [old, new, *(other[self.outputs.index(output)] for other in self.others)]
            each = output in ONE_BY_ONE and all(
                found[name] in [one.get(name) for one in whole] for name in found
            )
            if found not in [*whole, {}] and not each:
                wrong.append(f"{output} is half made")
        code, text = end(child(folder, self.command))
        wrong += self._unsaid(code, text)
        if code and self.name == "init" and self.content(folder) == self.wanted:
            pass  # it was done when the process was killed, and is not done again
        elif code and code not in [way for way, _ in self.ways]:
            wrong.append(f"again: rc {code}: {text.strip()[-300:]}")
        elif not code and (code, self.content(folder)) not in self.ways:
            wrong.append("again: other bytes")
        if wrong:
            self.failed.append(f"{what}: {'; '.join(wrong)}")

    @staticmethod
    def _unsaid(code: int, text: str) -> list[str]:
        """An end that is neither a success nor one line."""
        if code not in (0, 1, -signal.SIGKILL) or "Traceback" in text or (code == 1 and not text.strip()):
            return [f"rc {code}: {text.strip()[-300:]}"]
        return []

    def kill(self, every: int) -> None:
        """Kill at every file-system event that Python sees, and at random moments between them."""
        read, write = os.pipe()
        folder = self.copy("kill")
        start = time.perf_counter()
        ended = end(child(folder, self.command, lambda: count(folder, write)))
        seconds = time.perf_counter() - start
        os.close(write)
        with os.fdopen(read, "rb") as file:
            events = self.events = len(file.read())
        assert ended[0] == 0, ended
        for number in range(1, events + 1, every):
            folder = self.copy("kill")
            ended = end(child(folder, self.command, partial(kill_at, folder, number)))
            self.judge(f"event {number} of {events}", folder, [ended])
        moments = random.Random(0)
        for number in range(0, 24, every):
            folder = self.copy("kill")
            started = child(folder, self.command)
            time.sleep(moments.uniform(0, seconds))
            os.kill(started[0], signal.SIGKILL)
            self.judge(f"moment {number}", folder, [end(started)])

    def full(self, every: int) -> None:
        """Let no file grow beyond some size."""
        for size in FULL[::every]:
            folder = self.copy("full")
            limit = (1000 * size, 1000 * size)
            limited = partial(resource.setrlimit, resource.RLIMIT_FSIZE, limit)
            ended = end(child(folder, self.command, limited))
            self.judge(f"{size} kB", folder, [ended])

    def closed(self, every: int) -> None:
        """Close each folder to writing, and each file and folder to reading."""
        paths = [path.relative_to(self.start) for path in _paths(self.start)]
        trials = [(p, 0o555) for p in paths if (self.start / p).is_dir()] + [(p, 0o000) for p in paths]
        for path, mode in trials[::every]:
            folder = self.copy("closed")
            before = (folder / path).stat().st_mode
            (folder / path).chmod(mode)
            ended = end(child(folder, self.command, obey_permissions))
            (folder / path).chmod(before)
            self.judge(f"{path} {mode:03o}", folder, [ended])

    def twice(self, every: int, other: str) -> None:
        """Run two verbs at the same time."""
        command = VERBS[other][0]
        folder = self.copy("after")
        end(child(folder, command))
        self.ways.append((end(child(folder, self.command))[0], self.content(folder)))
        folder = self.copy("before")
        end(child(folder, self.command))
        end(child(folder, command))
        self.others = [self.ways[-1][1], self.content(folder)]
        for number in range(0, 4, every):
            folder = self.copy("twice")
            first = child(folder, self.command)
            time.sleep(0.3 * number)
            second = child(folder, command)
            self.judge(f"with {other} after {0.3 * number:.1f} s", folder, [end(first), end(second)])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _paths(folder: Path) -> Iterator[Path]:
    """The project's folder, its folders, and the files that a person or a stage put there, without models."""
    yield folder
    for path in sorted(folder.rglob("*")):
        depth = len(path.relative_to(folder).parts)
        if path.is_dir() or (depth < 4 and path.suffix in (".json", ".parquet", ".jsonl", ".yaml", ".csv")):
            yield path


def build(base: Path) -> Path:
    """Write a project in which every verb has run once."""
    whole = base / "whole"
    build_tiny_model(base / "model")
    write_project(whole, base / "model", **SECTIONS)
    params = whole / "params.yaml"
    params.write_text(params.read_text().replace("- wic\n", "", 1))
    (whole / "rows.jsonl").write_text(ROWS)
    for verb in ("prepare", "teach", "cache", "shrink", "distill", "explore", "report"):
        must(whole, VERBS[verb][0])
    must(whole, "export --task cb out.csv")
    return whole


def inject(base: Path, kind: str, every: int, verbs: list[str]) -> Iterator[dict[str, Any]]:
    """Yield what was tried of each verb, what held, and what did not."""
    from tqdm import tqdm

    from kdcache.teacher import checkpoints

    save_every(2, checkpoints)
    tqdm.monitor_interval = 0  # a thread that forks would lack
    whole = base / "whole"
    if verbs == ["init"]:  # which needs no project
        whole.mkdir(parents=True)
    elif not (whole / "out.csv").is_file():  # the last of it
        _remove(base)
        build(base)
    for verb in verbs or list(VERBS):
        name, _, other = verb.partition("+")
        _remove(base / f"{kind}-{verb}")
        fault = Fault(name, base / f"{kind}-{verb}", whole)
        try:
            if kind == "twice":
                fault.twice(every, other or name)
            else:
                getattr(fault, kind)(every)
        finally:  # told also when the time is up
            held = fault.tried - len(fault.failed)
            counts = {"events": fault.events, "tried": fault.tried, "held": held}
            yield {"verb": verb, **counts, "failed": fault.failed}
        shutil.rmtree(fault.base)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for found in inject(Path(sys.argv[1]).resolve(), sys.argv[2], int(sys.argv[3]), sys.argv[4:]):
        print(json.dumps(found), flush=True)
