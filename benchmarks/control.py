"""The control that a sceptic runs in five minutes: a logistic regression on frozen [CLS] states.

Usage: python benchmarks/control.py BACKBONE DATA TASK [TASK …]

BACKBONE is a folder from `kdcache shrink`, DATA one that `kdcache prepare` filled. scikit-learn's
LogisticRegression on standardised states of train; C is chosen on tune, the accuracy is validation's.
"""

import argparse
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kdcache.data.splits import read_split, sequences
from kdcache.data.task import read_task
from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_tokenizer, setup
from kdcache.students.prompted import Backbone, FrozenInputs

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # C
MAX_LENGTH = 128
SPLITS = ("train", "tune", "validation")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("backbone", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("tasks", nargs="+", metavar="TASK")
    arguments = parser.parse_args()
    setup(threads=1)
    backbone, tokenizer = Backbone.load(arguments.backbone), load_tokenizer(arguments.backbone)
    print("| task | C | train | tune | validation |\n|---|---:|---:|---:|---:|")
    for name in arguments.tasks:
        task = read_task(arguments.data / name, name)
        states, labels = {}, {}
        for split in SPLITS:
            table = read_split(arguments.data / name, split, task)
            encoded = encode(tokenizer, *sequences(table, task), MAX_LENGTH, task.truncate, task.num_choices)
            states[split] = FrozenInputs(backbone, encoded).states.flatten(1).numpy()
            labels[split] = table["label"].to_numpy()
        tried = []
        for strength in STRENGTHS:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
            model.fit(states["train"], labels["train"])
            tried.append((strength, *(model.score(states[split], labels[split]) for split in SPLITS)))
        strength, *scores = max(tried, key=lambda row: row[2])
        print(f"| {name} | {strength:g} | " + " | ".join(f"{100 * score:.1f}" for score in scores) + " |")


if __name__ == "__main__":
    main()
