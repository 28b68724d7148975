"""The control anyone can run: logistic regression on frozen states, at [CLS] and as the mean over tokens.

Usage: python benchmarks/control.py MODEL DATA TASK [TASK …]

MODEL is a model reference or a folder from `kdcache shrink`, DATA a folder that `kdcache prepare` filled.
scikit-learn's LogisticRegression is fitted on standardised states of train; C is chosen on tune; the last
column is the accuracy on validation. One thread. Prints Markdown.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kdcache.data.splits import read_split, sequences
from kdcache.data.task import read_task
from kdcache.encoder.batching import Encoded, encode, fixed_plan, iterate
from kdcache.encoder.load import load_encoder, load_tokenizer, resolve, setup

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # C
BATCH_SIZE, MAX_LENGTH = 64, 128
SPLITS = ("train", "tune", "validation")


@torch.no_grad()
def read_states(model: torch.nn.Module, encoded: Encoded) -> dict[str, np.ndarray]:
    """Last states of each row by pooling, each of shape (rows, choices · dim)."""
    plan = fixed_plan(encoded.lengths, BATCH_SIZE)
    parts: dict[str, list[np.ndarray]] = {"[CLS]": [], "mean": []}
    for _, batch in iterate(plan, encoded, torch.device("cpu")):
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        parts["[CLS]"].append(encoded.by_row(states[:, 0]).numpy())
        parts["mean"].append(encoded.by_row((states * mask).sum(1) / mask.sum(1)).numpy())
    order = np.argsort(np.concatenate(plan))
    return {pooling: np.concatenate(rows)[order] for pooling, rows in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("tasks", nargs="+", metavar="TASK")
    arguments = parser.parse_args()
    setup(threads=1)
    folder = resolve(arguments.model)
    model, tokenizer = load_encoder(folder), load_tokenizer(folder)
    print("| task | pooling | C | train | tune | validation |\n|---|---|---:|---:|---:|---:|")
    for name in arguments.tasks:
        task = read_task(arguments.data / name, name)
        states, labels = {}, {}
        for split in SPLITS:
            table = read_split(arguments.data / name, split, task)
            encoded = encode(tokenizer, *sequences(table, task), MAX_LENGTH, task.truncate, task.num_choices)
            states[split] = read_states(model, encoded)
            labels[split] = table["label"].to_numpy()
        for pooling in states["train"]:
            tried = []
            for strength in STRENGTHS:
                classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
                classifier.fit(states["train"][pooling], labels["train"])
                scores = [classifier.score(states[split][pooling], labels[split]) for split in SPLITS]
                tried.append((strength, *scores))
            strength, *scores = max(tried, key=lambda row: row[2])
            shown = " | ".join(f"{100 * score:.1f}" for score in scores)
            print(f"| {name} | {pooling} | {strength:g} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
