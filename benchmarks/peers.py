"""What users would pick instead, on the same rows and the same backbone: logistic regression and SetFit.

Usage: python benchmarks/peers.py MODEL DATA FOLDER TASK [TASK …]

MODEL is a sentence encoder, DATA a folder that `kdcache prepare` filled. The logistic regression is
scikit-learn's on the encoder's own sentence embeddings, C chosen on tune. SetFit (Tunstall et al., 2022)
tunes all weights of the encoder on pairs of labelled rows, 20 pairs per row and at most 1500 steps; its
learning rate is chosen on tune. Its own head has C = 1, far too little for states of length 1 and many
classes, so the head is that one or a regression as above, whichever is better on tune. The texts of a
pair are joined by the tokenizer's separator; a task of choices is left out. Writes FOLDER/TASK.json: the
predicted class of every validation row.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kdcache.data.splits import read_split
from kdcache.data.task import Task, read_task
from kdcache.encoder.load import resolve

SEEDS = (0, 1, 2)
RATES = (2e-5, 1e-4)  # the first is SetFit's default
PAIRS_PER_ROW, MOST_STEPS, BATCH_SIZE, MAX_LENGTH = 20, 1500, 16, 128
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
SPLITS = ("train", "tune", "validation")

Rows = dict[str, tuple[list[str], np.ndarray]]


def read_rows(folder: Path, task: Task, separator: str) -> Rows:
    """Split → texts and labels; the texts of a pair become one."""
    rows = {}
    for split in SPLITS:
        table = read_split(folder, split, task)
        texts = table["text"].to_pylist()
        if table["text_pair"].null_count < len(table):
            texts = [
                f"{a} {separator} {b}" for a, b in zip(texts, table["text_pair"].to_pylist(), strict=True)
            ]
        rows[split] = texts, np.array(table["label"].to_numpy())
    return rows


def regression(model: str, rows: Rows) -> np.ndarray:
    """Classes that scikit-learn's regression on frozen embeddings predicts."""
    encoder = SentenceTransformer(model)
    encoder.max_seq_length = MAX_LENGTH
    return best_regression(encoder, rows)[1]


def best_regression(encoder: SentenceTransformer, rows: Rows) -> tuple[float, np.ndarray]:
    """Accuracy on tune of the C that is best there, and the classes that it predicts on validation."""
    states = {split: encoder.encode(texts, show_progress_bar=False) for split, (texts, _) in rows.items()}
    tried = []
    for strength in STRENGTHS:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        classifier.fit(states["train"], rows["train"][1])
        tried.append((classifier.score(states["tune"], rows["tune"][1]), classifier))
    on_tune, best = max(tried, key=lambda pair: pair[0])
    return float(on_tune), np.asarray(best.predict(states["validation"]))


def setfit(
    model: str, rows: Rows, seed: int, rate: float, scratch: Path, most_steps: int = MOST_STEPS
) -> tuple[float, np.ndarray]:
    """Accuracy on tune, and classes that SetFit predicts on validation, with the better of two heads."""
    texts, labels = rows["train"]
    student = SetFitModel.from_pretrained(model)
    student.model_body.max_seq_length = MAX_LENGTH
    steps = min(most_steps, 2 * PAIRS_PER_ROW * len(texts) // BATCH_SIZE)
    settings = TrainingArguments(
        output_dir=str(scratch), batch_size=BATCH_SIZE, num_iterations=PAIRS_PER_ROW, max_steps=steps,
        body_learning_rate=rate, seed=seed, report_to="none", save_strategy="no",
    )  # fmt: skip
    data = Dataset.from_dict({"text": texts, "label": labels.tolist()})
    with contextlib.redirect_stdout(sys.stderr):  # the Trainer's log
        Trainer(model=student, args=settings, train_dataset=data).train()
    tune, validation = (np.asarray(student.predict(rows[s][0], as_numpy=True)) for s in SPLITS[1:])
    own = float(np.mean(tune == rows["tune"][1])), validation
    return max(own, best_regression(student.model_body, rows), key=lambda pair: pair[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tasks", nargs="+", metavar="TASK")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = str(resolve(arguments.model))
    separator = SentenceTransformer(model).tokenizer.sep_token
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.tasks:
        task = read_task(arguments.data / name, name)
        if task.num_choices > 1:
            print(f"{name}: a task of choices, left out", flush=True)
            continue
        rows = read_rows(arguments.data / name, task, separator)
        found: dict[str, Any] = {"logistic regression": regression(model, rows).tolist()}
        tried: dict[float, list[tuple[float, np.ndarray]]] = {
            rate: [setfit(model, rows, seed, rate, arguments.folder / "scratch" / name) for seed in SEEDS]
            for rate in RATES
        }
        rate = max(tried, key=lambda rate: np.mean([tune for tune, _ in tried[rate]]))
        found |= {"rate": rate, "tune": {r: [tune for tune, _ in runs] for r, runs in tried.items()}}
        found["SetFit"] = {
            seed: classes.tolist() for seed, (_, classes) in zip(SEEDS, tried[rate], strict=True)
        }
        (arguments.folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
        labels = rows["validation"][1]
        scores = [
            100 * float(np.mean(np.array(c) == labels))
            for c in (found["logistic regression"], *found["SetFit"].values())
        ]
        print(
            f"{name}: logistic regression {scores[0]:.1f}, SetFit {np.mean(scores[1:]):.1f} at rate {rate:g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
