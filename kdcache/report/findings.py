"""Every number of the report, computed once from the metrics and predictions of all tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdcache.project import ALL_ROWS, CACHED, MEMBER, TEACHERS
from kdcache.report.comparisons import (
    Comparison,
    Pair,
    comparable,
    compare_arms,
    effects,
    has_prompt,
    is_taught,
    planned_pairs,
    standing_pairs,
    steps_per_student,
)
from kdcache.stats.estimates import Estimate, level, mean_estimate
from kdcache.stats.plan import components, half_width, seeds_needed, seeds_to_know
from kdcache.stats.runs import Runs, read_runs
from kdcache.stats.verdicts import GapShare, Verdict, gap_closed, non_inferiority

if TYPE_CHECKING:
    import pandas as pd

LEAST_GAP = 1.0  # points that the upper arm must gain over the control: below, there is no gap to close
PRECISION = 0.5  # points to which the primary effect should be known


@dataclass(frozen=True)
class ReportParams:
    """Section ``report``: which arm is which, and what is compared.

    Args:
        control: the arm without prompts. An arm that is not above it does not work.
        baseline: the prompt arm that learns from the labels only. Gains are measured over it.
        upper: the arm where the gap above the baseline ends. It may be absent; then no share of the gap is
            reported.
        comparisons: pairs [arm, over]. The first is the primary comparison, the others are corrected together
            (Holm). If empty, every other prompt arm is compared with the baseline; the primary comparison is
            then that of the first arm that learns from the teacher.
    """

    control: str = "head"
    baseline: str = "ce"
    upper: str = "full"
    comparisons: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Record:
    """What is known of one task.

    Args:
        metrics: as distill wrote them.
        curves: one row per arm and step that was looked at.
        predictions: of every arm and seed, and of the teacher, on validation.
        rows: the validation split: ``example_id``, ``group`` and other columns that metrics read.
        identity: what made the cache: name → digest or setting.
    """

    metrics: Mapping[str, Any]
    curves: "pd.DataFrame"
    predictions: "pd.DataFrame"
    rows: "pd.DataFrame"
    identity: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name of the task."""
        return str(self.metrics["task"])


@dataclass(frozen=True)
class SeedPlan:
    """How many seeds it takes to know the primary effect.

    Args:
        arm: the arm of the primary comparison.
        over: the arm it is compared with.
        seeds: per arm now, on the task with the fewest.
        half: half the width of the interval now, in points.
        to_know: seeds per arm for an interval of ± ``PRECISION``; None if no number suffices.
        to_find: seeds per arm that find a true effect of ``PRECISION`` with 80% power; None if none does.
    """

    arm: str
    over: str
    seeds: int
    half: float
    to_know: int | None
    to_find: int | None


@dataclass(frozen=True)
class Findings:
    """All numbers; tasks and arms are in the order of the parameters.

    Args:
        records: of each task.
        params: the section of the parameters.
        arms: arm → its entry in the metrics of the first task that has it.
        control: ``params.control``; None if it is not among the arms. The same for the next two.
        baseline: ``params.baseline``.
        upper: ``params.upper``.
        distilled: the arm that represents distillation; None if no prompt arm learns from the teacher.
        teacher: the teacher's name in the predictions; where each student has a member of an ensemble as its
            teacher, the name of the members.
        levels: task → arm or teacher → score under the first metric.
        mean_levels: arm or teacher → mean over tasks, if every task has it.
        gains: arm → task → effect over the baseline.
        mean_gains: arm → mean over its tasks.
        gap_tasks: tasks where the upper arm beats the control; None if this is not known.
        shares: arm → share of the gap between baseline and upper arm, over ``gap_tasks``.
        comparisons: the primary one first.
        unpaired: planned comparisons of arms that share no seed on any task.
        verdicts: task → arm → whether it reaches the teacher.
        not_working: task → arms that are not above the control.
        plan: of the primary comparison.
    """

    records: Sequence[Record]
    params: ReportParams
    arms: Mapping[str, Mapping[str, Any]]
    control: str | None
    baseline: str | None
    upper: str | None
    distilled: str | None
    teacher: str
    levels: dict[str, dict[str, Estimate]]
    mean_levels: dict[str, Estimate]
    gains: dict[str, dict[str, Estimate]]
    mean_gains: dict[str, Estimate]
    gap_tasks: list[str] | None
    shares: dict[str, GapShare]
    comparisons: list[Comparison]
    unpaired: list[Pair]
    verdicts: dict[str, dict[str, Verdict]]
    not_working: dict[str, list[str]]
    plan: SeedPlan | None

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks."""
        return [record.name for record in self.records]

    @property
    def metrics(self) -> list[Mapping[str, Any]]:
        """The metrics of each task."""
        return [record.metrics for record in self.records]

    @property
    def seeds(self) -> int:
        """The number of seeds, of the arm with the fewest."""
        arms = (arm for metrics in self.metrics for arm in metrics["arms"].values())
        return min(len(cell["seeds"]) for arm in arms for cell in arm["validation"].values())

    @property
    def lift(self) -> Comparison | None:
        """The distilled arm over the baseline; None if either is absent or they share no seed."""
        if self.distilled is None or self.baseline is None or self.distilled not in self.gains:
            return None
        found = [c for c in self.comparisons if (c.arm, c.over) == (self.distilled, self.baseline)]
        gain, mean = self.gains[self.distilled], self.mean_gains[self.distilled]
        return found[0] if found else Comparison(self.distilled, self.baseline, gain, mean, "unplanned")


def compute_findings(records: Sequence[Record], params: ReportParams) -> Findings:
    """Compute everything.

    Raises:
        ParamsError: a comparison is not of two arms.
        DataError: predictions do not belong together; see ``stats.runs.read_runs``.
    """
    arms = {name: entry for r in reversed(records) for name, entry in r.metrics["arms"].items()}
    arms = {name: arms[name] for r in records for name in r.metrics["arm_order"]}
    diverged = {student["arm"] for r in records for student in r.metrics["diverged"]}
    planned = planned_pairs(params.comparisons, {*arms, *diverged})
    control, baseline, upper = (
        name if name in arms else None for name in (params.control, params.baseline, params.upper)
    )
    pairs = planned or standing_pairs(arms, control, baseline)
    taught = [name for name, arm in arms.items() if has_prompt(arm) and is_taught(arm)]
    over_baseline = [arm for arm, over in pairs if over == baseline and arm in taught]
    runs = {r.name: read_runs(r.predictions, r.metrics["metric"], r.rows) for r in records}
    teacher = _teacher(records, arms, runs)
    levels = {
        task: {arm: level(found, arm) for arm in (*arms, *TEACHERS) if arm in found.tallies}
        for task, found in runs.items()
    }
    everywhere = [arm for arm in (*arms, *TEACHERS) if all(arm in of_task for of_task in levels.values())]
    gains = {arm: effects(runs, arm, baseline) for arm in arms if arm != baseline}
    gap = effects(runs, upper, control)
    gap_tasks = [task for task, found in gap.items() if found.points >= LEAST_GAP] if gap else None
    comparisons = [_with_steps(found, records) for found in compare_arms(runs, pairs)]
    return Findings(
        records=records,
        params=params,
        arms=arms,
        control=control,
        baseline=baseline,
        upper=upper,
        distilled=next(iter((*over_baseline, *taught)), None),
        teacher=teacher,
        levels=levels,
        mean_levels={arm: mean_estimate([of_task[arm] for of_task in levels.values()]) for arm in everywhere},
        gains={arm: of_arm for arm, of_arm in gains.items() if of_arm},
        mean_gains={arm: mean_estimate(list(of_arm.values())) for arm, of_arm in gains.items() if of_arm},
        gap_tasks=gap_tasks,
        shares=_shares(
            [runs[task] for task in gap_tasks or ()],
            [name for name, arm in arms.items() if is_taught(arm)],
            baseline,
            upper,
        ),
        comparisons=comparisons,
        unpaired=[pair for pair in planned if pair not in [(c.arm, c.over) for c in comparisons]],
        verdicts={task: _verdicts(found, arms, control, teacher) for task, found in runs.items()},
        not_working={r.name: below for r in records if (below := not_working(r.metrics, control))},
        plan=_seed_plan(runs, *pairs[0]) if pairs else None,
    )


def not_working(task: Mapping[str, Any], control: str | None) -> list[str]:
    """Return the arms that are not above the control on the task's first metric.

    Args:
        task: its metrics, as distill wrote them.
        control: the control; without one, or without a student of it, nothing is known.
    """
    scores = {arm: task["arms"][arm]["validation"][task["metric"]]["mean"] for arm in task["arm_order"]}
    if control not in scores:
        return []
    return [arm for arm in task["arm_order"] if arm != control and scores[arm] <= scores[control]]


def _with_steps(found: Comparison, records: Sequence[Record]) -> Comparison:
    return replace(found, steps={
        r.name: (steps_per_student(r.metrics, found.arm), steps_per_student(r.metrics, found.over))
        for r in records if r.name in found.by_task
    })  # fmt: skip


def _teacher(records: Sequence[Record], arms: Mapping[str, Any], runs: Mapping[str, Runs]) -> str:
    by_member = any(arm["targets"] == "member" for arm in arms.values())
    crossed = any(record.metrics["teacher"]["folds"] for record in records)
    wanted = MEMBER if by_member and not crossed else ALL_ROWS  # with folds, a member is a mean over folds
    # without folds the cached teacher is the teacher on all rows
    return wanted if all(wanted in found.tallies for found in runs.values()) else CACHED


def _shares(
    runs: Sequence[Runs], arms: Sequence[str], baseline: str | None, upper: str | None
) -> dict[str, GapShare]:
    if baseline is None or upper is None:
        return {}
    there = {arm: [task for task in runs if comparable(task, arm, baseline, upper)] for arm in arms}
    return {arm: gap_closed(tasks, arm, baseline, upper) for arm, tasks in there.items() if tasks}


def _verdicts(runs: Runs, arms: Mapping[str, Any], control: str | None, teacher: str) -> dict[str, Verdict]:
    if control is None or not comparable(runs, control, teacher):
        return {}
    others = [arm for arm in arms if arm != control and comparable(runs, arm, teacher)]
    return {arm: non_inferiority(runs, arm, teacher, control) for arm in others}


def _seed_plan(runs: Mapping[str, Runs], arm: str, over: str) -> SeedPlan | None:
    now = effects(runs, arm, over)
    if not now or any(of_task.seeds < 2 for of_task in now.values()):
        return None
    pilots = [components(runs[task], arm, over) for task in now]
    mean = mean_estimate(list(now.values()))
    to_know, to_find = seeds_to_know(pilots, PRECISION), seeds_needed(pilots, PRECISION)
    return SeedPlan(arm, over, mean.seeds, half_width(mean), to_know, to_find)
