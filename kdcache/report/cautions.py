"""What a reader must know before any gain: arms not done, unequal steps, a teacher with nothing to give."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.cache.manifest import read_manifest
from kdcache.digests import file_digest
from kdcache.errors import CacheError, DataError
from kdcache.plain_json import read_json
from kdcache.project import TEACHERS, Project
from kdcache.report.comparisons import steps_per_student
from kdcache.report.findings import Findings
from kdcache.report.tables import base_probe_score, percent
from kdcache.stats.estimates import decimal
from kdcache.stats.two_projects import Side
from kdcache.store.location import Location
from kdcache.students.curves import read_curves, still_rising

ENOUGH_SEEDS = 3
OWN_BASE = "the linear probe of the model that the teacher started from"


@dataclass(frozen=True)
class Sentence:
    """One thing that the report says.

    Args:
        topic: a question or a word or two, with its punctuation.
        text: whole sentences.
    """

    topic: str
    text: str


def cautions(findings: Findings) -> list[Sentence]:
    """Say what limits the answer; nothing where nothing does."""
    return [
        *_few_seeds(findings), *_not_done(findings), *_worth_distilling(findings), *_unequal_steps(findings)
    ]  # fmt: skip


def few_seeds(seeds: int) -> str | None:
    """Say what so few seeds cannot tell, and what to do; None for enough."""
    if seeds >= ENOUGH_SEEDS:
        return None
    if seeds == 1:
        what = "Some arms were trained once: intervals cover new examples, but not new seeds."
    else:
        what = f"Some arms have {seeds} seeds, so intervals over seeds are very wide."
    return f"{what} Set distill.seeds to [0, 1, 2] or more and train again."


def _few_seeds(findings: Findings) -> list[Sentence]:
    text = few_seeds(findings.seeds)
    return [Sentence("Too few seeds.", text)] if text else []


def list_words(names: list[str]) -> str:
    """Join words: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def not_done(findings: Findings) -> dict[str, dict[str, float]]:
    """Find the arms that may gain from more steps: arm → task → rise at the end, a share of 1."""
    rises: dict[str, dict[str, float]] = {}
    for record in findings.records:
        if rows := record.metrics["rows"].get("tune"):
            found = still_rising(record.curves, f"tune_{record.metrics['metric']}", rows)
            for arm, rise in found.items():
                rises.setdefault(arm, {})[record.name] = rise
    return {arm: rises[arm] for arm in findings.arms if arm in rises}


def _not_done(findings: Findings) -> list[Sentence]:
    rises = not_done(findings)
    if not rises:
        return []
    told = {
        arm: ", ".join(f"{task} {decimal(100 * rise, '+')}" for task, rise in by_task.items())
        for arm, by_task in rises.items()
    }
    arms = ", ".join(f"`{arm}` ({on_tasks})" for arm, on_tasks in told.items())
    text = (
        "These arms score best on tune in the last tenth of their steps, in points over all that came "
        f"before: {arms}. More steps may help them: raise the steps or epochs of distill, or of the arm."
    )
    if findings.baseline in rises:
        text += f" A gain over `{findings.baseline}` may then come from more steps, not from the teacher."
    return [Sentence("Not done.", text)]


def _unequal_steps(findings: Findings) -> list[Sentence]:
    """Name compared arms that took different numbers of steps; a probe, which takes none, is left out."""
    pairs = [(c.arm, c.over) for c in (findings.lift, *findings.comparisons) if c]
    if findings.upper and findings.baseline:
        pairs.append((findings.upper, findings.baseline))
    told = []
    for arm, over in dict.fromkeys(pairs):
        for task in findings.metrics:
            one, other = steps_per_student(task, arm), steps_per_student(task, over)
            if one and other and one != other:
                told.append(f"`{arm}` {one} and `{over}` {other} on {task['task']}")
    if not told:
        return []
    text = f"These compared arms took different numbers of optimizer steps: {'; '.join(told)}."
    return [Sentence("Unequal steps.", f"{text} A gain may come from steps, not from the teacher.")]


def _worth_distilling(findings: Findings) -> list[Sentence]:
    """Compare each teacher with what frozen encoders give to a linear probe."""
    asked = [task for task in findings.metrics if _probes(task, findings.control, findings.baseline)]
    told = {task["task"]: weak_teacher(task, findings.control, findings.baseline) for task in asked}
    below = [text for text in told.values() if text]
    if above := [name for name, text in told.items() if not text]:
        below.insert(0, f"The teacher is above the linear probes of frozen encoders on {list_words(above)}.")
    return [Sentence("Is there anything to distil?", " ".join(below))] if below else []


def weak_teacher(task: Mapping[str, Any], control: str | None, baseline: str | None) -> str | None:
    """Say what scores at least as high as a task's teacher, and what to do; None if nothing does.

    Args:
        task: its metrics, as distill wrote them.
        control: an arm that is a linear probe of the students' backbone, if there is one.
        baseline: an arm that learns without the teacher.
    """
    teacher, probes = _teacher_score(task), _probes(task, control, baseline)
    better = [probe for probe, score in probes.items() if score >= (teacher or 0)]
    if teacher is None or not better:
        return None
    named = f"is not better than {list_words([f'{probe} ({percent(probes[probe])})' for probe in better])}"
    if better == [OWN_BASE]:  # the students have less, so that it teaches them all the same
        return (
            f"On {task['task']} fine-tuning added nothing: the teacher ({percent(teacher)}) {named}. "
            "Train it longer (train_teacher)."
        )
    return (
        f"Nothing on {task['task']}: the teacher ({percent(teacher)}) {named}. "
        "Take a larger teacher, or train it longer (train_teacher)."
    )


def _probes(task: Mapping[str, Any], control: str | None, baseline: str | None) -> dict[str, float]:
    """What a teacher is compared with: name → score; nothing without a teacher."""
    if _teacher_score(task) is None:
        return {}
    scores = {
        "the linear probe of the students' backbone": _control_score(task, control),
        OWN_BASE: base_probe_score(task, task["metric"]),
    }
    probes = {name: score for name, score in scores.items() if score is not None}
    if probes and baseline in task["arms"]:
        score = task["arms"][baseline]["validation"][task["metric"]]["mean"]
        probes[f"the baseline `{baseline}`"] = score
    return probes


def pair_cautions(sides: Sequence[Side], tasks: Sequence[str], project: Project | None) -> list[str]:
    """Say which of two compared arms are not done, where the teacher has nothing to give, or is another.

    Args:
        sides: the arms. What is known of them lies beside their predictions, in metrics/ and curves/.
        tasks: the tasks.
        project: whose caches its own arms should have learned from; None knows of none.
    """
    rising: dict[str, list[str]] = {}
    weak: list[str] = []
    taught_by: dict[str, dict[Side, str]] = {}
    for task, side in itertools.product(tasks, sides):
        folder = side.folder_of(task).parent
        path, curves = folder / "metrics" / f"{task}.json", folder / "curves" / f"{task}.csv"
        if not (path.is_file() and curves.is_file()):
            continue
        metrics = read_json(path)
        if "cache" in metrics and (side.arm in TEACHERS or metrics["arms"].get(side.arm, {}).get("targets")):
            taught_by.setdefault(task, {})[side] = metrics["cache"]
        if rows := metrics["rows"].get("tune"):
            found = still_rising(read_curves(curves), f"tune_{metrics['metric']}", rows)
            if side.arm in found:
                rising.setdefault(side.arm, []).append(task)
        untaught = [arm for arm, of in metrics["arms"].items() if of["targets"] is None]
        control = next((arm for arm in untaught if metrics["arms"][arm]["method"] == "head"), None)
        if text := weak_teacher(metrics, control, sides[1].arm if sides[1].arm in untaught else None):
            weak.append(text)
    told = [
        f"{arm} is not done on {list_words(list(dict.fromkeys(on)))}: it scores best on tune at the end of "
        "its steps. More may help it: raise the steps or epochs of distill, or of the arm."
        for arm, on in rising.items()
    ]
    told += list(dict.fromkeys(weak))
    return told + [text for task, of in taught_by.items() for text in _other_caches(task, of, project)]


def require_together(side: Side, task: str) -> None:
    """Refuse predictions that are not those that distill wrote together with the metrics beside them.

    Raises:
        DataError: they are not.
    """
    predictions = side.folder_of(task) / f"{task}.parquet"
    path = predictions.parent.parent / "metrics" / f"{task}.json"
    wanted = read_json(path).get("sha256", {}).get("predictions") if path.is_file() else None
    if wanted and file_digest(predictions) != wanted:
        raise DataError(
            f"{predictions}: it must be the file that distill wrote together with {path}, got another. Train "
            f"the students of {task} again."
        )


def _other_caches(task: str, taught_by: Mapping[Side, str], project: Project | None) -> list[str]:
    """Say where a task's arms learned from two caches, or from another than the project has now."""
    if len(set(taught_by.values())) > 1:
        arms = " and ".join(f"{side.folder_of(task).as_posix()}:{side.arm}" for side in taught_by)
        return [f"{task}: {arms} have two caches: a difference may come from the teacher, not from the arm."]
    if project is None:
        return []
    own = {Path(paths.predictions).resolve() for paths in project.paths.lookup}
    ours = {side.arm: digest for side, digest in taught_by.items() if side.folder_of(task).resolve() in own}
    if not ours:
        return []
    location = Location.parse(project.paths.cache, task)
    try:
        now = read_manifest(location).digest
    except (CacheError, OSError):  # what is compared lies in the predictions
        return []
    return [
        f"{task}: the predictions of {arm} are of another cache than {location} holds now. Train the "
        "students again."
        for arm, digest in ours.items()
        if digest != now
    ]


def _teacher_score(task: Mapping[str, Any]) -> float | None:
    teacher, metric = task["teacher"], task["metric"]
    return teacher["all_rows"].get(metric, teacher["cached"].get(metric))


def _control_score(task: Mapping[str, Any], control: str | None) -> float | None:
    arm = task["arms"].get(control, {})
    return arm["validation"][task["metric"]]["mean"] if arm.get("method") == "head" else None
