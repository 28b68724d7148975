"""Metrics and predictions of all tasks → every number that the report says, each computed once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdcache.report.comparisons import Comparison, comparable, compare, effects
from kdcache.report.matrices import Relations, relate
from kdcache.report.roles import Recipe, Roles, find_roles, learns_from_member, learns_from_teacher
from kdcache.report.summary import not_working
from kdcache.stats.estimates import Estimate, level, mean_estimate
from kdcache.stats.plan import Components, components, half_width, seeds_needed, seeds_to_know
from kdcache.stats.runs import ALL_ROWS, CACHED, MEMBER, TEACHERS, Runs, read_runs
from kdcache.stats.verdicts import GapShare, Verdict, gap_closed, non_inferiority

LEAST_GAP = 1.0  # points that full tuning must gain over head: below, there is nothing to close
WANTED = 0.5  # points to which the relation's effect should be known


@dataclass(frozen=True)
class Record:
    """What is known of one task.

    Args:
        metrics: as distill wrote it.
        curves: one row per arm and epoch.
        predictions: of every arm and seed, and of the teacher, on validation.
        rows: the validation split: ``example_id``, ``group`` and what metrics read beside.
        labels: names of the classes.
        identity: what made the cache: name → digest or setting.
    """

    metrics: Mapping[str, Any]
    curves: pd.DataFrame
    predictions: pd.DataFrame
    rows: pd.DataFrame
    labels: Sequence[str]
    identity: Mapping[str, str]

    @property
    def name(self) -> str:
        """Of the task."""
        return str(self.metrics["task"])


@dataclass(frozen=True)
class Plan:
    """What it takes to know the primary effect.

    Args:
        arm, over: the arms that it is of.
        seeds: of each arm now, on the task with fewest.
        half: of the interval now, in points.
        to_know: seeds per arm for an interval of ± ``WANTED``; None where no number will do.
        to_find: seeds per arm that find a true effect of ``WANTED`` with a power of 80 %.
    """

    arm: str
    over: str
    seeds: int
    half: float
    to_know: int | None
    to_find: int | None


@dataclass(frozen=True)
class Findings:
    """All of it; tasks and arms in the order of the parameters.

    Args:
        records: of each task.
        recipes: arm → as the parameters have it.
        roles: which arm plays which part.
        arms: all arms with a student.
        teacher: the name of the teacher on all rows among the predictions; where each student has a
            member of an ensemble for a teacher, of these.
        levels: task → metric → arm or teacher → score.
        mean_levels: arm or teacher → mean over tasks of the first metric, where every task has it.
        gains: arm → task → effect over ``ce``.
        mean_gains: arm → mean over its tasks.
        gap_tasks: those on which full tuning beats ``head``; None without such arms.
        shares: arm → share of the gap between ``ce`` and ``full``, over ``gap_tasks``.
        comparisons: the primary one first.
        verdicts: task → arm → whether it reaches the teacher.
        not_working: task → prompt arms at or below ``head``.
        plan: of the primary comparison.
        relations: task → matrices of teacher, ``ce``, ``kl`` and the relation's (or the distilled) student.
    """

    records: Sequence[Record]
    recipes: Mapping[str, Recipe | None]
    roles: Roles
    arms: list[str]
    teacher: str
    levels: dict[str, dict[str, dict[str, Estimate]]]
    mean_levels: dict[str, Estimate]
    gains: dict[str, dict[str, Estimate]]
    mean_gains: dict[str, Estimate]
    gap_tasks: list[str] | None
    shares: dict[str, GapShare]
    comparisons: list[Comparison]
    verdicts: dict[str, dict[str, Verdict]]
    not_working: dict[str, list[str]]
    plan: Plan | None
    relations: dict[str, Relations]

    @property
    def tasks(self) -> list[str]:
        """Their names."""
        return [record.name for record in self.records]

    @property
    def metrics(self) -> list[Mapping[str, Any]]:
        """Of each task, as distill wrote them."""
        return [record.metrics for record in self.records]

    @property
    def seeds(self) -> int:
        """Of the arm with fewest."""
        arms = (arm for record in self.records for arm in record.metrics["arms"].values())
        return min(len(cell["seeds"]) for arm in arms for cell in arm["validation"].values())


def find(
    records: Sequence[Record],
    recipes: Mapping[str, Recipe | None],
    method: str,
    planned: Sequence[tuple[str, str]] = (),
) -> Findings:
    """Compute everything.

    Args:
        records: of each task.
        recipes: arm → as ``distill.arms`` has it.
        method: of arms that name none.
        planned: (arm, over), the primary comparison first; empty takes the standing questions.

    Raises:
        DataError: predictions that do not belong together; see ``stats.runs.read_runs``.
    """
    roles = find_roles(recipes, method, planned)
    arms = list(dict.fromkeys(arm for record in records for arm in record.metrics["arm_order"]))
    by_metric = {
        record.name: {
            metric: read_runs(record.predictions, metric, record.rows)
            for metric in record.metrics["majority"] if metric != "rows"
        }
        for record in records
    }  # fmt: skip
    runs = {record.name: by_metric[record.name][record.metrics["metric"]] for record in records}
    own = any(learns_from_member(recipes.get(arm)) for arm in arms)
    crossed = any(record.metrics["teacher"]["folds"] for record in records)
    wanted = MEMBER if own and not crossed else ALL_ROWS  # with folds a member is a mean of them
    # without folds the cached teacher is the teacher
    teacher = wanted if all(wanted in of_task.tallies for of_task in runs.values()) else CACHED
    levels = {
        task: {
            metric: {arm: level(r, arm) for arm in (*arms, *TEACHERS) if arm in r.tallies}
            for metric, r in metrics.items()
        }
        for task, metrics in by_metric.items()
    }
    first = {record.name: levels[record.name][record.metrics["metric"]] for record in records}
    everywhere = [arm for arm in (*arms, *TEACHERS) if all(arm in of_task for of_task in first.values())]
    gains = {arm: effects(runs, arm, roles.ce) for arm in arms if arm != roles.ce}
    gap_tasks = _with_gap(runs, roles)
    return Findings(
        records=records,
        recipes=recipes,
        roles=roles,
        arms=arms,
        teacher=teacher,
        levels=levels,
        mean_levels={arm: mean_estimate([of_task[arm] for of_task in first.values()]) for arm in everywhere},
        gains={arm: of_arm for arm, of_arm in gains.items() if of_arm},
        mean_gains={arm: mean_estimate(list(of_arm.values())) for arm, of_arm in gains.items() if of_arm},
        gap_tasks=gap_tasks,
        shares=_shares(
            runs, roles, [arm for arm in arms if learns_from_teacher(recipes.get(arm))], gap_tasks
        ),
        comparisons=compare(runs, roles, gap_tasks, planned),
        verdicts=_verdicts(runs, arms, roles.head, teacher),
        not_working={
            record.name: below for record in records if (below := not_working(record.metrics, roles.head))
        },
        plan=_plan(runs, *(planned[0] if planned else (roles.relation, roles.kl))),
        relations={record.name: found for record in records if (found := _relations(record, roles, teacher))},
    )


def _with_gap(runs: Mapping[str, Runs], roles: Roles) -> list[str] | None:
    found = effects(runs, roles.full, roles.head)
    return [task for task, gap in found.items() if gap.points >= LEAST_GAP] if found else None


def _shares(
    runs: Mapping[str, Runs], roles: Roles, arms: Sequence[str], tasks: Sequence[str] | None
) -> dict[str, GapShare]:
    if roles.full is None or roles.ce is None:
        return {}
    found = {}
    for arm in arms:
        there = [runs[task] for task in tasks or () if comparable(runs[task], arm, roles.ce, roles.full)]
        if there:
            found[arm] = gap_closed(there, arm, roles.ce, roles.full)
    return found


def _verdicts(
    runs: Mapping[str, Runs], arms: Sequence[str], head: str | None, teacher: str
) -> dict[str, dict[str, Verdict]]:
    return {
        task: {
            arm: non_inferiority(r, arm, teacher, head)
            for arm in arms if arm != head and comparable(r, arm, teacher) and comparable(r, head, teacher)
        }
        for task, r in runs.items() if head is not None
    }  # fmt: skip


def _plan(runs: Mapping[str, Runs], arm: str | None, over: str | None) -> Plan | None:
    if arm is None or over is None:
        return None
    pilots: list[Components] = []
    now = effects(runs, arm, over)
    for task, of_task in now.items():
        if of_task.seeds < 2:
            return None
        pilots.append(components(runs[task], arm, over))
    if not pilots:
        return None
    mean = mean_estimate(list(now.values()))
    return Plan(
        arm, over, mean.seeds, half_width(mean), seeds_to_know(pilots, WANTED), seeds_needed(pilots, WANTED)
    )


def _relations(record: Record, roles: Roles, teacher: str) -> Relations | None:
    """Of the students with the least seed that is there, and of what teaches them."""
    taught_by = MEMBER if teacher == MEMBER else CACHED
    by_arm = dict(list(record.predictions.groupby("arm", sort=False)))
    wanted = (taught_by, roles.ce, roles.kl, roles.relation or roles.distilled)
    found = {arm: by_arm[arm] for arm in wanted if arm is not None and arm in by_arm}
    if len(found) < 2 or taught_by not in found:
        return None
    runs = {arm: rows[rows["seed"] == rows["seed"].min()] for arm, rows in found.items()}
    ids = runs[taught_by]["example_id"]
    logits = {
        arm: np.array(rows.set_index("example_id").loc[ids, "logits"].tolist()) for arm, rows in runs.items()
    }
    labels = runs[taught_by]["label"].to_numpy()
    return relate(labels, logits, record.labels, roles.temperature)
