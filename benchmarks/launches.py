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

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "students")]

from conftest import build_tiny_model  # noqa: E402
from engine import KL_GRAM, build_rows, operations_per_step  # noqa: E402

from kdcache.losses import Term  # noqa: E402
from kdcache.students.prompted_backbone import Backbone  # noqa: E402

KL = {"inter_class": Term("kl", 1.0, 2.0)}
ARMS: list[dict[str, Any]] = [{"terms": KL}, {"terms": KL_GRAM}, {}, {"terms": KL, "lr": 0.02}]


def main() -> None:
    """Print the table."""
    folder = Path(tempfile.mkdtemp()) / "model"
    build_tiny_model(folder, num_layers=6)
    backbone = Backbone.load(folder)
    rows = build_rows(folder, backbone)

    def operations(students: int, arms: int) -> float:
        changes = [ARMS[seed % arms] | {"seed": seed} for seed in range(students)]
        return operations_per_step(folder, backbone, rows, changes)

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
