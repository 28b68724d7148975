"""Verbs in processes of their own: they count their file-system events, die at one, or obey permissions."""

import contextlib
import ctypes
import io
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forks import fork

WRITING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.copyfile"}
TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OVERRIDE = (1, 2)  # the capabilities by which root reads and writes what is closed


def child(folder: Path, command: str, prepare: Callable[[], object] = lambda: None) -> tuple[int, int]:
    """Start a verb in a process of its own; return its id and where its output comes from."""
    pid, pipe = fork()
    if pid:
        return pid, pipe
    code = 70
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(pipe, number)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
        os.chdir(folder)
        prepare()
        _run(command.split())
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _run(arguments: list[str]) -> None:
    from kdcache.cli import app
    from kdcache.project import Project, errors_in_one_line, load_stage

    if arguments[0] == "stage":
        with errors_in_one_line():
            load_stage(arguments[1])(Project.load(), arguments[2])
    else:
        app(arguments, prog_name="kdcache")


def end(started: tuple[int, int]) -> tuple[int, str]:
    """Wait for a child; return its exit code, negative for a signal, and what it printed."""
    pid, read = started
    with os.fdopen(read, "rb") as file:
        text = file.read().decode("utf-8", "replace")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def must(folder: Path, command: str) -> None:
    code, text = end(child(folder, command))
    assert code == 0, f"{command}: rc {code}\n{text[-3000:]}"


def run_here(folder: Path, command: str) -> None:
    """Run a verb in this process, so that those forked from it need import nothing."""
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.redirect_stderr(printed),
    ):
        try:
            _run(command.split())
        except SystemExit as error:
            if error.code:
                raise AssertionError(f"{command}: {printed.getvalue()[-3000:]}") from None


def _watch(folder: Path, see: Callable[[], object]) -> None:
    here = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in WRITING or (
            event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        path = arguments[0] if writes else None
        if isinstance(path, (str, Path)) and (str(path).startswith(here) or not os.path.isabs(path)):
            see()

    sys.addaudithook(hook)


def count(folder: Path, pipe: int) -> None:
    _watch(folder, lambda: os.write(pipe, b"."))


def kill_at(folder: Path, number: int) -> None:
    left = itertools.count(1)
    _watch(folder, lambda: next(left) == number and os.kill(os.getpid(), signal.SIGKILL))


def obey_permissions() -> None:
    """Let root be bound by permissions, as everyone else is."""
    if os.geteuid():
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0
    for which in (0, 1):  # effective, permitted
        for capability in OVERRIDE:
            sets[which] &= ~(1 << capability)
    assert libc.capset(header, sets) == 0
