"""Tasks whose true effects are known, as distill leaves them: in memory, or as the files of a project."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from conftest import ROOT
from simulated import World, gain_of

from kdcache.cache.manifest import MANIFEST, Manifest
from kdcache.cache.schema import cache_schema, describe_columns
from kdcache.digests import seal
from kdcache.params import read_params
from kdcache.report.findings import Record, ReportParams
from kdcache.students.curves import mean_curves
from kdcache.students.results import sealed, summarise_arms

# arm → method and targets; others learn a prefix from the cached logits
KINDS: dict[str, tuple[str, str | None]] = {
    "head": ("head", None), "ce": ("prefix", None), "full": ("full", None),
}  # fmt: skip
TERMS = {"kl": ("ce", "kl"), "kl+gram": ("ce", "kl", "gram")}
PARAMS = ReportParams()
BLANK = '<svg viewBox="0 0 1 1"></svg>'  # stands for a figure where none is looked at: drawing takes seconds
# True accuracy in percent, over all possible rows and seeds.
LIFTED = {"head": 60, "ce": 66, "kl": 74, "kl+gram": 76, "feature": 66, "full": 82, "teacher": 82}
LEVEL = dict.fromkeys(LIFTED, 70)


def build_record(
    truth: Mapping[str, float],
    task: str = "wic",
    seeds: int = 3,
    rows: int = 600,
    seed: int = 0,
    kinds: Mapping[str, tuple[str, str | None]] = KINDS,
) -> Record:
    """A task with two classes whose arms are this good.

    Args:
        truth: arm → accuracy in percent; ``teacher`` among them; ``teacher_member`` has one per seed.
        task: the name.
        seeds: number of seeds of each student.
        rows: number of validation rows.
        seed: of the draws.
        kinds: arm → method and targets, where they are not prefix and cached.
    """
    truth = dict(truth) | {"teacher_cached": truth["teacher"]}
    single = ("teacher", "teacher_cached")
    flat = World(dict.fromkeys(truth, 0.0), single, seeds, rows)
    gains = {arm: gain_of(points, flat, arm) for arm, points in truth.items()}
    rng = np.random.default_rng(seed)
    right = dict(zip(gains, World(gains, single, seeds, rows).right(rng), strict=True))
    labels = rng.integers(2, size=rows)
    frame = pd.DataFrame({"example_id": [f"v{i}" for i in range(rows)], "label": labels})
    frame["group"] = frame["example_id"]
    frames, results, agreed = [], [], {}
    for arm, by_seed in right.items():
        for k, of_seed in enumerate(by_seed[: 1 if arm in single else seeds]):
            margin = np.where(of_seed == (labels == 1), 1.0, -1.0) * rng.uniform(0.2, 2.0, rows)
            logits = np.column_stack([-margin, margin]).astype(np.float32)
            frames.append(frame.assign(logits=list(logits), arm=arm, seed=k))
            agreed[arm, k] = logits.argmax(1)
    for arm in truth:
        if not arm.startswith("teacher"):
            scores = [float((agreed[arm, k] == labels).mean()) for k in range(seeds)]
            faithful = [float((agreed[arm, k] == agreed["teacher_cached", 0]).mean()) for k in range(seeds)]
            results += [
                _result(arm, k, kinds.get(arm, ("prefix", "cached")), scores[k], faithful[k])
                for k in range(seeds)
            ]
    teacher = {"accuracy": float((agreed["teacher", 0] == labels).mean()), "rows": rows}
    cost = {"training_steps": 3, "training_examples": 90, "forward_examples": 300}
    metrics = {
        "task": task, "metric": "accuracy", "rows": {"train": 50, "tune": 50, "validation": rows},
        "majority": {"accuracy": 0.5, "rows": rows},
        "teacher": {"folds": 2, "all_rows": teacher, "cached": teacher, "cost": cost},
        "arm_order": list(dict.fromkeys(result["arm"] for result in results)),
        "arms": summarise_arms(results), "diverged": [],
    }  # fmt: skip
    split = frame[["example_id", "group"]]
    return Record(metrics, mean_curves(results), pd.concat(frames), split, {"cache": "abc"})


def _result(
    arm: str, seed: int, kind: tuple[str, str | None], accuracy: float, agreement: float
) -> dict[str, Any]:
    method, targets = kind
    tuned, terms = method != "head", TERMS.get(arm, ("ce",))
    scores = {"tune_accuracy": accuracy} | {f"share_{term}": 1 / len(terms) for term in terms}
    return {
        "arm": arm, "seed": seed, "method": method, "targets": targets, "diagnostics": {},
        "objective": " + ".join(terms),
        "validation": {"accuracy": accuracy, "agreement": agreement, "rows": 600},
        "steps": 10 if tuned else 0, "examples": 160 if tuned else 0,
        "prompt_parameters": 8, "head_parameters": 2,
        "history": [{"step": step, **scores} for step in ((0, 5, 10) if tuned else (0,))],
    }  # fmt: skip


def write_project(folder: Path, records: list[Record]) -> Path:
    """Write the files that the report reads."""
    params = read_params(ROOT / "params.yaml")
    params["tasks"] = [record.name for record in records]
    for name in ("metrics", "curves", "predictions"):
        (folder / name).mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for record in records:
        task = record.name
        (folder / f"data/{task}").mkdir(parents=True)
        (folder / f"cache/{task}").mkdir(parents=True)
        record.curves.to_csv(folder / f"curves/{task}.csv", index=False)
        record.predictions.to_parquet(folder / f"predictions/{task}.parquet")
        made = folder / f"curves/{task}.csv", folder / f"predictions/{task}.parquet"
        (folder / f"metrics/{task}.json").write_text(json.dumps(sealed(record.metrics, *made)))
        record.rows.to_parquet(folder / f"data/{task}/validation.parquet")
        seal(folder / f"data/{task}/validation.parquet")
        identity = {"task": task, "labels": ["no", "yes"], "weights_sha256": "0" * 64}
        manifest = Manifest(identity, {}, {}, describe_columns(cache_schema(2, {})))
        manifest.write(folder / "cache" / task / MANIFEST)
    return folder
