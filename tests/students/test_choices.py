"""Tasks of choices: one head with one output, whose logits over a row's sequences are the classes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.adapters import METHODS, build_student
from kdcache.batching import Encoded, encode
from kdcache.extract import extract
from kdcache.losses import Objective, Term
from kdcache.models import load_tokenizer
from kdcache.students.export import save_student
from kdcache.students.train import Settings, TrainingRows, train_student, trained_parameters
from kdcache.teacher import TrainTeacherParams, fine_tune

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


def trained(folder: Path, rows: TrainingRows, method: str, **settings):
    student = build_student(method, folder, 1, 4, 32, rows.encoded, 0)
    torch.manual_seed(0)
    objective = Objective({"inter_class": Term("kl"), "feature": Term("feature_mse")}, 1.0, 2 * 16, 2 * 6)
    chosen = Settings(**{**Settings(0.05, 1, 1e-2, 2, 1e-2, 8, 0.01, 0.1).__dict__, **settings})
    train_student(student, objective, rows, chosen, 0, CPU, lambda _epoch, losses: None)
    return student


@pytest.mark.parametrize("method", METHODS)
def test_swapping_the_choices_swaps_the_logits(tiny_model: Path, rows, method):
    student = trained(tiny_model, rows, method)
    logits, features = extract(student, rows.encoded, 1, 8, CPU)
    swapped, swapped_features = extract(student, encoded_rows(tiny_model, swapped=True), 1, 8, CPU)
    assert (logits.shape, features.shape) == ((len(ROWS), 2), (len(ROWS), 32))
    assert np.abs(logits[:, ::-1] - swapped).max() < 1e-5
    assert np.abs(np.roll(features, 16, axis=1) - swapped_features).max() < 1e-5
    assert np.abs(logits[:, 0] - logits[:, 1]).max() > 1e-2


def test_head_phase_sees_both_states_of_each_row(tiny_model: Path, rows):
    """Training on cached states must equal training on the whole forward."""
    from kdcache.batching import num_batches, training_plan

    direct = build_student("head", tiny_model, 1, 4, 32, rows.encoded, 0)
    _, head = trained_parameters(direct)
    optimizer = torch.optim.AdamW([{"lr": 1e-2, "params": head, "weight_decay": 0.01}])
    steps = 2 * num_batches(len(ROWS), 8)
    warm_up, step = max(1, round(0.1 * steps)), 0
    for epoch in range(2):
        for indices in training_plan(rows.encoded.lengths, 8, 0, epoch):
            optimizer.param_groups[0]["lr"] = 1e-2 * min(
                (step + 1) / warm_up, (steps - step) / (steps - warm_up)
            )
            logits = direct(**rows.encoded.batch(indices)).logits.reshape(-1, 2)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, rows.labels[torch.from_numpy(indices)]).backward()
            torch.nn.utils.clip_grad_norm_(head, 1.0)
            optimizer.step()
            step += 1
    cached = build_student("head", tiny_model, 1, 4, 32, rows.encoded, 0)
    settings = Settings(0.05, 1, 1e-2, 2, 1e-2, 8, 0.01, 0.1)
    train_student(cached, Objective({}, 1.0, 32, 12), rows, settings, 0, CPU, lambda _e, _l: None)
    for one, other in zip(trained_parameters(cached)[1], head, strict=True):
        assert (one - other).abs().max() < 1e-4


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
    card = {"task": "copa", "arm": "kl", "seed": "0"}
    save_student(student, tmp_path / "student", tiny_model, 1, card, rows.encoded)  # checks the reload
    assert "num_labels=1" in (tmp_path / "student" / "README.md").read_text()
