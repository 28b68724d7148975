"""Write studies/larger_teacher.json from the finished projects.

Usage: python studies/summarise.py COMMIT DATE MACHINE NOTE [--to NAME.json]

Reads predictions, curves and metrics of few_labels, few_per_class, all_labels and mpnet_prompts, and the
peers that benchmarks/peers.py left in their folders. Each arm takes, task by task, the learning rate
whose mean curve is highest on tune; no score on validation decides anything. Of relation, whose arms
have one rate, it reads the comparisons that its report makes.
"""

import argparse
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

import kdcache
from kdcache.project import ALL_ROWS, CACHED, MEMBER, TEACHERS
from kdcache.stats.estimates import Estimate, effect, level, mean_estimate
from kdcache.stats.runs import Runs, read_runs
from kdcache.stats.verdicts import gap_closed, non_inferiority

STUDIES = Path(__file__).parent
REGIMES = {
    "few labels": ("few_labels", "few_per_class"),
    "all labels": ("all_labels",),
    "few labels, MPNet-base as student": ("mpnet_prompts",),
}
RELATION = "relation"
SUPERGLUE = ("wic", "rte", "cb", "copa", "boolq")
SETFIT, DISTILLED, REGRESSION = "SetFit", "SetFit distilled", "logistic regression"
ROOM, ABOVE_HEAD, MARGIN = 3.0, 5.0, 1.0  # points, see docs/study.md
COMPARISONS = (
    ("kl", "ce"), ("kl+gram", "kl"), ("kl", SETFIT), ("ce", "head"), ("kl", "head"), ("kl-of-3", "kl"),
    ("head+kl", "head"), ("head+kl", "ce"), ("head+kl", "kl"), ("kl-alone", "head+kl"), ("head+kl", SETFIT),
    ("kl", "feature_mse"), ("full", "ce"), ("full+kl", "full"), ("full+kl", SETFIT),
    ("kl", DISTILLED), ("head+kl", DISTILLED), ("full+kl", DISTILLED),
    ("kl-all-rows", "kl"), ("kl-all-rows", "ce"), ("kl-all-rows", "head"), ("head+kl-all-rows", "head+kl"),
    ("head+kl-all-rows", "head"),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a project found on a task."""

    runs: Runs
    metrics: dict[str, Any]
    rates: dict[str, str]  # arm → the rate it took
    at_the_end: list[str]  # arms that are best on tune at their last step
    classes: dict[str, str]  # arm, at every rate → digest of the classes that its students predict
    shares: dict[str, dict[str, float]]  # arm → term → share of the gradient, mean after step 0


def read(project: Path, task: str, rates: bool = True) -> Found:
    """Read a task's files, and the peers among the arms; with ``rates`` each arm at its best one."""
    metrics = json.loads((project / "metrics" / f"{task}.json").read_text(encoding="utf-8"))
    path = project / "predictions" / f"{task}.parquet"
    predictions = pd.read_parquet(path)
    curves = pd.read_csv(project / "curves" / f"{task}.csv")
    score = f"tune_{metrics['metric']}"
    best = curves.groupby("arm", sort=False)[score].max()
    chosen: dict[str, str] = {}
    for arm in best.index:
        name = arm.partition("@")[0] if rates else arm
        if name not in chosen or best[arm] > best[chosen[name]]:
            chosen[name] = arm
    students = predictions[predictions["arm"].isin([*chosen.values(), *TEACHERS])]
    students = students.replace({"arm": {arm: name for name, arm in chosen.items()}})
    rows = pd.read_parquet(project / "data" / task / "validation.parquet")
    ends = []
    for name, arm in chosen.items():
        curve = curves[curves["arm"] == arm].sort_values("step")
        if len(curve) > 1 and curve[score].iloc[-1] > curve[score].iloc[:-1].max():
            ends.append(name)
    peers = _peers(project / "peers" / f"{task}.json", students)
    runs = read_runs(pd.concat([students, *peers]), metrics["metric"], rows)
    taken = {name: arm.partition("@")[2] for name, arm in chosen.items() if name != arm}
    return Found(runs, metrics, taken, ends, class_digests(predictions), _shares(curves))


def _shares(curves: pd.DataFrame) -> dict[str, dict[str, float]]:
    columns = [column for column in curves if column.startswith("share_")]
    means = curves[curves["step"] > 0].groupby("arm", sort=False)[columns].mean()
    return {
        str(arm): {
            column.removeprefix("share_"): round(float(value), 4) for column, value in row.dropna().items()
        }
        for arm, row in means.iterrows()
    }


def class_digests(predictions: pd.DataFrame) -> dict[str, str]:
    """Arm → digest of the class that each of its students, or teachers, predicts for each row."""
    classes = predictions["logits"].map(np.argmax).astype("<i2")
    ordered = predictions.assign(classes=classes).sort_values(["seed", "example_id"], kind="stable")
    found = ordered.groupby("arm", sort=False)["classes"]
    return {str(arm): hashlib.sha256(some.to_numpy().tobytes()).hexdigest()[:16] for arm, some in found}


def _peers(path: Path, students: pd.DataFrame) -> list[pd.DataFrame]:
    """Predictions of the peers: their classes as logits of 0 and 1."""
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    first = students[(students["arm"] == "ce") & (students["seed"] == 0)]
    classes = np.eye(len(first["logits"].iloc[0]))
    runs = {
        (arm, int(seed)): values for arm in (SETFIT, DISTILLED) for seed, values in found.get(arm, {}).items()
    }
    runs |= {(REGRESSION, int(seed)): found[REGRESSION] for seed in students["seed"].unique()}
    return [
        first.assign(arm=arm, seed=seed, logits=list(classes[np.array(values)]))
        for (arm, seed), values in runs.items()
    ]


def as_numbers(estimate: Estimate) -> dict[str, float]:
    """An estimate as the file holds it."""
    return {
        "points": round(estimate.points, 4), "low": round(estimate.low, 4), "high": round(estimate.high, 4),
        "seeds": estimate.seeds,
    }  # fmt: skip


def compare(found: Mapping[str, Found], arm: str, over: str) -> dict[str, Any] | None:
    """The effect on each task that has both arms, and the mean over all and over two halves of them."""
    effects = {
        task: effect(f.runs, arm, over) for task, f in found.items() if {arm, over} <= f.runs.tallies.keys()
    }
    if not effects:
        return None
    groups = {"mean": list(effects)}
    groups["mean of SuperGLUE"] = [task for task in effects if task in SUPERGLUE]
    groups["mean of the powered tasks"] = [task for task in effects if task not in SUPERGLUE]
    means = {name: _mean(effects, tasks) for name, tasks in groups.items() if tasks}
    return {"arm": arm, "over": over, "tasks": {t: as_numbers(e) for t, e in effects.items()}, **means}


def _mean(effects: Mapping[str, Estimate], tasks: Iterable[str]) -> dict[str, float]:
    return as_numbers(mean_estimate([effects[task] for task in tasks]))


def _reaches(runs: Runs, teacher: str) -> str:
    return non_inferiority(runs, "kl", teacher, "head", MARGIN, ABOVE_HEAD).verdict


def summarise(found: Mapping[str, Found]) -> dict[str, Any]:
    """Everything the page says of a regime."""
    tasks: dict[str, Any] = {}
    for task, f in found.items():
        teacher = MEMBER if MEMBER in f.runs.tallies else CACHED
        names = [arm for arm in f.runs.tallies if arm not in TEACHERS]
        tasks[task] = {
            "metric": f.metrics["metric"], "rows": f.metrics["rows"],
            "majority": round(100 * f.metrics["majority"][f.metrics["metric"]], 2),
            "teacher_probe": round(100 * f.metrics["teacher"]["probe"]["validation"][f.metrics["metric"]], 2),
            "teacher": as_numbers(level(f.runs, teacher)),
            "arms": {arm: as_numbers(level(f.runs, arm)) for arm in names},
            "rates": f.rates, "still rising": f.at_the_end,
            "classes": f.classes, "teacher over ce": as_numbers(effect(f.runs, teacher, "ce")),
        }  # fmt: skip
        if ALL_ROWS in f.runs.tallies:
            tasks[task]["teacher on all rows"] = as_numbers(level(f.runs, ALL_ROWS))
        if "kl" in f.runs.tallies:
            tasks[task] |= {
                "teacher over kl": as_numbers(effect(f.runs, teacher, "kl")),
                "kl against the teacher": _reaches(f.runs, teacher),
            }
    room = [
        task for task, f in found.items()
        if "kl" in f.runs.tallies and tasks[task]["teacher over ce"]["points"] >= ROOM
    ]  # fmt: skip
    shares = None
    if room:
        kept = [found[task].runs for task in room]
        upper = MEMBER if all(MEMBER in runs.tallies for runs in kept) else CACHED
        share = gap_closed(kept, "kl", "ce", upper)
        shares = {"tasks": room, "percent": share.percent, "low": share.low, "high": share.high}
    comparisons = [compare(found, arm, over) for arm, over in COMPARISONS]
    return {"tasks": tasks, "share of teacher - ce": shares, "comparisons": [c for c in comparisons if c]}


def summarise_relation() -> dict[str, Any] | None:
    """Levels, comparisons and shares of the gradient of the relation study; None where it did not run."""
    project = STUDIES / RELATION
    found = {path.stem: read(project, path.stem, rates=False) for path in _finished(project)}
    if not found:
        return None
    pairs = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))["report"]["comparisons"]
    comparisons = [compare(found, arm, over) for arm, over in pairs]
    tasks = {
        task: {
            "arms": {arm: as_numbers(level(f.runs, arm)) for arm in f.runs.tallies},
            "still rising": f.at_the_end, "shares of the gradient": f.shares, "classes": f.classes,
        }
        for task, f in found.items()
    }  # fmt: skip
    return {"tasks": tasks, "comparisons": [c for c in comparisons if c]}


def _finished(project: Path) -> list[Path]:
    return sorted((project / "metrics").glob("*.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("commit", "date", "machine", "note"):
        parser.add_argument(name)
    parser.add_argument("--to", default="larger_teacher.json", help="a file of this folder")
    given = vars(parser.parse_args())
    target = STUDIES / given.pop("to")
    made_by = {"kdcache": kdcache.__version__, **given}
    regimes: dict[str, Any] = {}
    for regime, projects in REGIMES.items():
        found = {
            path.stem: read(STUDIES / project, path.stem)
            for project in projects
            for path in _finished(STUDIES / project)
        }
        if found:
            regimes[regime] = summarise(found)
    if relation := summarise_relation():
        regimes[RELATION] = relation
    target.write_text(
        json.dumps({"made_by": made_by, **regimes}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(
        f"{target.name}: " + ", ".join(f"{regime} {len(r['tasks'])} tasks" for regime, r in regimes.items())
    )


if __name__ == "__main__":
    main()
