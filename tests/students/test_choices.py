"""Tasks of choices: one head with one output, whose logits over a row's sequences are the classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from engine import build_run, fit, make_rows

from kdcache.data.task import Task
from kdcache.encoder.batching import Encoded, encode
from kdcache.encoder.load import load_tokenizer
from kdcache.losses import Term
from kdcache.students.folder import save_student
from kdcache.students.methods import METHODS
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.student import Student, features_of, predict
from kdcache.students.training_rows import StudentRows

TASK = Task("copa", ("choice1", "choice2"), "copa/1", ("accuracy",), num_choices=2)
WORDS = ("bank", "bat", "crane", "match", "seal", "river")
# The right choice names the word of the first sequence.
ROWS = [(a, b, k) for a in WORDS for b in WORDS for k in (0, 1) if a != b]
LABELS = [k for _, _, k in ROWS]


def encoded_rows(folder: Path, swapped: bool = False) -> Encoded:
    choices = [(a, b) if (k == 0) != swapped else (b, a) for a, b, k in ROWS]
    texts = [a for a, _, _ in ROWS for _ in range(2)]
    return encode(
        load_tokenizer(folder), texts, [f"the {c}" for pair in choices for c in pair], 32, num_choices=2
    )


@pytest.fixture(scope="module")
def rows(tiny_model: Path) -> StudentRows:
    return make_rows(encoded_rows(tiny_model), LABELS, Backbone.load(tiny_model), TASK, dim=2 * 6)


def trained(folder: Path, rows: StudentRows, method: str, pooling: str = "cls") -> Student:
    terms = {"inter_class": Term("kl"), "feature": Term("feature_mse")}
    lr = 1e-3 if METHODS[method].own_weights else 0.05
    settings = {"lr": lr, "epochs": 1, "batch_size": 8}
    run = build_run(folder, rows.inputs.backbone.read_by(pooling), rows, method, terms=terms, **settings)
    fit(run)
    return run.student


@pytest.mark.parametrize(
    ("method", "pooling"),
    [*((method, "cls") for method in METHODS), ("head", "mean"), ("deep_prompt", "mean")],
)
def test_swapping_the_choices_swaps_the_logits(tiny_model: Path, rows, method, pooling):
    student = trained(tiny_model, rows, method, pooling)
    mirrored = encoded_rows(tiny_model, swapped=True)
    logits, swapped = (predict(student, encoded, 8) for encoded in (rows.encoded, mirrored))
    features, swapped_features = (
        features_of(student, encoded).numpy() for encoded in (rows.encoded, mirrored)
    )
    assert (logits.shape, features.shape) == ((len(ROWS), 2), (len(ROWS), 32))
    assert np.abs(logits[:, ::-1] - swapped).max() < 1e-5
    assert np.abs(np.roll(features, 16, axis=1) - swapped_features).max() < 1e-5
    assert np.abs(logits[:, 0] - logits[:, 1]).max() > 1e-3


def test_the_probe_sees_both_states_of_each_row(tiny_model: Path, rows):
    """The states kept for the probe are those of the forward pass, in row and choice order."""
    backbone, states = rows.inputs.backbone, rows.inputs.states
    assert states.shape == (len(ROWS), 2, 16)
    some = np.array([5, 0, 17])
    wanted = backbone.pooled(rows.encoded.batch(some))
    assert (states[torch.from_numpy(some)].flatten(0, 1) - wanted).abs().max() < 1e-6


def test_plain_peft_gives_the_one_logit_of_each_sequence(tiny_model: Path, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    student = trained(tiny_model, rows, "prefix")
    card = {"task": "copa", "arm": "kl", "seed": "0"}
    about = {"max_length": 32, "task": TASK}
    assert save_student(student, tmp_path / "student", tiny_model, about, card, rows.encoded) == {}
    assert "num_labels=1" in (tmp_path / "student" / "README.md").read_text()
