"""Operations that a step of K students starts, which bound small students on a GPU: kernel launches.

    python benchmarks/launches.py

Counts the operations below autograd in one step of training, forward and backward, views excluded, on
the CPU and on a random encoder of 6 layers: "alone" is K times one student, "stacked" is K students of
one arm in one pass, "4 arms" the same K spread over four arms. A GPU starts one kernel or more for each.
Prints Markdown.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "students")]

from conftest import build_tiny_model  # noqa: E402
from engine import KL_GRAM, build_rows, build_run  # noqa: E402

from kdcache.losses import Term  # noqa: E402
from kdcache.students.loop import train_students  # noqa: E402
from kdcache.students.prompted_backbone import Backbone  # noqa: E402

KL = {"inter_class": Term("kl", 1.0, 2.0)}
ARMS: list[dict[str, Any]] = [{"terms": KL}, {"terms": KL_GRAM}, {}, {"terms": KL, "lr": 0.02}]
STEPS = 3


class Count(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not (func.is_view or "detach" in str(func))
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Print the table."""
    folder = Path(tempfile.mkdtemp()) / "model"
    build_tiny_model(folder, num_layers=6)
    backbone = Backbone.load(folder)
    rows = build_rows(folder, backbone)

    def operations(students: int, arms: int) -> float:
        """Of a step: the difference of two lengths, so that looks cancel."""

        def count(epochs: int) -> int:
            runs = [
                build_run(folder, backbone, rows, seed=seed, epochs=epochs, **ARMS[seed % arms])
                for seed in range(students)
            ]
            for run in runs:
                run.history.append({"step": 0})
                run._looks = frozenset()
            with Count() as counted:
                train_students(runs)
            return counted.operations

        return (count(1 + STEPS) - count(1)) / (4 * STEPS)

    one = operations(1, 1)
    kinds: dict[str, Callable[[int], float]] = {
        "alone": lambda k: k * one,
        "stacked": lambda k: operations(k, 1),
        "4 arms": lambda k: operations(k, 4),
    }
    print(f"| students | {' | '.join(kinds)} |")
    print("|---:|" + "---:|" * len(kinds))
    for k in (1, 4, 12, 48):
        print(f"| {k} | {' | '.join(f'{count(k):.0f}' for count in kinds.values())} |")


if __name__ == "__main__":
    main()
