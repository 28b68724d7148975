"""Scoring teacher and chosen students on a labelled split, and counting how often it was looked at."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kdcache.cache.join import batches_of
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.reader import load_cache
from kdcache.data.splits import digest_of, metric_columns, open_tables
from kdcache.data.task import Task
from kdcache.digests import file_digest, value_digest
from kdcache.errors import CacheStale, DataError, ModelError
from kdcache.project import ALL_ROWS, Project, require_task, write_json
from kdcache.report.tables import NONE, Table
from kdcache.serve.prepared_split import logits_of, open_prepared, prepared_rows, student_folders
from kdcache.stats.estimates import Estimate, decimal, effect, level
from kdcache.stats.runs import tally_runs
from kdcache.store.location import Location
from kdcache.students.results import LEARNED_FROM, RESULT, read_result, trained_alike

Look = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What is known of a split.

    Args:
        path: the file that keeps it.
        looks: one entry per different question asked of the split, in order.
        number: of the look asked for, from 1.
        again: whether it had been taken before, so that nothing was computed.
    """

    path: Path
    looks: list[Look]
    number: int
    again: bool

    @property
    def look(self) -> Look:
        """The look asked for."""
        return self.looks[self.number - 1]


def evaluate(project: Project, task_name: str, split: str, arms: Sequence[str]) -> Evaluation:
    """Score the teacher and the students of some arms, and write evaluations/<task>-<split>.json.

    The same question twice is one look: the answer comes from the file. Nothing else in kdcache scores test.

    Args:
        project: the project.
        task_name: the task.
        split: a prepared split with labels.
        arms: their students of all seeds, of the pipeline or else in runs/.

    Raises:
        ParamsError: an unknown task or arm.
        DataError: the split was not prepared, or has fewer than two groups of labelled rows.
        ModelError: an arm has no student.
        CacheError: the cache is damaged, or was made of other rows.
    """
    require_task(project, task_name)
    data = Path(project.paths.data) / task_name
    task, table = open_prepared(project, task_name, split)
    labelled = table["label"].to_numpy() >= 0
    if not labelled.any():
        raise DataError(
            f"{data}: {split} must have labels to score it, got 0 labelled rows. Name another split."
        )
    location = Location.parse(project.paths.cache, task_name)
    manifest = read_manifest(location)
    _require_rows(project, task_name, manifest)
    folders = {arm: _of_one_arm(project, task_name, arm, manifest) for arm in dict.fromkeys(arms)}
    if split in LEARNED_FROM:
        print(
            f"evaluate: teachers and students were trained on {split} or chosen by it, so they score higher "
            "there than on new rows.",
            file=sys.stderr,
        )
    strangers = {arm for arm, of in folders.items() if _by_another(of.values(), manifest)}
    if strangers:
        print(
            "evaluate: not compared with the teacher, as they learned from another one, or it is not known: "
            f"{', '.join(sorted(strangers))}",
            file=sys.stderr,
        )
    asked = {
        "rows": file_digest(data / f"{split}.parquet"),
        "teacher": manifest.teacher_digest if split in manifest.splits else None,
        "students": {
            folder.as_posix(): _folder_digest(folder) for of in folders.values() for folder in of.values()
        },
    }
    path = Path(project.paths.evaluations) / f"{task_name}-{split}.json"
    with project.alone(path):  # a look that another process takes meanwhile must not be lost
        looks: list[Look] = json.loads(path.read_text(encoding="utf-8"))["looks"] if path.is_file() else []
        digest = value_digest(asked)
        known = [(look["digest"], *look["metrics"]) for look in looks]
        if (question := (digest, *task.metrics_of(split))) in known:
            number = known.index(question)
            over = looks[number]["over_teacher"]  # older versions compared every arm with the teacher
            looks[number]["over_teacher"] = {arm: one for arm, one in over.items() if arm not in strangers}
            return Evaluation(path, looks, number + 1, again=True)
        rows = prepared_rows(table, task, split)
        logits = {
            arm: {s: logits_of(project, task, rows, f) for s, f in of.items()} for arm, of in folders.items()
        }
        if split in manifest.splits:
            cached = load_cache(location, split).align(
                table["example_id"].to_pylist(), table["content_hash"].to_pylist()
            )
            logits = {ALL_ROWS: {0: cached.all_rows_teacher().logits}} | logits
        kept = {arm: {seed: z[labelled] for seed, z in of.items()} for arm, of in logits.items()}
        scores = _scores(task, table.filter(pa.array(labelled)), split, kept, strangers)
        looks.append({"digest": digest, **asked, **scores})
        write_json({"task": task_name, "split": split, "looks": looks}, path)
        return Evaluation(path, looks, len(looks), again=False)


def _require_rows(project: Project, task_name: str, manifest: Manifest) -> None:
    """Refuse a cache of other rows than are prepared: what students learned from would not be known."""
    _, files = open_tables(project.paths.data, task_name)
    for split in (name for name in LEARNED_FROM if name in files and name in manifest.data):
        if digest_of(batches_of(files[split])()) != manifest.data[split]:
            raise CacheStale(
                f"cache of {task_name}: it must be of the rows that are prepared, got others in {split}. "
                f"{manifest.rebuild}"
            )


def _of_one_arm(project: Project, task_name: str, arm: str, manifest: Manifest) -> dict[int, Path]:
    """An arm's students that learned from the rows of the cache, in the way of the newest: seed → folder.

    Others may have been trained on rows that are scored now. They are named.

    Raises:
        ModelError: there is none.
    """
    folders = student_folders(project, task_name, arm)
    results = {folder: result for folder in folders.values() if (result := read_result(folder))}

    def learned_now(result: Mapping[str, Any]) -> bool:
        if "data" not in result:  # of an older version
            return bool(result.get("cache") == manifest.digest)
        return all(manifest.data.get(split) == digest for split, digest in result["data"].items())

    fitting = [folder for folder, result in results.items() if learned_now(result)]
    if not fitting:
        folder = next(iter(folders.values()))
        again = f"kdcache distill --task {task_name} --arm {arm}"
        if folder.is_relative_to(project.paths.students):
            again = "dvc repro"
        raise ModelError(
            f"{folder}: it must have learned from the rows of the cache of {task_name}, got others, perhaps "
            f"those to score. Run: {again}"
        )

    kept = trained_alike(fitting)
    if left := [folder.as_posix() for folder in folders.values() if folder not in kept]:
        print(
            "evaluate: left out, as they have other rows, another cache or backbone, or other settings: "
            f"{', '.join(left)}",
            file=sys.stderr,
        )
    return {seed: folder for seed, folder in folders.items() if folder in kept}


def _by_another(students: Iterable[Path], manifest: Manifest) -> bool:
    """Whether students learned from another teacher than that of the cache."""

    def of_another(result: Mapping[str, Any]) -> bool:
        taught = result.get("targets") and result["cache"] != manifest.digest
        return bool(taught and result.get("teacher") != manifest.teacher_digest)

    return any(map(of_another, filter(None, map(read_result, students))))


def evaluation_table(found: Evaluation) -> Table:
    """Tabulate a look: each score with its interval, and the students' points over the teacher."""
    look = found.look
    metrics = look["metrics"]
    rows = []
    for arm, of_arm in sorted(look["scores"].items(), key=lambda item: (item[0] != ALL_ROWS, item[0])):
        over = look["over_teacher"].get(arm)
        cells = [_cell(of_arm[metric]) for metric in metrics]
        rows.append([arm, *cells, _cell(over, "+") if over else NONE, str(of_arm[metrics[0]]["seeds"])])
    header = [
        "",
        *(metric.replace("_", " ") for metric in metrics),
        f"over the teacher, {metrics[0]}",
        "seeds",
    ]
    caption = f"Percent on {look['labelled']} labelled rows in {look['groups']} groups (95% CI)"
    if any(of_arm[metrics[0]]["seeds"] == 1 for arm, of_arm in look["scores"].items() if arm != ALL_ROWS):
        caption += ". An interval of one seed covers new examples, not new seeds"
    return Table(caption, header, rows)


def _scores(
    task: Task, table: pa.Table, split: str, logits: dict[str, dict[int, np.ndarray]], strangers: Set[str]
) -> Look:
    """Score all; ``strangers`` are arms that the teacher did not teach, which are not compared with it."""
    labels, groups = table["label"].to_numpy(), table["group"].to_pylist()
    scores: dict[str, dict[str, Any]] = {arm: {} for arm in logits}
    over: dict[str, Any] = {}
    metrics = task.metrics_of(split)
    for metric in metrics:
        runs = tally_runs(metric, labels, logits, groups, metric_columns(table, task))
        for arm in logits:
            scores[arm][metric] = _plain(level(runs, arm))
            if arm not in {ALL_ROWS, *strangers} and ALL_ROWS in logits and metric == metrics[0]:
                over[arm] = _plain(effect(runs, arm, ALL_ROWS))
    counts = {"labelled": len(labels), "groups": len(set(groups))}
    return {**counts, "metrics": list(metrics), "scores": scores, "over_teacher": over}


def _plain(found: Estimate) -> dict[str, Any]:
    ends = {"points": found.points, "low": found.low, "high": found.high}
    return {name: round(value, 4) for name, value in ends.items()} | {"seeds": found.seeds}


def _cell(found: dict[str, Any], sign: str = "") -> str:
    return f"{decimal(found['points'], sign)} ({decimal(found['low'])} to {decimal(found['high'])})"


def _folder_digest(folder: Path) -> str:
    """Digest of a student's weights and what it says of itself."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors")]
    return value_digest([[path.name, file_digest(path)] for path in files if path.name != RESULT])
