"""The verbs whose answer is a table, as pandas frames; scores are in percent, effects in points."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kdcache.errors import DataError, ParamsError, nearest
from kdcache.project import Project
from kdcache.report.cautions import few_seeds, pair_cautions, require_together
from kdcache.report.evaluate import evaluate as score_split
from kdcache.stats.estimates import Estimate, effect, mean_estimate
from kdcache.stats.two_projects import OWN_FOLDERS, Side, common_tasks, read_across
from kdcache.students.distill import explore


def distill(
    project: Project, task_name: str, arms: Sequence[str] = (), seeds: Sequence[int] = ()
) -> pd.DataFrame:
    """Train students into runs/, as ``kdcache distill`` does.

    Args:
        project: the project.
        task_name: the task.
        arms: of params.yaml; empty takes all.
        seeds: empty takes all of params.yaml.

    Returns:
        One row per arm, and one each for ``majority class`` and ``teacher``. Per metric the mean over seeds
        on validation and its standard deviation (``accuracy``, ``accuracy_sd``), then ``seeds`` and ``steps``
        of one student.

    Raises:
        As ``explore``.
    """
    summary = explore(project, task_name, arms, seeds)
    names = [name for name in summary["majority"] if name != "rows"]
    rows = {"majority class": {name: 100 * summary["majority"][name] for name in names}}
    for arm, found in summary["arms"].items():
        scores = found["validation"]
        rows[arm] = {name: 100 * scores[name]["mean"] for name in names}
        rows[arm] |= {f"{name}_sd": 100 * scores[name]["sd"] for name in names}
        count = len(scores[names[0]]["seeds"])
        rows[arm] |= {"seeds": count, "steps": found["steps"] // count}
    teacher = summary["teacher"]["all_rows"]
    rows["teacher"] = {name: 100 * teacher[name] for name in names if name in teacher}
    return pd.DataFrame.from_dict(rows, orient="index").astype({"seeds": "Int64", "steps": "Int64"})


def evaluate(project: Project, task_name: str, arms: Sequence[str], split: str = "test") -> pd.DataFrame:
    """Score the teacher and students on a split that chose nothing, as ``kdcache evaluate`` does.

    Args:
        project: the project.
        task_name: the task.
        arms: their students of all seeds are scored.
        split: a prepared split with labels.

    Returns:
        One row per arm and metric, and the teacher's: ``percent`` with its 95% interval, ``low`` and
        ``high``, ``over_teacher`` in points, and ``seeds``. ``attrs`` holds ``look`` and ``looks``,
        their count.

    Raises:
        As ``report.evaluate.evaluate``.
    """
    found = score_split(project, task_name, split, arms)
    rows = [
        {"arm": arm, "metric": metric, "percent": cell["points"], "low": cell["low"], "high": cell["high"]}
        | {"over_teacher": _over_teacher(found.look, arm, metric), "seeds": cell["seeds"]}
        for arm, of_arm in found.look["scores"].items()
        for metric, cell in of_arm.items()
    ]
    frame = pd.DataFrame(rows).set_index(["arm", "metric"]).sort_index()
    frame.attrs = {"look": found.number, "looks": len(found.looks)}
    return frame


def compare(
    arm: str, over: str, tasks: Sequence[str] = (), metric: str = "accuracy", project: Project | None = None
) -> pd.DataFrame:
    """Compare two arms on the same rows, of one project or of two, as ``kdcache compare`` does.

    What limits the answer is printed: few seeds, arms that are not done, a teacher with nothing to give,
    two teachers, or another cache than the project has now.

    Args:
        arm: ``ARM`` or ``FOLDER:ARM``; ``teacher`` is one too.
        over: the arm it is compared with.
        tasks: empty takes all that both have predictions of.
        metric: one that needs only labels and logits.
        project: whose folders ``ARM`` alone lies in; None takes predictions/ and runs/predictions/.

    Returns:
        One row per task, and ``mean`` if there are several: ``effect`` in points with its 95% interval,
        ``low`` and ``high``, ``at_least`` (the one-sided 95% lower bound), ``p``, ``seeds`` and ``groups``
        of rows.

    Raises:
        ParamsError: the arms are the same, or one has no name.
        DataError: predictions are missing, of other rows, or not those of the metrics beside them.
    """
    folders = [Path(paths.predictions) for paths in project.paths.lookup] if project else OWN_FOLDERS
    sides = Side.parse(arm, folders), Side.parse(over, folders)
    same = ParamsError(f"Both arms are {sides[0]}. Name two different arms.")
    if str(sides[0]) == str(sides[1]):
        raise same
    known = common_tasks(*sides)
    for name in tasks:
        if name not in known:
            raise DataError(
                f"--task {name}: The two folders have no common predictions of it. {nearest(name, known)}"
            )
    effects: dict[str, Estimate] = {}
    for name in tasks or known:
        files = [(side.folder_of(name) / f"{name}.parquet").resolve() for side in sides]
        if files[0] == files[1] and sides[0].arm == sides[1].arm:
            raise same
        for side in sides:
            require_together(side, name)
        runs, other = read_across(*sides, name, metric)
        effects[name] = effect(runs, sides[0].arm, other)
    if len(effects) > 1:
        effects["mean"] = mean_estimate(list(effects.values()))
    few = few_seeds(min(one.seeds for one in effects.values()))
    for caution in filter(None, [few, *pair_cautions(sides, tasks or known, project)]):
        print(caution)
    rows = {name: _effect_row(found) for name, found in effects.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")


def _effect_row(found: Estimate) -> dict[str, float]:
    return {
        "effect": found.points, "low": found.low, "high": found.high, "at_least": found.interval(0.90)[0],
        "p": found.p, "seeds": found.seeds, "groups": found.groups,
    }  # fmt: skip


def _over_teacher(look: dict[str, dict[str, dict[str, float]]], arm: str, metric: str) -> float | None:
    first = metric == look["metrics"][0]  # type: ignore[index]
    return look["over_teacher"].get(arm, {}).get("points") if first else None
