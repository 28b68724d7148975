"""The processes that torchrun started: how many, what may run in several, and which shows an error."""

import contextlib
import os
import time
from collections.abc import Iterator

from kdcache.errors import KdcacheError, ParamsError

AFTER_FIRST_S, AFTER_OTHERS_S = 10, 3  # see first_shows_errors


def num_started() -> int:
    """Return how many processes torchrun started. Without it there is one, whatever a scheduler says."""
    return int(os.environ.get("WORLD_SIZE", "1")) if _here() else 1


def is_first() -> bool:
    """Whether this is the first process of torchrun, or the only one."""
    return not _here() or os.environ.get("RANK", "0") == "0"


def require_one_process() -> None:
    """Refuse several processes where each would do the same and write the same places.

    Raises:
        ParamsError: torchrun started several.
    """
    if (processes := num_started()) > 1:
        raise ParamsError(
            "torchrun: it must start one process, except of kdcache teach and kdcache cache --shard, got "
            f"{processes}. Run this command without torchrun."
        )


@contextlib.contextmanager
def first_shows_errors() -> Iterator[None]:
    """Hold an error back that may only follow from that of another process: torchrun then ends this one."""
    try:
        yield
    except Exception as error:
        if not is_first():
            time.sleep(AFTER_FIRST_S)
        elif _here() and not isinstance(error, KdcacheError):
            time.sleep(AFTER_OTHERS_S)
        raise


def _here() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
