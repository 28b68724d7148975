"""The kind of machine that computes a thing: the first to come decides, for whoever goes on with it."""

import contextlib
import os
import uuid
from pathlib import Path

from kdcache.errors import KdcacheError


def one_machine_kind(scratch: Path, kind: str, what: str) -> None:
    """Let one kind of machine compute all of a thing: another gives other last bits.

    Args:
        scratch: the folder of the thing, on a disk that all workers see.
        kind: of this machine. The first to come decides.
        what: the thing, for the message.

    Raises:
        KdcacheError: another kind has begun.
    """
    decided, own = scratch / "machine", scratch / f"machine.{uuid.uuid4().hex}"
    own.write_text(kind, encoding="utf-8")
    try:
        os.link(own, decided)  # whole, and only where there is none
    except FileExistsError:
        pass
    except OSError:  # a disk that knows no second names
        with contextlib.suppress(FileExistsError), decided.open("x", encoding="utf-8") as file:
            file.write(kind)
    own.unlink()
    if (found := decided.read_text(encoding="utf-8")) != kind:
        raise KdcacheError(
            f"{what}: one kind of machine must compute all of it, got {kind} here and {found} before. "
            "Go on with that kind, or run kdcache clean to start anew."
        )
