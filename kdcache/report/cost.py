"""What the cache saves: forward passes of the teacher, against one in every step of every student."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdcache.report.roles import Recipe, learns_from_teacher
from kdcache.report.summary import Table

FORMULA = (
    "A live teacher reads every example of every step of every student with a teacher's loss: per student "
    "as many examples as it is trained on after the head start, which is not counted, and with it no arm "
    "that is a head alone. The cache has paid for itself after (examples read for the cache) / (examples "
    "per student) students; with wall times, after (seconds of caching) / (examples per student / rate), "
    "where the rate is (examples read for the cache) / (seconds of caching)."
)


@dataclass(frozen=True)
class Saving:
    """Of one task, in examples that a teacher reads.

    Args:
        task: its name.
        cached: for the cache, folds and evaluation rows included.
        live: what all students with a teacher's loss were trained on.
        students: how many these are.
    """

    task: str
    cached: int
    live: int
    students: int

    @property
    def break_even(self) -> float | None:
        """After how many students the cache has paid for itself; None without such students.

        >>> Saving("wic", cached=1704, live=14040, students=9).break_even
        1.0923076923076922
        """
        return self.cached * self.students / self.live if self.live else None


def savings(tasks: Sequence[Mapping[str, Any]], recipes: Mapping[str, Recipe | None]) -> list[Saving]:
    """Of each task.

    Args:
        tasks: their metrics, as distill wrote them.
        recipes: arm → as ``distill.arms`` has it.
    """
    found = []
    for task in tasks:
        arms = [
            arm for name, arm in task["arms"].items()
            if learns_from_teacher(recipes.get(name)) and arm["examples"]  # a head alone has none
        ]  # fmt: skip
        students = sum(len(arm["validation"][task["metric"]]["seeds"]) for arm in arms)
        cached = task["teacher"]["cost"]["forward_examples"]
        found.append(Saving(task["task"], cached, sum(arm["examples"] for arm in arms), students))
    return found


def saving_table(found: Sequence[Saving]) -> Table:
    """In counts, which no machine changes."""
    rows = [
        [
            s.task, str(s.cached), str(s.live), str(s.students),
            "—" if s.break_even is None else f"{s.break_even:.1f}",
        ]
        for s in found
    ]  # fmt: skip
    header = ["task", "for the cache", "live, all students", "students", "students to break even"]
    return Table("Examples that a teacher reads", header, rows)


def live_table(found: Sequence[Saving], timings: Sequence[Mapping[str, Any]]) -> Table:
    """The same in seconds of this machine, for the tasks whose cache was built on it."""
    seconds = {entry["task"]: entry["seconds"] for entry in timings if entry["stage"] == "cache_teacher"}
    rows = []
    for s in found:
        spent = seconds.get(s.task)
        if not spent or not s.cached or not s.students:
            continue
        rate = s.cached / spent
        live = s.live / rate
        rows.append([
            s.task, f"{rate:.0f}", f"{spent:.1f}", f"{live / s.students:.1f}", f"{live - spent:+.1f}",
            f"{s.break_even:.1f}",
        ])  # fmt: skip
    header = [
        "task", "teacher, examples/s", "caching, s", "live, s per student", "saved on all students, s",
        "students to break even",
    ]  # fmt: skip
    return Table("Break-even against live distillation, as measured on this machine", header, rows)
