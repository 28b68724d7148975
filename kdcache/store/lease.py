"""Leases: one process at a time, where machines share a store that has no locks."""

import contextlib
import re
import sys
import threading
import time
import uuid

from kdcache.errors import CacheError
from kdcache.store.location import Location, one_line

RENEWED_SECONDS = 5.0  # between two renewals
LAPSED_SECONDS = 30.0  # without a renewal, as a process that waits for it sees it
EVERYTHING = "clean"  # the key of what must be alone with all else
_ASKS, _HOLDS = "asks", "holds"
_NAME = re.compile(r"(.+)\.[0-9a-f]{32}")  # of a lease: its key, and one of its process


class Lease:
    """A context manager that keeps a second process from the same work.

    Each process puts an object of its own under ``leases/``, changes its content every few seconds, and holds
    the lease when it has then seen no other: of two processes, at least one sees the object of the other.

    No clocks of two machines are compared. A process looks at the others again and again: where the content
    changes, the other is alive, and this one is refused. Where it stays the same in as many looks as
    ``LAPSED_SECONDS`` have time for, the other is dead, and its object is deleted. A process that only stood
    still, or could not reach the store, finds that out by ``require``.

    Args:
        root: the folder or URI that all machines see.
        key: of the work; ``EVERYTHING`` excludes all other keys.
        what: is written, in messages.

    Raises:
        CacheError: on entering, if another process renews a lease of the same key.
    """

    def __init__(self, root: str, key: str, what: object) -> None:
        self.place, self.what = Location.parse(root, "leases"), what
        self.key, self.name = key, f"{key}.{uuid.uuid4().hex}"
        self._state, self._renewals = _ASKS, 0
        self._renewed = time.monotonic()  # when the last put began that came through
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Lease":
        with one_line(self.place, "leases must be readable and writable"):
            self._put()
            self._thread.start()
            try:
                self._wait_for_others()
            except BaseException:
                self.__exit__()
                raise
        self._state = _HOLDS
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # what cannot be deleted now lapses
            self.place.remove(self.name)

    def require(self) -> None:
        """Check that no other process has taken over.

        Raises:
            CacheError: one has.
        """
        with one_line(self.place, "leases must be readable and writable"):
            if self._lost():
                raise CacheError(
                    f"{self.what}: this process must renew its lease within {LAPSED_SECONDS:g} s, got a "
                    "longer pause, and another process took over. Wait for it to end, then run this again."
                )

    def _put(self) -> None:
        self._renewals += 1
        began = time.monotonic()
        with self.place.create(self.name) as file:
            file.write(f"{self._state} {self._renewals}".encode())
        self._renewed = began

    def _lost(self) -> bool:
        """Whether another process took over, or may have: a put that was late comes after that."""
        return time.monotonic() - self._renewed > LAPSED_SECONDS or not self.place.exists(self.name)

    def _renew(self) -> None:
        while not self._over.wait(RENEWED_SECONDS):
            with contextlib.suppress(Exception):  # whatever the store's library raises: the next one may do
                if self._lost():
                    return
                self._put()

    def _wait_for_others(self) -> None:
        """Return when there is no other lease; delete those that lapse."""
        pause = RENEWED_SECONDS / 5
        enough = round(LAPSED_SECONDS / pause)  # looks: a pause of this process counts as one
        seen: dict[str, tuple[bytes, int]] = {}  # content of each, and how many looks saw it
        told = False
        while others := self._others():
            for name, content in others.items():
                before, looks = seen.get(name, (content, 0))
                seen[name] = before, looks + 1
                if content == before:
                    if looks > enough:
                        self.place.remove(name)
                    elif looks > enough / 2 and not told:
                        told = True
                        print(
                            f"{self.what}: another process left a lease. It lapses if it is not renewed for "
                            f"{LAPSED_SECONDS:g} s.", file=sys.stderr,
                        )  # fmt: skip
                    continue
                # Of two that ask at the same time, the one of the lower name goes on.
                if content.startswith(_HOLDS.encode()) or name < self.name:
                    raise CacheError(
                        f"{self.what}: only one process may write it at a time, got another at work as "
                        f"{name.rpartition('.')[0]}. Wait for it to end, then run this again."
                    )
                seen[name] = content, 1
            time.sleep(pause)

    def _others(self) -> dict[str, bytes]:
        """Name → content of the leases that exclude this one."""
        found = {}
        for name in self.place.names():
            lease = _NAME.fullmatch(name)
            if lease and name != self.name and (lease[1] == self.key or EVERYTHING in (lease[1], self.key)):
                with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
                    found[name] = self.place.read(name)
        return found
