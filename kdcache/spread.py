"""Units of work, in this process, in processes of this machine, or on a Ray cluster.

A unit leaves its result on storage that all workers see, under a name that holds all that decides it, by
one rename. So it may run twice, never half, and whoever runs it again skips it. Nothing else passes between
workers: what dies with one of them is the unit that it was at.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Literal, Protocol, TypeVar

from kdcache.errors import KdcacheError, ParamsError
from kdcache.params import Count, NonNegativeFloat, build
from kdcache.progress import heard_by

Unit = TypeVar("Unit", bound=Hashable)
Work = Callable[[Any], object]  # does one unit
Opened = tuple[str, Callable[[], Work]]  # the working folder, and what makes a worker's work

ATTEMPTS = 3
_COMMAND = [sys.executable, "-c", "from kdcache.spread import serve; serve()"]


@dataclass(frozen=True)
class Engine:
    """What does the units: keys of params.yaml that decide no byte, so DVC tracks none of them.

    Args:
        engine: ``local``, this process or several of this machine; or ``ray``, actors of the cluster that
            Ray finds by its own rules, or starts on this machine where there is none.
        workers: units at a time.
        gpus: of each actor, which Ray keeps for it.
    """

    engine: Literal["local", "ray"] = "local"
    workers: Count = 1
    gpus: NonNegativeFloat = 0

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Engine":
        """Check the top level of params.yaml.

        Raises:
            ParamsError: see ``params.build``.
        """
        return build(
            cls, {field.name: raw[field.name] for field in fields(cls) if field.name in raw}, "params"
        )

    @property
    def here(self) -> bool:
        """Whether this process does all units."""
        return self.engine == "local" and self.workers == 1


HERE = Engine()


class _Died(Exception):
    """A worker ended before its unit did."""


class _Worker(Protocol):
    """Does one unit at a time, somewhere."""

    def start(self, unit: Any) -> Any:
        """Begin a unit, or with None to open; return what ``wait_for`` waits for."""

    def end(self, waited: Any) -> Exception | int | None:
        """Return the unit's error, or how much more of it is done; raise ``_Died`` if it cannot say."""

    def stop(self) -> None:
        """Free what it holds, whatever it is at."""


def spread(
    units: Sequence[Unit], open_worker: Callable[[], Work], engine: Engine = HERE, threads: int = 1,
    after: Callable[[Unit], object] = lambda unit: None,
    during: Callable[[Unit, int], object] = lambda unit, count: None,
) -> None:  # fmt: skip
    """Do every unit once, in any order.

    Args:
        units: hashable, and named by ``str``.
        open_worker: makes what does a unit, once per worker. But for this process, it and the units must
            be picklable, and each worker's working folder is that of this process.
        engine: what does them. No worker is started where there are no units.
        threads: CPUs that Ray keeps for each actor.
        after: called with each unit that is done.
        during: called with a unit and how much more of it is done, where it tells; not from Ray.

    Raises:
        Exception: whatever a unit raised, at once; other units are given up, and what they left is kept.
        KdcacheError: ``ATTEMPTS`` workers died at one unit.
        ParamsError: no node of the cluster has as many CPUs or GPUs.
    """
    if engine.here or not units:
        work = open_worker() if units else None
        for unit in units:
            with heard_by(partial(during, unit)):
                work(unit)  # type: ignore[misc]
            after(unit)
        return
    opened = os.getcwd(), open_worker
    if engine.engine == "ray":
        start_worker, wait_for = _actors(opened, threads, engine.gpus)
    else:
        start_worker, wait_for = partial(_Process, opened), wait
    left, deaths = list(reversed(units)), dict[Unit | None, int]()
    idle: list[_Worker] = []
    busy: dict[
        Any, tuple[_Worker, Unit | None]
    ] = {}  # with a unit, or None: it opens, which may wait for a node
    with contextlib.ExitStack() as stack:
        while left or any(unit is not None for _, unit in busy.values()):
            while left and idle:
                worker = idle.pop()
                unit = left.pop()
                busy[worker.start(unit)] = worker, unit
            opening = sum(unit is None for _, unit in busy.values())
            for _ in range(min(engine.workers - len(busy), len(left) - opening)):
                worker = start_worker()
                stack.callback(worker.stop)
                busy[worker.start(None)] = worker, None
            for waited in wait_for(list(busy)):
                worker, at = busy.pop(waited)
                try:
                    result = worker.end(waited)
                except _Died:
                    deaths[at] = deaths.get(at, 0) + 1
                    if deaths[at] == ATTEMPTS:
                        raise KdcacheError(
                            f"{at or 'The start of a worker'}: a worker must live to its end, got "
                            f"{ATTEMPTS} that died at it. It may need more memory than there is: take fewer "
                            "workers, or a smaller batch_size."
                        ) from None
                    if at is not None:
                        left.append(at)
                    continue
                if isinstance(result, Exception):
                    raise result
                if isinstance(result, int):
                    busy[waited] = worker, at
                    if at is not None:
                        during(at, result)
                    continue
                idle.append(worker)
                deaths.pop(at, None)
                if at is not None:
                    after(at)


class _Serving:
    """What is in each worker.

    Args:
        opened: the working folder and ``open_worker``.
    """

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.work: Work | None = None

    def do(self, unit: Any) -> Exception | None:
        """Do a unit; None opens what does units. Return the error, in a form that can travel."""
        try:
            if self.work is None:
                folder, open_worker = self.opened
                os.chdir(folder)
                self.work = open_worker()
            if unit is not None:
                self.work(unit)
        except Exception as error:
            error.add_note(traceback.format_exc())  # for --debug: a traceback does not travel
            error.__cause__ = error.__context__ = None
            if isinstance(error, KdcacheError | OSError):
                return error
            return KdcacheError(f"{unit}: {type(error).__name__}: {error}")  # others may be unable to travel
        return None


class _Process:
    """A process of this machine; it ends with the one that started it."""

    def __init__(self, opened: Opened) -> None:
        self.pipe, theirs = Pipe()
        none = subprocess.DEVNULL  # the first process says what there is to say
        with theirs:
            self.process = subprocess.Popen(
                [*_COMMAND, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=none, stdout=none,
                stderr=none, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip
        with contextlib.suppress(OSError):
            self.pipe.send(opened)

    def start(self, unit: Any) -> Connection:
        with contextlib.suppress(OSError):  # it died: end() says so
            self.pipe.send(unit)
        return self.pipe

    def end(self, waited: Any) -> Exception | int | None:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            raise _Died from None

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


def serve() -> None:
    """Do what the pipe says whose number is the argument, until it ends: a process of ``spread``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the first process ends this one
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with Connection(int(sys.argv[1])) as pipe, contextlib.suppress(EOFError, OSError):
        serving = _Serving(pipe.recv())
        with heard_by(pipe.send):
            while True:
                pipe.send(serving.do(pipe.recv()))


def _end_with(parent: int) -> None:
    """End this process soon after its parent, whatever unit it is at."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _actors(opened: Opened, threads: int, gpus: float) -> tuple[Callable[[], _Worker], Callable[[Any], Any]]:
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= gpus for node in nodes):
        raise ParamsError(
            f"threads: a node of the cluster must have as many CPUs, and gpus, got {threads} and {gpus:g} "
            f"where the largest has {max(node.get('CPU', 0) for node in nodes):g} CPUs. Lower them."
        )

    actors: Any = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Serving)

    class Actor:
        def __init__(self) -> None:
            self.actor = actors.remote(opened)

        def start(self, unit: Any) -> Any:
            return self.actor.do.remote(unit)

        def end(self, waited: Any) -> Exception | None:
            try:
                return ray.get(waited)
            except ray.exceptions.RayError as error:  # the actor or its node is gone
                if "ModuleNotFoundError" in str(error):
                    last = str(error).strip().splitlines()[-1]
                    return KdcacheError(f"Ray: every node must have kdcache installed, got: {last}")
                raise _Died from None

        def stop(self) -> None:
            ray.kill(self.actor)

    return Actor, lambda busy: ray.wait(busy, num_returns=1)[0]
