"""How far a unit of work is: told by what does it, wherever that is, and shown as one bar over all units."""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

_listeners: list[Callable[[int], object]] = []


def tell(count: int) -> None:
    """Say that so much more of the unit at hand is done; nobody needs to listen."""
    if _listeners:
        _listeners[-1](count)


@contextlib.contextmanager
def heard_by(listener: Callable[[int], object]) -> Iterator[None]:
    """Hand what is told in the block to a listener."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.pop()


class UnitBar(tqdm):  # type: ignore[type-arg]
    """A bar over units of known sizes, which tell how far they are, or only that they are done.

    Args:
        sizes: unit → what it adds to the bar in all.
        done: what had been done before.
        options: of tqdm.
    """

    def __init__(self, sizes: Mapping[Any, int], done: int = 0, **options: Any) -> None:
        super().__init__(total=done + sum(sizes.values()), initial=done, **options)
        self.sizes, self.told = sizes, dict[Hashable, int]()

    def during(self, unit: Hashable, count: int) -> None:
        """Show that so much more of a unit is done; at most all of it, though a part is done twice."""
        count = min(count, self.sizes[unit] - self.told.get(unit, 0))
        self.told[unit] = self.told.get(unit, 0) + count
        self.update(count)

    def after(self, unit: Hashable) -> None:
        """Show that a unit is done."""
        self.during(unit, self.sizes[unit])
