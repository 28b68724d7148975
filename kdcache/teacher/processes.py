"""The processes that train one model together, as torchrun started them; else there is only this one."""

import contextlib
import datetime
import os
import signal
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import distributed

from kdcache.errors import ParamsError
from kdcache.spread import Engine
from kdcache.torchrun import num_started

T = TypeVar("T")

# Of accelerate and its launchers, which the trainer would follow.
LAUNCHER_PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_", "PARALLELISM_CONFIG_", "TORCHELASTIC_")
LAUNCHER_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# The others wait while the first one tokenises, scores or writes. torchrun ends them if it dies.
PATIENCE = datetime.timedelta(days=7)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the processes that torchrun started, for the rest of this one's life.

    In the block, processes but the first say nothing. If one fails, torchrun ends the others; which error is
    shown, ``project.errors_in_one_line`` decides.

    Raises:
        ParamsError: a machine has fewer GPUs than processes.
    """
    if num_started() == 1:
        yield
        return
    _join()
    with contextlib.ExitStack() as others:
        if not is_main():
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            nowhere = others.enter_context(open(os.devnull, "w"))
            others.enter_context(contextlib.redirect_stdout(nowhere))
            others.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def _join() -> None:
    """Make the process group, once: a second one would find the addresses of the first."""
    if distributed.is_initialized():
        return
    if cuda := torch.cuda.is_available():
        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > gpus:
            raise ParamsError(
                f"torchrun --nproc-per-node: it must be at most the GPUs of the machine, {gpus}, got {here}. "
                "Start fewer processes."
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # or accelerate would set another number than the project
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)


def check_processes(batch_size: int, shard_weights: bool, engine: Engine) -> None:
    """Refuse parameters that do not go with the number of processes.

    Raises:
        ParamsError: names the parameter.
    """
    processes = num_processes()
    if processes == 1 and shard_weights:
        raise ParamsError(
            "train_teacher.shard_weights: there must be several processes to share the weights, got one. "
            "Set it to false, or run: torchrun --nproc-per-node 2 -m kdcache teach"
        )
    if processes > 1 and not engine.here:
        raise ParamsError(
            f"engine: it must be local with 1 worker where torchrun's {processes} processes train each model "
            f"together, got {engine.engine} with {engine.workers}. Leave out --engine and --workers."
        )
    if batch_size % processes:
        raise ParamsError(
            f"train_teacher.batch_size: torchrun's {processes} processes must get equal shares of it, got "
            f"{batch_size}. Change it, or start another number of processes."
        )


def num_processes() -> int:
    """Return how many processes train a model together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def process_number() -> int:
    """Return the number of this one, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the only or the first one, which alone writes and says something."""
    return process_number() == 0


def wait_for_all() -> None:
    """Go on when every process is here."""
    if num_processes() > 1:
        distributed.barrier()


def from_main(value: T) -> T:
    """Return the first process's value in every process."""
    if num_processes() == 1:
        return value
    values: list[Any] = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def start_alike(model: torch.nn.Module) -> None:
    """Give a model the first process's weights in every process."""
    if num_processes() > 1:
        model.to("cpu")
        for parameter in model.parameters():
            distributed.broadcast(parameter.data, 0)


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Hide what a shell or a launcher set for accelerate, such as bf16 or several steps per update.

    These would decide the weights without the identity knowing. It knows the number of processes, which
    stays where they train together.
    """
    names = () if num_processes() > 1 else LAUNCHER_NAMES

    def others() -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if k.startswith(LAUNCHER_PREFIXES) or k in names}

    hidden = others()
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        for name in others():  # the trainer sets some itself
            del os.environ[name]
        os.environ.update(hidden)
