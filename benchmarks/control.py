"""The control anyone can run, a logistic regression on frozen states: scikit-learn's beside kdcache's probe.

Usage: python benchmarks/control.py MODEL DATA TASK [TASK …]

MODEL is a model reference or a folder from `kdcache shrink`, DATA a folder that `kdcache prepare` filled.
Both are fitted on standardised states of train, at [CLS] and as the mean over tokens; scikit-learn gets them
without the dims that are constant but for rounding, which its scaler would blow up. C is chosen on tune from
one grid; the columns are accuracies on validation in percent. One thread. Prints Markdown.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_selection import VarianceThreshold
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kdcache.data.splits import read_split, sequences
from kdcache.data.task import read_task
from kdcache.encoder.batching import Encoded, encode, iterate
from kdcache.encoder.linear_probe import STRENGTHS, fit_probe, one_hot
from kdcache.encoder.load import load_encoder, load_tokenizer, setup
from kdcache.encoder.plans import fixed_plan
from kdcache.encoder.references import resolve

BATCH_SIZE, MAX_LENGTH = 64, 128
CONSTANT = 1e-12  # variance of dims that hold rounding errors alone
SPLITS = ("train", "tune", "validation")
POOLINGS = ("cls", "mean")


@torch.no_grad()
def read_states(model: torch.nn.Module, encoded: Encoded) -> dict[str, np.ndarray]:
    """Last states of each row by pooling, each of shape (rows, choices · dim), without segment ids."""
    plan = fixed_plan(encoded.lengths, BATCH_SIZE)
    parts: dict[str, list[np.ndarray]] = {pooling: [] for pooling in POOLINGS}
    for _, batch in iterate(plan, encoded, torch.device("cpu")):
        batch.pop("token_type_ids", None)
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        parts["cls"].append(encoded.by_row(states[:, 0]).numpy())
        parts["mean"].append(encoded.by_row((states * mask).sum(1) / mask.sum(1)).numpy())
    order = np.argsort(np.concatenate(plan))
    return {pooling: np.concatenate(rows)[order] for pooling, rows in parts.items()}


def sklearn_accuracies(states: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> tuple[float, float]:
    """C and accuracy on validation of scikit-learn's regression, C by the best accuracy on tune."""
    tried = []
    for strength in STRENGTHS:
        classifier = make_pipeline(
            VarianceThreshold(CONSTANT), StandardScaler(), LogisticRegression(C=strength, max_iter=2000)
        )
        classifier.fit(states["train"], labels["train"])
        tried.append((strength, *(classifier.score(states[split], labels[split]) for split in SPLITS)))
    strength, _, _, validation = max(tried, key=lambda row: row[2])
    return strength, validation


def probe_accuracies(states: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> tuple[float, float]:
    """C and accuracy on validation of the linear probe, which every head of kdcache starts from."""
    features = {split: torch.from_numpy(states[split])[:, None] for split in SPLITS}
    targets = one_hot(torch.from_numpy(labels["train"]), int(labels["train"].max()) + 1)

    def score(logits: np.ndarray) -> float:
        return float(np.mean(logits.argmax(1) == labels["tune"]))

    probe = fit_probe(features["train"], targets, features["tune"], score)
    found = probe.logits(features["validation"]).argmax(1).numpy()
    return probe.strength, float(np.mean(found == labels["validation"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("tasks", nargs="+", metavar="TASK")
    arguments = parser.parse_args()
    setup(threads=1)
    folder = resolve(arguments.model)
    model, tokenizer = load_encoder(folder), load_tokenizer(folder)
    print("| task | pooling | train, tune, validation | scikit-learn | C | linear probe | C | difference |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    differences: dict[str, list[float]] = {pooling: [] for pooling in POOLINGS}
    for name in arguments.tasks:
        task = read_task(arguments.data / name, name)
        states, labels = {}, {}
        for split in SPLITS:
            table = read_split(arguments.data / name, split, task)
            encoded = encode(tokenizer, *sequences(table, task), MAX_LENGTH, task.truncate, task.num_choices)
            states[split] = read_states(model, encoded)
            labels[split] = np.array(table["label"].to_numpy())
        rows = ", ".join(str(len(labels[split])) for split in SPLITS)
        for pooling in POOLINGS:
            here = {split: states[split][pooling] for split in SPLITS}
            their_c, theirs = sklearn_accuracies(here, labels)
            our_c, ours = probe_accuracies(here, labels)
            difference = 100 * (ours - theirs)
            differences[pooling].append(difference)
            cells = f"{100 * theirs:.1f} | {their_c:g} | {100 * ours:.1f} | {our_c:g} | {difference:+.1f}"
            print(f"| {name} | {pooling} | {rows} | {cells} |", flush=True)
    for pooling, found in differences.items():
        print(f"| mean of {len(found)} tasks | {pooling} | | | | | | {statistics.fmean(found):+.2f} |")


if __name__ == "__main__":
    main()
