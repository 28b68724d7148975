"""A process forked from that of a test, with a pipe from it."""

import os
import warnings


def fork() -> tuple[int, int]:
    """Return (id, where to read) in the parent, (0, where to write) in the child, which must not return."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's, of threads that a fork lacks
        pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    warnings.simplefilter("ignore")  # those that a test would fail at
    return 0, write
