"""student + data → predictions; no stage of the pipeline, but it knows the layout."""

from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from kdcache.data.splits import existing_splits, metric_columns, read_split, sequences
from kdcache.data.task import Task, read_task
from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_tokenizer, setup
from kdcache.errors import DataError, ModelError, nearest
from kdcache.project import Project, require
from kdcache.serve.submissions import (
    SUBMISSION_NAMES,
    csv_text,
    jsonl_text,
    submission_name,
    superglue_text,
    zip_bytes,
)
from kdcache.students.arms import DistillParams, resolve_arm
from kdcache.students.export import load_folder
from kdcache.students.student import predict as student_predict

PREDICTIONS = "predictions"  # below paths.runs
ZIP = "superglue.zip"

Format = Literal["csv", "jsonl", "superglue"]


def predict(project: Project, task_name: str, split: str, student: Path, form: Format) -> Path:
    """Let one student predict one split, and write the file.

    Args:
        project: the project.
        task_name: the task.
        split: one of the prepared ones.
        student: a student's folder.
        form: of the file.

    Returns:
        Where it was written: runs/predictions/<task>-<split>.<form>, or the benchmark's file name.

    Raises:
        DataError: the split was not prepared.
        ModelError: no student there, or one of another task.
        ParamsError: a submission file of a task that is none of SuperGLUE's.
    """
    data = Path(project.paths.data) / task_name
    task = read_task(data, task_name)
    if split not in (there := existing_splits(data, task)):
        raise DataError(f"{data}: the split must be a prepared one, got {split!r}. {nearest(split, there)}")
    official = form == "superglue"
    name = submission_name(task_name, split) if official else f"{task_name}-{split}.{form}"
    table = read_split(data, split, task)
    ids = table["example_id"].to_pylist()
    logits = _logits(project, task, student, *sequences(table, task))
    if official:
        text = superglue_text(task, split, ids, logits, metric_columns(table, task))
    else:
        text = (csv_text if form == "csv" else jsonl_text)(task, ids, logits)
    path = Path(project.paths.runs) / PREDICTIONS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def student_folder(project: Project, task_name: str, arm: str) -> Path:
    """The pipeline's student of an arm's first seed.

    Raises:
        ParamsError: no such arm.
        ModelError: it was not trained yet.
    """
    params = project.section("distill", DistillParams)
    resolve_arm(params, arm)
    folder = Path(project.paths.students) / task_name / f"{arm}-{params.seeds[0]}"
    return require(folder, "the student", f"dvc repro distill@{task_name}", ModelError)


def diagnostics(project: Project, task_name: str) -> list[str]:
    """The task's extra splits that were prepared."""
    data = Path(project.paths.data) / task_name
    task = read_task(data, task_name)
    return [split for split in existing_splits(data, task) if split in task.diagnostics]


def write_zip(project: Project) -> tuple[Path, list[str]]:
    """Pack the submission files that are there.

    Returns:
        The zip, and the names of the benchmark's files that it lacks.
    """
    folder = Path(project.paths.runs) / PREDICTIONS
    names = [f"{name}.jsonl" for name in SUBMISSION_NAMES.values()]
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in names if (folder / name).is_file()}
    (folder / ZIP).write_bytes(zip_bytes(texts))
    return folder / ZIP, [name for name in names if name not in texts]


def _logits(project: Project, task: Task, folder: Path, texts: list[str], seconds: list[str]) -> np.ndarray:
    device = setup(project.threads)
    student, about = load_folder(folder)
    if about.task.labels != task.labels:
        raise ModelError(
            f"{folder}: the student must be one of {task.name}, got one of {about.task.name}. "
            "Name a student of this task."
        )
    student.backbone.to(device)
    student.to(device)
    tokenizer = load_tokenizer(Path(about.backbone))
    encoded = encode(tokenizer, texts, seconds, about.max_length, task.truncate, task.num_choices)
    with tqdm(total=len(encoded), desc=f"{task.name} predictions", unit="row") as bar:
        logits, _ = student_predict(student, encoded, after_batch=bar.update)
    return logits
