"""Students trained side by side on a CPU: processes that each take the next pass that nobody has.

On a CPU a small student hardly gains from a second thread. A second process trains a second
student. All processes walk through the same passes and claim each by a lock, which the system
releases however its holder ends. What a process leaves undone, the first process takes up, so an
error is met and said there.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

COMMAND = [sys.executable, "-m", "kdcache.students"]


def take_turns(
    passes: Sequence[Any], lock: Callable[[Any], Path], done: Callable[[Any], bool],
    train: Callable[[Any], object], wait: bool,
) -> None:  # fmt: skip
    """Train the passes that no other process trains.

    Args:
        passes: all of them, in one order in all processes.
        lock: a file for each.
        done: whether one needs no training any more.
        train: trains one.
        wait: whether to return only when all are done, and to train what other processes left undone.
    """
    for timeout in (0, -1) if wait else (0,):
        for one in passes:
            with contextlib.suppress(filelock.Timeout), filelock.FileLock(lock(one)).acquire(timeout=timeout):
                if not done(one):
                    train(one)


@contextlib.contextmanager
def helpers(count: int, work: Sequence[Any], after_step: Callable[[int], object]) -> Iterator[None]:
    """Run processes beside this one until the block ends.

    Args:
        count: of them.
        work: what ``students.__main__`` reads, of plain JSON types.
        after_step: called with the number of steps that they took.
    """
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            read, write = os.pipe()
            with tempfile.TemporaryFile() as message:  # one each: whoever inherits a file shares its position
                message.write(json.dumps([os.getpid(), *work]).encode())
                message.seek(0)
                process = subprocess.Popen([*COMMAND, str(write)], stdin=message, pass_fds=[write])
            os.close(write)
            stack.callback(_end, process)
            threading.Thread(target=_count_steps, args=(read, after_step), daemon=True).start()
        yield


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait()


def _count_steps(pipe: int, after_step: Callable[[int], object]) -> None:
    """Read a byte per step, until the process ends."""
    with open(pipe, "rb", buffering=0) as steps:
        while some := steps.read(4096):
            after_step(len(some))
