"""Tasks of choices: one head with one output, whose logits over a row's sequences are the classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from engine import build_run, fit

from kdcache.data.task import Task
from kdcache.encoder.batching import Encoded, Padded, encode
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_tokenizer
from kdcache.losses import Term
from kdcache.students.export import save_student
from kdcache.students.frozen import Backbone
from kdcache.students.run import TrainingRows
from kdcache.students.student import METHODS, Student, predict
from kdcache.students.train import cls_states
from kdcache.teacher.train import TrainTeacherParams, fine_tune

CPU = torch.device("cpu")
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


@pytest.fixture
def rows(tiny_model: Path) -> TrainingRows:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(ROWS), 2, generator=generator)
    features = torch.randn(len(ROWS), 2 * 6, generator=generator)
    return TrainingRows(encoded_rows(tiny_model), torch.tensor(LABELS), logits, features)


def trained(folder: Path, rows: TrainingRows, method: str) -> Student:
    terms = {"inter_class": Term("kl"), "feature": Term("feature_mse")}
    run = build_run(
        folder, Backbone.load(folder), rows, method, terms=terms,
        lr=0.05, epochs=1, head_start_epochs=2, batch_size=8,
    )  # fmt: skip
    fit(run)
    return run.student


@pytest.mark.parametrize("method", METHODS)
def test_swapping_the_choices_swaps_the_logits(tiny_model: Path, rows, method):
    student = trained(tiny_model, rows, method)
    logits, features = predict(student, rows.encoded, 8)
    swapped, swapped_features = predict(student, encoded_rows(tiny_model, swapped=True), 8)
    assert (logits.shape, features.shape) == ((len(ROWS), 2), (len(ROWS), 32))
    assert np.abs(logits[:, ::-1] - swapped).max() < 1e-5
    assert np.abs(np.roll(features, 16, axis=1) - swapped_features).max() < 1e-5
    assert np.abs(logits[:, 0] - logits[:, 1]).max() > 1e-2


def test_head_phase_sees_both_states_of_each_row(tiny_model: Path, rows):
    """The states kept for the head start are those of the forward pass, in row and choice order."""
    backbone = Backbone.load(tiny_model)
    padded = Padded.of(rows.encoded)
    states = cls_states(backbone, rows.encoded, padded)
    assert states.shape == (len(ROWS), 2, 16)
    some = np.array([5, 0, 17])
    wanted = backbone.cls_states(rows.encoded.batch(some))
    assert (states[torch.from_numpy(some)].flatten(0, 1) - wanted).abs().max() < 1e-6


def test_teacher_learns_a_task_of_choices(tiny_model: Path, tmp_path):
    """The right choice is the one on a tree, whatever the first sequence."""
    texts = [word for word, _, _ in ROWS for _ in range(2)]
    choices = [
        c for _, b, k in ROWS for c in ((f"{b} on a tree", b), (b, f"{b} on a tree"))[k]
    ]  # fmt: skip
    encoded = encode(load_tokenizer(tiny_model), texts, choices, 32, num_choices=2)
    params = TrainTeacherParams(str(tiny_model), 5, 3e-3, 8, 32, 0.0, 0.1, 0, "last", 0)
    model, cost = fine_tune(tiny_model, encoded, LABELS, list(range(len(ROWS))), 1, params, tmp_path)
    logits, _ = extract(model, encoded, 1, 16, CPU)
    assert model.config.num_labels == 1
    assert cost["examples"] == 5 * len(ROWS)
    assert np.mean(logits.argmax(axis=1) == LABELS) > 0.9


def test_plain_peft_gives_the_one_logit_of_each_sequence(tiny_model: Path, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    student = trained(tiny_model, rows, "prefix")
    task = Task("copa", ("choice1", "choice2"), "copa/1", ("accuracy",), num_choices=2)
    card = {"task": "copa", "arm": "kl", "seed": "0"}
    about = {"max_length": 32, "task": task}
    save_student(student, tmp_path / "student", tiny_model, about, card, rows.encoded)  # checks the reload
    assert "num_labels=1" in (tmp_path / "student" / "README.md").read_text()
