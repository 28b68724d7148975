"""Reading the mean of all tokens against [CLS]: ce and kl students in equal steps, on six tasks.

Usage: python benchmarks/pooling.py FOLDER [TASK …]

The rows lie in studies/data, as docs/study.md says; the sixth task is the sample's WiC. Each task becomes a
project FOLDER/TASK, whose stages are run one after the other; what is there already is kept. The teacher is
all six layers of all-MiniLM-L6-v2, fully tuned and mean-pooled, cross-fitted; the backbone is the same six
layers, frozen. Each arm has the rate that is best on tune. Prints Markdown: accuracies, and effects with 95%
intervals over three students and the validation rows.
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
# Rows at most: train, of which a fifth becomes tune where the task has none; tune, where it has one;
# unlabelled; validation. Epochs of the teacher.
SIZES = {
    "clinc150": (1500, 500, 3000, 3000, 10),
    "banking77": (1250, None, 3000, 3000, 10),
    "subj": (625, None, 3000, 3000, 6),
    "ag_news": (625, None, 3000, 3000, 6),
    "cb": (250, None, None, None, 8),
    "wic": (None, None, None, None, 8),
}
STEPS = 600
THREADS = 1
KINDS: dict[str, dict[str, Any]] = {
    "head": {"method": "head"},
    "ce": {},
    "kl": {"inter_class": {"name": "kl", "temperature": 2.0, "weight": 1.0}},
}
RATES = (1e-2, 3e-2, 1e-1)  # of the prompts; each kind and pooling takes the one that is best on tune
ARMS = {
    f"{name}-{pooling}@{rate:g}": arm | {"pooling": pooling} | ({} if name == "head" else {"lr": rate})
    for pooling in ("cls", "mean")
    for name, arm in KINDS.items()
    for rate in RATES[: 1 if name == "head" else 3]
}
NAMES = [f"{name}-{pooling}" for pooling in ("cls", "mean") for name in KINDS]
COMPARISONS = (
    ("head-mean", "head-cls"), ("ce-mean", "ce-cls"), ("kl-mean", "kl-cls"),
    ("kl-cls", "ce-cls"), ("kl-mean", "ce-mean"), ("ce-mean", "head-mean"),
)  # fmt: skip


def params_of(task: str) -> dict[str, Any]:
    """params.yaml of a task's project: the root's, with this benchmark's rows, arms and steps."""
    params = copy.deepcopy(read_params(ROOT / "params.yaml"))
    train, tune, unlabelled, validation, epochs = SIZES[task]
    params |= {"tasks": [task], "threads": THREADS}
    rows = {"train": train, "tune": tune, "validation": validation, "unlabelled": unlabelled}
    params["prepare"] |= {
        "source": "superglue", "path": str(ROOT / ("sample" if task == "wic" else "studies/data")),
        "max_rows": rows, "tune_fraction": 0.2, "seed": 0,
    }  # fmt: skip
    params["paths"]["tasks"] = str(ROOT / "studies" / "tasks")
    params["train_teacher"] |= {"epochs": epochs, "lr": 2e-4, "folds": 2, "pooling": "mean", "select": "tune"}
    params["student_backbone"] |= {"num_layers": "all", "pooling": "mean"}
    params["distill"] |= {
        "arms": ARMS, "seeds": [0, 1, 2], "steps": STEPS, "epochs": None, "select": "tune",
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
    """Metrics and paired predictions of a finished project, each kind and pooling with its best rate."""
    metrics = json.loads((folder / "metrics" / f"{task}.json").read_text(encoding="utf-8"))
    rows = pd.read_parquet(folder / "data" / task / "validation.parquet")
    predictions = pd.read_parquet(folder / "predictions" / f"{task}.parquet")
    curves = pd.read_csv(folder / "curves" / f"{task}.csv")
    best = curves.groupby("arm", sort=False)[f"tune_{metrics['metric']}"].max()
    names = {best[[arm for arm in best.index if arm.startswith(f"{name}@")]].idxmax(): name for name in NAMES}
    metrics["arms"] = {name: metrics["arms"][arm] for arm, name in names.items()}
    metrics["rates"] = {name: arm.partition("@")[2] for arm, name in names.items()}
    chosen = predictions[predictions["arm"].isin(names)].replace({"arm": names})
    return metrics, read_runs(chosen, metrics["metric"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("tasks", nargs="*", metavar="TASK", default=list(SIZES))
    arguments = parser.parse_args()
    found = {}
    for task in arguments.tasks or SIZES:
        folder = arguments.folder / task
        run(task, folder, params_of(task))
        found[task] = read(task, folder)
    print(f"| task | labels, tune, unlabelled, validation | {' | '.join(NAMES)} | teacher |")
    print("|---|---:|" + "---:|" * (len(NAMES) + 1))
    for task, (metrics, _) in found.items():
        name, counts = metrics["metric"], metrics["rows"]
        rows = ", ".join(str(counts.get(s, 0)) for s in ("train", "tune", "unlabelled", "validation"))
        cells = [
            f"{100 * metrics['arms'][arm]['validation'][name]['mean']:.1f}"
            + ("" if arm.startswith("head") else f" ({metrics['rates'][arm]})")
            for arm in NAMES
        ]
        print(f"| {task} | {rows} | {' | '.join(cells)} | {100 * metrics['teacher']['cached'][name]:.1f} |")
    print(f"\n| task | {' | '.join(f'{arm} over {over}' for arm, over in COMPARISONS)} |")
    print("|---|" + "---|" * len(COMPARISONS))
    effects = {task: [effect(runs, *pair) for pair in COMPARISONS] for task, (_, runs) in found.items()}
    for task, estimates in effects.items():
        print(f"| {task} | {' | '.join(estimate.cell for estimate in estimates)} |")
    means = [mean_estimate(list(column)) for column in zip(*effects.values(), strict=True)]
    print(f"| mean of {len(found)} | {' | '.join(mean.cell for mean in means)} |")


if __name__ == "__main__":
    main()
