"""What the inter-instance loss asks of a student, beside kl.

    python studies/gradients.py PREDICTIONS.parquet [START END]

PREDICTIONS is predictions/TASK.parquet of a project. On its validation rows, in batches of 16 and of 256, the
script computes the gradients of ``kl`` (T = 2) and ``gram`` on the student's logits: for the arm START, where
prompts begin (head), and for END, where they were taught (kl). Prints Markdown, means over batches and seeds:

- ratio: the norm of gram's gradient over that of kl's
- cosine: between the two, as vectors of all entries of a batch
- rank of a gradient: exp of the entropy of its squared singular values, as shares of their sum; at most
  min(rows, classes − 1). "gram beyond kl" is what remains of gram's without its part along kl's
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kdcache.losses import gram, kl
from kdcache.project import CACHED, MEMBER

BATCH_SIZES, BATCHES = (16, 256), 50


def rank(gradient: torch.Tensor) -> float:
    """The effective rank of Roy and Vetterli (2007), of squared singular values."""
    shares = torch.linalg.svdvals(gradient) ** 2
    shares = shares / shares.sum()
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def compare(student: torch.Tensor, teacher: torch.Tensor) -> tuple[float, ...]:
    """The columns of the table for one batch; logits of shape (rows, classes)."""
    student = student.requires_grad_()
    (of_kl,) = torch.autograd.grad(kl(student, teacher, 2.0), student)
    (of_gram,) = torch.autograd.grad(gram(student, teacher), student)
    along = (of_kl * of_gram).sum() / of_kl.square().sum()
    cosine = along * of_kl.norm() / of_gram.norm()
    return (
        float(of_gram.norm() / of_kl.norm()), float(cosine),
        rank(of_kl), rank(of_gram), rank(of_gram - along * of_kl),
    )  # fmt: skip


def logits_of(table: pd.DataFrame, arm: str, seed: int) -> torch.Tensor:
    """An arm's logits, float64 of shape (rows, classes); a teacher with one seed is that of every student."""
    runs = table[table["arm"] == arm]
    rows = runs[runs["seed"] == (seed if seed in set(runs["seed"]) else runs["seed"].min())]
    return torch.tensor(np.stack(list(rows.sort_values("example_id")["logits"]))).double()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("predictions", type=Path)
    parser.add_argument("start", nargs="?", default="head")
    parser.add_argument("end", nargs="?", default="kl")
    given = parser.parse_args()
    table = pd.read_parquet(given.predictions)
    upper = MEMBER if MEMBER in set(table["arm"]) else CACHED
    print(
        f"| {given.predictions.stem} | batch | ratio | cosine | rank of kl | rank of gram | gram beyond kl |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for arm in (given.start, given.end):
        for size in BATCH_SIZES:
            found = []
            for seed in sorted(set(table.loc[table["arm"] == arm, "seed"])):
                student, teacher = logits_of(table, arm, seed), logits_of(table, upper, seed)
                draw = torch.Generator().manual_seed(seed)
                for _ in range(BATCHES):
                    rows = torch.randperm(len(student), generator=draw)[:size]
                    found.append(compare(student[rows], teacher[rows]))
            cells = " | ".join(f"{value:.2f}" for value in np.mean(found, axis=0))
            print(f"| {arm} | {size} | {cells} |")


if __name__ == "__main__":
    main()
