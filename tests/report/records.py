"""Tasks whose truth is known, as distill leaves them: in memory, or as the files of a project."""

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
from kdcache.params import read_params
from kdcache.report.findings import Record
from kdcache.students.results import mean_curves, summarise_arms

KL = {"name": "kl", "temperature": 2.0}
RECIPES: dict[str, Any] = {
    "head": {"method": "head"},
    "ce": {},
    "kl": {"inter_class": KL},
    "kl+gram": {"inter_class": KL, "inter_instance": {"name": "gram"}},
    "feature": {"feature": {"name": "feature_mse"}},
    "full": {"method": "full", "lr": 1e-4},
}
# Accuracy in percent, over all the rows and seeds that there could be.
LIFTED = {"head": 60, "ce": 66, "kl": 74, "kl+gram": 76, "feature": 66, "full": 82, "teacher": 82}
LEVEL = dict.fromkeys(LIFTED, 70)


def build_record(
    truth: Mapping[str, float], task: str = "wic", seeds: int = 3, rows: int = 600, seed: int = 0
) -> Record:
    """A task with two classes whose arms are this good.

    Args:
        truth: arm → accuracy in percent; ``teacher`` among them, and perhaps ``teacher_member``, one
            per seed.
        task: its name.
        seeds: of each student.
        rows: to validate on.
        seed: of the draws.
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
            results += [_result(arm, k, scores[k], faithful[k]) for k in range(seeds)]
    teacher = {"accuracy": float((agreed["teacher", 0] == labels).mean()), "rows": rows}
    cost = {"training_steps": 3, "training_examples": 90, "forward_examples": 300}
    metrics = {
        "task": task, "metric": "accuracy", "rows": {"train": 50, "validation": rows},
        "majority": {"accuracy": 0.5, "rows": rows},
        "teacher": {"folds": 2, "all_rows": teacher, "cached": teacher, "cost": cost},
        "arm_order": list(dict.fromkeys(result["arm"] for result in results)),
        "arms": summarise_arms(results), "diverged": [],
    }  # fmt: skip
    split = frame[["example_id", "group"]]
    return Record(metrics, mean_curves(results), pd.concat(frames), split, ("no", "yes"), {"cache": "abc"})


def _result(arm: str, seed: int, accuracy: float, agreement: float) -> dict[str, Any]:
    method = RECIPES.get(arm, {}).get("method", "prefix")
    taught = [term["name"] for key, term in RECIPES.get(arm, {}).items() if isinstance(term, dict)]
    shares = {f"share_{term}": 1 / (len(taught) + 1) for term in ("ce", *taught)}
    scores = {"tune_accuracy": accuracy}
    return {
        "arm": arm, "seed": seed, "method": method, "diagnostics": {},
        "validation": {"accuracy": accuracy, "agreement": agreement, "rows": 600},
        "steps": 0 if method == "head" else 10, "probe_steps": 5,
        "prompt_parameters": 8, "head_parameters": 2,
        "examples": 0 if method == "head" else 160,
        "history": [{"epoch": e, **scores, **shares} for e in range(1 if method == "head" else 3)],
    }  # fmt: skip


def write_project(folder: Path, records: list[Record], recipes: Mapping[str, Any]) -> Path:
    """The files that the report reads."""
    params = read_params(ROOT / "params.yaml")
    params["tasks"] = [record.name for record in records]
    params["distill"]["arms"] = dict(recipes)
    for name in (
        "metrics",
        "curves",
        "predictions",
        *(f"{of}/{t}" for of in ("data", "cache") for t in params["tasks"]),
    ):
        (folder / name).mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for record in records:
        task = record.name
        (folder / f"metrics/{task}.json").write_text(json.dumps(record.metrics))
        record.curves.to_csv(folder / f"curves/{task}.csv", index=False)
        record.predictions.to_parquet(folder / f"predictions/{task}.parquet")
        record.rows.to_parquet(folder / f"data/{task}/validation.parquet")
        identity = {"task": task, "labels": list(record.labels), "weights_sha256": "0" * 64}
        manifest = Manifest(identity, {}, {}, describe_columns(cache_schema(2, {})))
        manifest.write(folder / "cache" / task / MANIFEST)
    return folder
