"""The cost of teachers and students in counts, and what the cache saves over a live teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdcache.report.comparisons import is_taught
from kdcache.report.tables import NONE, Table

FORMULA = (
    "A live teacher would read every example of every step of every student that learns from it. Linear "
    "probes take no steps. The cache pays for itself after (examples read for the cache) / (examples per "
    "student) students."
)


@dataclass(frozen=True)
class Saving:
    """The examples that the teacher of one task reads.

    Args:
        task: the name of the task.
        cached: for the cache, folds and evaluation rows included.
        live: what it would read for all students that learn from it.
        students: the number of these students.
    """

    task: str
    cached: int
    live: int
    students: int

    @property
    def break_even(self) -> float | None:
        """The number of students after which the cache has paid for itself; None without students.

        >>> Saving("wic", cached=1704, live=14040, students=9).break_even
        1.0923076923076922
        """
        return self.cached * self.students / self.live if self.live else None


def savings(tasks: Sequence[Mapping[str, Any]]) -> list[Saving]:
    """Compute the saving on each task from its metrics."""
    found = []
    for task in tasks:
        arms = [arm for arm in task["arms"].values() if is_taught(arm) and arm["examples"]]
        students = sum(len(arm["validation"][task["metric"]]["seeds"]) for arm in arms)
        cached = task["teacher"]["cost"].get("forward_examples")
        if cached is None:  # of a cache that others wrote
            continue
        found.append(Saving(task["task"], cached, sum(arm["examples"] for arm in arms), students))
    return found


def saving_table(found: Sequence[Saving]) -> Table:
    """Tabulate savings in counts, which no machine changes."""
    rows = [
        [
            s.task,
            str(s.cached),
            str(s.live),
            str(s.students),
            NONE if s.break_even is None else f"{s.break_even:.1f}",
        ]
        for s in found
    ]
    header = ["task", "for the cache", "live, all students", "students", "students to break even"]
    return Table("Examples that a teacher reads", header, rows)


def timed_saving_table(found: Sequence[Saving], timings: Sequence[Mapping[str, Any]]) -> Table:
    """Tabulate savings in seconds, for the tasks whose cache was built on this machine."""
    seconds = {entry["task"]: entry["seconds"] for entry in timings if entry["stage"] == "cache_teacher"}
    rows = []
    for s in found:
        spent = seconds.get(s.task)
        if spent and s.cached and s.students:
            rate = s.cached / spent
            live = s.live / rate
            rows.append(
                [s.task, f"{rate:.0f}", f"{spent:.1f}", f"{live / s.students:.1f}", f"{live - spent:+.1f}"]
            )
    header = ["task", "teacher, examples/s", "caching, s", "live, s per student", "saved on all students, s"]
    return Table("What the cache saved on this machine", header, rows)


def cost_table(tasks: Sequence[Mapping[str, Any]]) -> Table:
    """Tabulate the cost of teachers and students in counts, which no machine changes."""
    rows = []
    for task in tasks:
        spent = task["teacher"]["cost"]
        counts = [
            str(spent.get(key, NONE)) for key in ("training_steps", "training_examples", "forward_examples")
        ]
        rows.append([task["task"], _teachers(task["teacher"]), "all", *counts])
        for name in task["arm_order"]:
            arm = task["arms"][name]
            counts = [arm[key] for key in ("trained_parameters", "steps", "examples")]
            rows.append([task["task"], f"{name}, all seeds", *map(str, counts), "0"])
    header = ["task", "", "trained parameters", "steps", "examples", "teacher's forward examples"]
    return Table("Cost in counts; linear probes take no steps", header, rows, text_columns=2)


def _teachers(teacher: Mapping[str, Any]) -> str:
    """Say how many teachers there are, and of what.

    >>> _teachers({"folds": 2})
    '3 teachers (all rows, 2 folds)'
    >>> _teachers({"folds": 0, "members": {"accuracy": {"seeds": {"0": 0.9, "1": 0.8}}}})
    '2 teachers (2 seeds)'
    """
    scores = next(iter(teacher.get("members", {}).values()), {"seeds": [0]})
    seeds, folds = len(scores["seeds"]), teacher["folds"]
    made_of = [f"all rows, {folds} folds"] if folds else []
    made_of += [f"{seeds} seeds"] if seeds > 1 else []
    return f"{seeds * (1 + folds)} teachers ({'; '.join(made_of)})" if made_of else "teacher"
