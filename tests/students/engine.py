"""Builders that the tests of the engine share: tiny students on tiny rows."""

from pathlib import Path

import torch

from kdcache.encoder.batching import Padded, encode
from kdcache.encoder.load import load_tokenizer
from kdcache.losses import Objective, Term
from kdcache.students.frozen import Backbone
from kdcache.students.run import Run, Settings, TrainingRows
from kdcache.students.student import Recipe, build_student
from kdcache.students.train import cls_states, train_students

SETTINGS = Settings(0.1, 2, 1e-2, 3, 1e-2, 4, 0.01, 0.1)
TEXTS = [f"{a} {b}" for a in ("bank", "bat", "crane", "match", "seal") for b in ("the", "river", "on a tree")]
KL_GRAM = {"inter_class": Term("kl", 1.0, 2.0), "inter_instance": Term("gram")}


def build_rows(folder: Path) -> TrainingRows:
    """Pairs of sequences with random targets, three classes."""
    encoded = encode(load_tokenizer(folder), TEXTS, TEXTS[::-1], max_length=32)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(TEXTS), 3, generator=generator)
    features = torch.randn(len(TEXTS), 6, generator=generator)
    return TrainingRows(encoded, torch.arange(len(TEXTS)) % 3, logits, features)


def build_run(
    folder: Path, backbone: Backbone, rows: TrainingRows, method: str = "prefix", seed: int = 0,
    terms: dict | None = None, start="separators", num_virtual_tokens: int = 4, scores=None,
    best_by=None, **settings,
) -> Run:  # fmt: skip
    """A student at step 0; arguments besides are ``Settings``."""
    num_outputs = 3 if rows.encoded.num_choices == 1 else 1
    recipe = Recipe(method, num_outputs, num_virtual_tokens, 32, seed, start)
    student = build_student(recipe, folder, backbone, rows.encoded)
    torch.manual_seed(seed)
    dims = 16 * rows.encoded.num_choices, rows.teacher_features.shape[1]
    objective = Objective(terms or {}, 1.0, *dims)
    return Run(student, objective, rows, Settings(**{**SETTINGS.__dict__, **settings}), seed, scores, best_by)


def fit(*runs: Run, checkpoint=None, after_step=None) -> None:
    """Train some runs in one pass."""
    rows = max((run.rows for run in runs), key=len)
    padded = Padded.of(rows.encoded)
    dtype = runs[0].student.backbone.encoder.dtype
    frozen = runs[0].student.backbone
    states = cls_states(frozen, rows.encoded, padded).to(dtype)
    train_students(runs, padded, states, checkpoint, after_step)


def values(run: Run) -> list[torch.Tensor]:
    """Everything that was trained."""
    return [p.detach().clone() for p in (*run.student.tuned, *run.student.head_parameters)]


def gap(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest difference between two students."""
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))
