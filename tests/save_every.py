"""Checkpoints after so many steps, whatever time these take: a clock that moves on by one at each look."""

from collections.abc import Callable
from itertools import count
from types import ModuleType, SimpleNamespace
from typing import Any


def save_every(
    steps: int, module: ModuleType, patch: Callable[[ModuleType, str, Any], None] = setattr
) -> None:
    """Let a training loop save every ``steps``. It looks at the clock once per step and per checkpoint."""
    patch(module, "time", SimpleNamespace(monotonic=count().__next__))
    patch(module, "CHECKPOINT_SECONDS", steps)
