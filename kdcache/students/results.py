"""What comes of students: the files of each, and what metrics, curves and predictions hold of all."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.cache.manifest import Manifest
from kdcache.data.metrics import compute_metrics, majority_metrics
from kdcache.data.splits import metric_columns
from kdcache.data.task import Task
from kdcache.digests import file_digest, value_digest
from kdcache.encoder.load import WEIGHTS
from kdcache.encoder.parts import last_linear
from kdcache.errors import ModelError
from kdcache.plain_json import read_json
from kdcache.project import ALL_ROWS, CACHED, MEMBER, write_json
from kdcache.students.about import read_about
from kdcache.students.folder import save_student
from kdcache.students.run import Run
from kdcache.students.student import predict
from kdcache.students.training_rows import StudentRows
from kdcache.students.transfer import donor_digests

LEARNED_FROM = ("train", "tune", "unlabelled")
RESULT = "result.json"  # in each student's folder
PREDICTIONS = "validation.parquet"  # likewise

Result = Mapping[str, Any]
SplitRows = Mapping[str, StudentRows]


def diagnostic_splits(task: Task, splits: SplitRows) -> list[str]:
    """Return the task's extra splits that are there, with labels."""
    return [
        split for split in task.diagnostics if split in splits and bool((splits[split].labels >= 0).any())
    ]


def trained_as(result: Result) -> tuple[Any, ...]:
    """Return what seeds must share to be one arm: cache, backbone, settings, steps, and start of the prompts.

    Args:
        result: of a student, as ``write_student`` writes it.
    """
    return tuple(result.get(key) for key in ("cache", "backbone", "settings", "steps", "donor"))


def read_result(folder: Path) -> Result | None:
    """Read what ``write_student`` wrote of a student; None where there is none, or not a whole one."""
    try:
        result = dict(read_json(folder / RESULT))
        # Results of older versions have no backbone; a folder without student.json holds no student.
        result.setdefault("backbone", read_about(folder).backbone_sha256)
    except (OSError, ValueError, TypeError, ModelError):
        return None
    whole = {"arm", "seed", "cache", "settings", "validation", "history"} <= result.keys()
    return result if whole and folder.name == f"{result['arm']}-{result['seed']}" else None


def trained_alike(students: Iterable[Path]) -> list[Path]:
    """Return those folders of an arm's students that were trained as the newest of them, in their order."""
    results = {folder: result for folder in students if (result := read_result(folder))}
    by_age = sorted(results, key=lambda folder: (folder / RESULT).stat().st_mtime)
    return [folder for folder in results if trained_as(results[folder]) == trained_as(results[by_age[-1]])]


def write_student(
    run: Run, task: Task, splits: SplitRows, manifest: Manifest, backbone: Path, folder: Path
) -> None:
    """Score a trained student and write its folder; of a diverged one, write only what happened.

    Args:
        run: finished.
        task: the student's.
        splits: with ``validation``.
        manifest: of the cache that taught it.
        backbone: the shared backbone's folder.
        folder: where to.
    """
    spec, student = run.spec, run.student
    result: dict[str, Any] = {
        "arm": spec.name, "seed": run.seed, "method": spec.method, "cache": manifest.digest,
        "teacher": manifest.teacher_digest,
        "backbone": file_digest(backbone / WEIGHTS), "settings": spec.as_settings(), "steps": run.steps,
        "donor": donor_digests([spec]),
        "data": {
            name: manifest.data[name] for name in LEARNED_FROM
            if name in manifest.data and (name != "unlabelled" or spec.unlabelled)
        },
    }  # fmt: skip
    if run.diverged:
        step, last = run.diverged
        write_json(result | {"diverged": {"step": step, "last_finite_loss": last}}, folder / RESULT)
        return

    scored = ["validation", *diagnostic_splits(task, splits)]
    logits = {}
    for split in scored:
        rows = splits[split]
        frozen = rows.inputs.read_by(student.backbone) if student.model is None else None
        logits[split] = predict(student, rows.encoded, frozen=frozen)
    # Without steps the pooler stays as it was loaded.
    fitted = student.head if run.steps else last_linear(student.head, task.num_outputs)
    scores = {split: splits[split].taught_by(spec.targets, run.seed).score(logits[split]) for split in scored}
    result |= {
        "objective": spec.describe(),
        "targets": spec.targets if spec.terms else None,
        "validation": scores.pop("validation"),
        "diagnostics": scores,
        "history": run.history,
        "step": run.steps if run.best.step is None else run.best.step,
        "examples": run.examples,
        "probe_strength": run.probe.strength,
        "prompt_parameters": sum(p.numel() for p in student.tuned),
        "head_parameters": sum(p.numel() for p in fitted.parameters() if p.requires_grad),
    }
    about = {"max_length": spec.max_length, "task": task}
    card = _card(run, task, result["validation"], manifest)
    validation = splits["validation"]
    result |= save_student(student, folder, backbone, about, card, validation.encoded)
    predictions = _logits_table(validation, logits["validation"])
    pq.write_table(predictions, folder / PREDICTIONS, write_page_checksum=True)
    write_json(result, folder / RESULT)


def _card(run: Run, task: Task, scores: Mapping[str, float], manifest: Manifest) -> dict[str, str]:
    """Facts for the student's model card."""
    spec, seed = run.spec, run.seed
    member = f", member {seed}" if spec.targets == "member" else ""
    validation = ", ".join(f"{name} {score:.4f}" for name, score in scores.items() if name != "rows")
    return {
        "task": task.name,
        "labels": ", ".join(task.labels),
        "template": task.template,
        "arm": spec.name,
        "seed": str(seed),
        "method": spec.method + (f" ({late} layers)" if (late := run.student.late_layers) else ""),
        "objective": spec.describe(),
        f"validation ({scores.get('rows', 0)} rows)": validation,
        "teacher": manifest.teacher_digest + member,
        "cache": manifest.digest,
        "command": f"`kdcache distill --task {task.name} --arm {spec.name} --seed {seed}`",
    }


def summarise(results: Sequence[Result], task: Task, splits: SplitRows, manifest: Manifest) -> dict[str, Any]:
    """Make what metrics/<task>.json holds: each arm over its seeds, the teacher, the majority, the cost.

    Args:
        results: of single students, as ``write_student`` writes them.
        task: theirs.
        splits: what they were trained and scored on.
        manifest: of the cache that taught them.
    """
    validation = splits["validation"]
    names, columns = task.metrics, metric_columns(validation.table, task)
    labels = validation.labels.cpu().numpy()
    finished = [result for result in results if "diverged" not in result]
    members = {
        m: compute_metrics(names, labels, logits, columns)
        for m, logits in enumerate(validation.cached.members)
    }
    all_rows = manifest.all_rows_teacher
    return {
        "task": task.name,
        "metric": task.metrics[0],
        "cache": manifest.digest,
        "rows": {split: len(rows) for split, rows in splits.items()},
        "truncated": {split: float(rows.encoded.truncated.mean()) for split, rows in splits.items()},
        "majority": majority_metrics(names, labels, task.num_labels, columns),
        "teacher": {
            "folds": manifest.num_folds,
            "all_rows": all_rows.get("validation", {}),
            "cached": manifest.metrics.get("validation", {}),
            "diagnostics": {split: all_rows[split] for split in diagnostic_splits(task, splits)},
            "cost": manifest.cost,
            "probe": manifest.probe or {},
        }
        | ({"members": over_seeds(members)} if members else {}),
        "arm_order": list(dict.fromkeys(result["arm"] for result in finished)),
        "arms": summarise_arms(finished),
        "diverged": [result for result in results if "diverged" in result],
    }


def sealed(summary: Mapping[str, Any], curves: Path, predictions: Path) -> dict[str, Any]:
    """Return a summary with the digests of what the report reads beside it, and with its own."""
    beside = {"curves": file_digest(curves), "predictions": file_digest(predictions)}
    whole = {**summary, "sha256": beside}
    return whole | {"digest": value_digest(whole)}


def summarise_arms(results: Sequence[Result]) -> dict[str, Any]:
    """Put each arm's students together.

    Args:
        results: of single students that finished.

    Returns:
        arm → method, objective, targets (None without a teacher), trained parameters, counts added over
        seeds, and per metric the mean, the standard deviation and the value of each seed, on validation and
        on each diagnostic split.
    """
    arms = {}
    for name in dict.fromkeys(result["arm"] for result in results):
        students = [result for result in results if result["arm"] == name]
        first = students[0]
        arms[name] = {
            "method": first["method"],
            "objective": first["objective"],
            "targets": first["targets"],
            "trained_parameters": first["prompt_parameters"] + first["head_parameters"],
            **{key: sum(s[key] for s in students) for key in ("steps", "examples")},
            "validation": over_seeds({s["seed"]: s["validation"] for s in students}),
            "diagnostics": {
                split: over_seeds({s["seed"]: s["diagnostics"][split] for s in students})
                for split in first["diagnostics"]
            },
        }
    return arms


def over_seeds(by_seed: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Summarise scores of one student or teacher per seed: metric → mean, sd, seeds; ``rows`` is no score."""
    names = [name for name in next(iter(by_seed.values())) if name != "rows"]
    return {name: _spread({seed: scores[name] for seed, scores in by_seed.items()}) for name in names}


def _spread(by_seed: Mapping[int, float]) -> dict[str, Any]:
    values = list(by_seed.values())
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "seeds": {str(seed): value for seed, value in by_seed.items()},
    }


def gather_predictions(results: Sequence[Result], validation: StudentRows, students: Path) -> pa.Table:
    """Put the logits of all students and teachers together: what paired statistics need.

    Args:
        results: of students that finished.
        validation: the rows.
        students: the folder that holds each student's.

    Returns:
        One row per arm, seed and validation row.
    """
    tables = []
    for result in results:
        table = pq.read_table(students / f"{result['arm']}-{result['seed']}" / PREDICTIONS)
        tables.append(_with_arm(table, result["arm"], result["seed"]))
    cached = validation.cached
    tables.append(_with_arm(_logits_table(validation, cached.logits), CACHED, 0))
    if cached.logits_plain is not None:
        tables.append(_with_arm(_logits_table(validation, cached.logits_plain), ALL_ROWS, 0))
    for member, logits in enumerate(cached.members):
        tables.append(_with_arm(_logits_table(validation, logits), MEMBER, member))
    return pa.concat_tables(tables)


def _logits_table(rows: StudentRows, logits: np.ndarray) -> pa.Table:
    table = rows.table.select(["example_id", "label", "group"])
    return table.append_column("logits", pa.array(list(logits), pa.list_(pa.float32())))


def _with_arm(table: pa.Table, arm: str, seed: int) -> pa.Table:
    table = table.append_column("arm", pa.array([arm] * len(table), pa.string()))
    return table.append_column("seed", pa.array([seed] * len(table), pa.int64()))
