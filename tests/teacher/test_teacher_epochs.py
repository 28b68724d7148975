"""A teacher's epochs: the best on tune is kept, scoring changes nothing, choices are learnt."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run
from save_every import save_every

from kdcache.cache.manifest import read_manifest
from kdcache.encoder.batching import encode
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_tokenizer
from kdcache.teacher import checkpoints
from kdcache.teacher.fine_tune import TrainTeacherParams, fine_tune

CPU = torch.device("cpu")
WORDS = ("bank", "bat", "crane", "match", "seal", "river")
# The right choice names the word of the first sequence.
ROWS = [(a, b, k) for a in WORDS for b in WORDS for k in (0, 1) if a != b]
LABELS = [k for _, _, k in ROWS]


@pytest.fixture
def teacher_job(tiny_model, tmp_path):
    """Fine-tune a tiny teacher for four epochs of two steps, under a scripted score."""
    encoded = encode(load_tokenizer(tiny_model), ["the bank", "a river"] * 8, None, 16)
    params = TrainTeacherParams(
        model="", epochs=4, lr=1e-2, batch_size=8, max_length=16, weight_decay=0.0,
        warmup_fraction=0.0, folds=0, select="tune", seed=0,
    )  # fmt: skip

    def job(score):
        return fine_tune(tiny_model, encoded, [0, 1] * 8, list(range(16)), 2, params, tmp_path / "s", score)

    return job


def test_teacher_of_the_best_epoch_is_kept(teacher_job):
    seen: list[dict[str, torch.Tensor]] = []
    scores = iter([0.1, 0.8, 0.8, 0.3])

    def score(model):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return next(scores)

    model, _ = teacher_job(score)
    same = [all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) for state in seen]
    assert same == [False, True, False, False]


def test_interrupted_teacher_keeps_its_best_epoch(teacher_job, monkeypatch):
    save_every(2, checkpoints, monkeypatch.setattr)
    whole = dict(enumerate([0.8, 0.1, 0.3, 0.2]))
    seen: list[dict[str, torch.Tensor]] = []

    def score(model):
        if len(seen) == 2 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return whole[len(seen) - 1]

    stopped: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        teacher_job(score)
    model, _ = teacher_job(score)
    assert len(seen) == 4  # no epoch was scored twice
    assert all(torch.equal(v, seen[0][k]) for k, v in model.state_dict().items())


def test_scoring_does_not_change_the_training(teacher_job, tiny_model, tmp_path):
    last, _ = teacher_job(None)
    (tmp_path / "s").rename(tmp_path / "first")
    scores = iter([0.1, 0.2, 0.3, 0.4])
    rows = encode(load_tokenizer(tiny_model), ["she sat", "the bank"], None, 16)

    def score(model):
        extract(model, rows, 2, 8, torch.device("cpu"))
        return next(scores)

    best, _ = teacher_job(score)
    assert all(torch.equal(v, best.state_dict()[k]) for k, v in last.state_dict().items())


@pytest.mark.slow
def test_selected_teacher_is_at_least_as_good_on_tune_as_the_last(project):
    project(train_teacher={"epochs": 4, "folds": 0, "lr": 3e-2})
    assert run("prepare")[0] == 0
    scores = {}
    for how in ("last", "tune"):
        assert run("run", "--task", "cb", "--set", f"train_teacher.select={how}")[0] == 0
        scores[how] = read_manifest(Path("cache/cb")).metrics["tune"]["accuracy"]
    assert scores["tune"] >= scores["last"]


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
