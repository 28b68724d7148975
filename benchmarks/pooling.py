"""Reading the mean of all tokens against [CLS]: ce and kl students in equal steps, on six tasks.

Usage: python benchmarks/pooling.py POWERED SUPERGLUE FOLDER [TASK …]

POWERED holds the folders of clinc150, banking77, subj and ag_news, SUPERGLUE the official CB folder; the
sixth task is the sample's WiC. Each task becomes a project FOLDER/TASK, whose stages are run one after the
other; what is there already is kept. The teacher is all six layers of all-MiniLM-L6-v2, fully tuned and
mean-pooled, cross-fitted; the backbone is its first three layers, frozen, as they are. Prints Markdown:
accuracies, and effects with 95% intervals over three students and the validation rows.
"""

import argparse
import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from kdcache.backbone.student_backbone import student_backbone
from kdcache.data.prepare import prepare
from kdcache.params import read_params
from kdcache.project import Project
from kdcache.stats.estimates import effect, mean_estimate
from kdcache.stats.runs import Runs, read_runs
from kdcache.students.distill import distill
from kdcache.teacher.cache_teacher import cache_teacher
from kdcache.teacher.train_teacher import train_teacher

ROOT = Path(__file__).resolve().parent.parent
POWERED = ("clinc150", "banking77", "subj", "ag_news")
# Rows at most: train, of which a fifth becomes tune where the task has none; tune, where it has one;
# unlabelled; validation. Epochs of the teacher. Steps of each student.
SIZES = {
    "clinc150": (1500, 300, 2500, 2000, 5, 300),
    "banking77": (1250, None, 2500, 2000, 5, 300),
    "subj": (625, None, 2000, 2000, 4, 300),
    "ag_news": (625, None, 2000, 2000, 4, 300),
    "cb": (250, None, None, 56, 8, 150),
    "wic": (None, None, None, None, 6, 300),
}
THREADS = 1
KINDS: dict[str, dict[str, Any]] = {
    "head": {"method": "head"},
    "ce": {},
    "kl": {"inter_class": {"name": "kl", "temperature": 2.0, "weight": 1.0}},
}
ARMS = {f"{name}-{p}": arm | {"pooling": p} for p in ("cls", "mean") for name, arm in KINDS.items()}
COMPARISONS = (
    ("head-mean", "head-cls"), ("ce-mean", "ce-cls"), ("kl-mean", "kl-cls"),
    ("kl-cls", "ce-cls"), ("kl-mean", "ce-mean"), ("ce-mean", "head-mean"),
)  # fmt: skip


def params_of(task: str, powered: Path, superglue: Path) -> dict[str, Any]:
    """params.yaml of a task's project: the root's, with this benchmark's rows, arms and steps."""
    params = copy.deepcopy(read_params(ROOT / "params.yaml"))
    train, tune, unlabelled, validation, epochs, steps = SIZES[task]
    params |= {"tasks": [task], "threads": THREADS}
    rows = {"train": train, "tune": tune, "validation": validation, "unlabelled": unlabelled}
    path = powered if task in POWERED else superglue if task == "cb" else ROOT / "sample"
    params["prepare"] |= {
        "source": "files" if task in POWERED else "superglue", "path": str(path.resolve()),
        "max_rows": rows, "tune_fraction": 0.2, "seed": 0,
    }  # fmt: skip
    params["paths"]["tasks"] = str(ROOT / "studies" / "tasks")
    params["train_teacher"] |= {"epochs": epochs, "lr": 2e-4, "folds": 2, "pooling": "mean", "select": "last"}
    params["student_backbone"] |= {"num_layers": 3, "layers": "first", "pooling": "mean"}
    params["distill"] |= {
        "arms": ARMS, "seeds": [0, 1, 2], "steps": steps, "epochs": None, "select": "tune",
    }  # fmt: skip
    return params


def run(task: str, folder: Path, params: dict[str, Any]) -> None:
    """Run the stages of a project that did not run yet, in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        project = Project.load()
        if not Path("data", task).is_dir():
            prepare(project, task)
        if not Path("models/teacher", task).is_dir():
            train_teacher(project, task)
        if not Path("cache", task).is_dir():
            cache_teacher(project, task)
        if not Path("models/backbone").is_dir():
            student_backbone(project)
        if not Path("metrics", f"{task}.json").is_file():
            distill(project, task)


def read(task: str, folder: Path) -> tuple[dict[str, Any], Runs]:
    """Metrics and paired predictions of a finished project."""
    metrics = json.loads((folder / "metrics" / f"{task}.json").read_text(encoding="utf-8"))
    rows = pd.read_parquet(folder / "data" / task / "validation.parquet")
    predictions = pd.read_parquet(folder / "predictions" / f"{task}.parquet")
    return metrics, read_runs(predictions, metrics["metric"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("powered", type=Path)
    parser.add_argument("superglue", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tasks", nargs="*", metavar="TASK", default=list(SIZES))
    arguments = parser.parse_args()
    found = {}
    for task in arguments.tasks or SIZES:
        folder = arguments.folder / task
        run(task, folder, params_of(task, arguments.powered, arguments.superglue))
        found[task] = read(task, folder)
    print(f"| task | labels, tune, unlabelled, validation | {' | '.join(ARMS)} | teacher |")
    print("|---|---:|" + "---:|" * (len(ARMS) + 1))
    for task, (metrics, _) in found.items():
        name, counts = metrics["metric"], metrics["rows"]
        rows = ", ".join(str(counts.get(s, 0)) for s in ("train", "tune", "unlabelled", "validation"))
        cells = [f"{100 * metrics['arms'][arm]['validation'][name]['mean']:.1f}" for arm in ARMS]
        print(f"| {task} | {rows} | {' | '.join(cells)} | {100 * metrics['teacher']['cached'][name]:.1f} |")
    print(f"\n| task | {' | '.join(f'{arm} over {over}' for arm, over in COMPARISONS)} |")
    print("|---|" + "---|" * len(COMPARISONS))
    effects = {task: [effect(runs, *pair) for pair in COMPARISONS] for task, (_, runs) in found.items()}
    for task, estimates in effects.items():
        print(f"| {task} | {' | '.join(estimate.cell() for estimate in estimates)} |")
    means = [mean_estimate(list(column)) for column in zip(*effects.values(), strict=True)]
    print(f"| mean of {len(found)} | {' | '.join(mean.cell() for mean in means)} |")


if __name__ == "__main__":
    main()
