"""A prepared split, labelled by one student of the project: predictions, or SuperGLUE's submission files."""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from kdcache.data.parsers import Row
from kdcache.data.splits import existing_splits, metric_columns, read_split
from kdcache.data.task import Task, read_task
from kdcache.encoder.load import setup
from kdcache.errors import DataError, ModelError, nearest
from kdcache.places import ABOUT, replacing
from kdcache.project import Project
from kdcache.serve.files import CHUNK
from kdcache.serve.mixed_batches import LoadedStudent, Request, compute_logits, to_prediction
from kdcache.serve.output import LabelledWriter
from kdcache.serve.pool import load_student
from kdcache.serve.superglue_files import SUBMISSION_NAMES, submission_name, superglue_text, zip_bytes
from kdcache.students.arms import DistillParams, resolve_arm
from kdcache.students.results import trained_alike
from kdcache.students.student import EVAL_BATCH_SIZE

PREDICTIONS_FOLDER = "predictions"  # below paths.runs
ZIP = "superglue.zip"


def label_split(
    project: Project, task_name: str, split: str, folder: Path, form: Literal["csv", "jsonl", "superglue"]
) -> Path:
    """Label one split with one student, and write the file.

    Args:
        project: the project.
        task_name: the task.
        split: a prepared split of the task.
        folder: the student's.
        form: of the file.

    Returns:
        The file: runs/predictions/<task>-<split>.<form>, or the name of ``submission_name``.

    Raises:
        DataError: the split was not prepared.
        ModelError: the folder holds no student, or one of another task.
        ParamsError: a submission file of a task that SuperGLUE does not have.
    """
    task, table = open_prepared(project, task_name, split)
    name = submission_name(task_name, split) if form == "superglue" else f"{task_name}-{split}.{form}"
    rows = prepared_rows(table, task, split)
    logits = logits_of(project, task, rows, folder)
    path = Path(project.paths.runs) / PREDICTIONS_FOLDER / name
    with replacing(path) as part, part.open("wb") as file:
        if form == "superglue":
            ids = table["example_id"].to_pylist()
            file.write(superglue_text(task, split, ids, logits, metric_columns(table, task)).encode())
        else:
            writer = LabelledWriter(file, form, task.labels)
            for row, own in zip(rows, logits, strict=True):
                writer.write(row, to_prediction(task.labels, own))
    return path


def open_prepared(project: Project, task_name: str, split: str) -> tuple[Task, pa.Table]:
    """Read a task and one of its prepared splits.

    Raises:
        DataError: the task or the split was not prepared.
    """
    data = Path(project.paths.data) / task_name
    task = read_task(data, task_name)
    if split not in (there := existing_splits(data, task)):
        raise DataError(f"{data}: There is no prepared split {split!r}. {nearest(split, there)}")
    return task, read_split(data, split, task)


def student_folder(project: Project, task_name: str, arm: str) -> Path:
    """The folder of an arm's student with the lowest seed among those trained as the newest.

    Raises:
        As ``student_folders``.
    """
    folders = student_folders(project, task_name, arm).values()
    return (trained_alike(folders) or list(folders))[0]


def student_folders(project: Project, task_name: str, arm: str) -> dict[int, Path]:
    """The folders of an arm's students, of the pipeline or else in runs/: seed → folder.

    Raises:
        ParamsError: an arm that is neither trained nor in params.yaml.
        ModelError: the student was not trained yet.
    """
    for students in (Path(paths.students) / task_name for paths in project.paths.lookup):
        names = [about.parent.name for about in students.glob(f"[!.]*/{ABOUT}")]
        seeds = [name.removeprefix(f"{arm}-") for name in names]
        if own := sorted(int(seed) for seed in seeds if seed.isdecimal()):
            return {seed: students / f"{arm}-{seed}" for seed in own}
    params = project.section("distill", DistillParams)
    resolve_arm(params, arm)
    folder = Path(project.paths.runs) / task_name / f"{arm}-{params.seeds[0]}"
    raise ModelError(
        f"{folder}: the student must exist, got none there. "
        f"Run: kdcache distill --task {task_name} --arm {arm}"
    )


def diagnostics(project: Project, task_name: str) -> list[str]:
    """The task's diagnostic splits that were prepared."""
    data = Path(project.paths.data) / task_name
    task = read_task(data, task_name)
    return [split for split in existing_splits(data, task) if split in task.diagnostics]


def require_learned(student: LoadedStudent, task: Task, folder: Path) -> None:
    """Refuse prepared rows that are not of the task that a student learned.

    Args:
        student: to read them.
        task: of the rows.
        folder: the student's.

    Raises:
        ModelError: another task, or the same one with another template or other labels.
    """
    learned = student.task
    if learned.name != task.name:
        raise ModelError(f"{folder}: it must be a student of {task.name}, got one of {learned.name}.")
    if any(getattr(learned, key) != getattr(task, key) for key in ("template", "labels", "num_choices")):
        raise ModelError(
            f"{folder}: it must have learned {task.name} as it is prepared now, {task.template} with labels "
            f"{', '.join(task.labels)}, got {learned.template} with {', '.join(learned.labels)}. "
            "Train it again, or put back the task file and prepare again."
        )


def write_zip(project: Project) -> tuple[Path, list[str]]:
    """Pack all submission files in runs/predictions/.

    Returns:
        The zip, and the names of the submission files that it lacks.
    """
    folder = Path(project.paths.runs) / PREDICTIONS_FOLDER
    names = [f"{name}.jsonl" for name in SUBMISSION_NAMES.values()]
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in names if (folder / name).is_file()}
    with replacing(folder / ZIP) as part:
        part.write_bytes(zip_bytes(texts))
    return folder / ZIP, [name for name in names if name not in texts]


def prepared_rows(table: pa.Table, task: Task, split: str) -> list[Row]:
    """Return rows as an input file would have them, labels by name."""
    second = "text_pair" if task.num_choices == 1 else "choices"
    names = ["example_id", "label", "text", second, "group", *task.columns]
    rows = []
    for number, values in enumerate(table.select(names).to_pylist(), start=1):
        label = values["label"]
        values["label"] = None if label < 0 else task.labels[label]
        rows.append(Row(f"{task.name} {split} row {number}", values))
    return rows


def logits_of(project: Project, task: Task, rows: list[Row], folder: Path) -> np.ndarray:
    """Compute a student's logits of prepared rows, of shape (rows, num_labels).

    Raises:
        ModelError: the folder holds no student, or one of another task.
    """
    student = load_student(folder, setup(project.threads))
    require_learned(student, task, folder)
    requests = [
        Request(
            student,
            row.values["text"],
            tuple(row.values["choices"]) if student.task.num_choices > 1 else (row.values["text_pair"],),
            row.where,
        )
        for row in rows
    ]
    found = []
    with tqdm(total=len(rows), desc=f"{student.task.name} predictions", unit="row") as bar:
        for start in range(0, len(requests), CHUNK):
            some = requests[start : start + CHUNK]
            found += compute_logits(some, EVAL_BATCH_SIZE)
            bar.update(len(some))
    return np.stack(found)
