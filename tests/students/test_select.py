"""select: tune keeps the epoch that is best there; last, the default, looks at nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fails, run
from safetensors.torch import load_file

from kdcache.cache.manifest import read_manifest
from kdcache.encoder.batching import encode
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_tokenizer
from kdcache.students.grid import Grid
from kdcache.students.lineup import Lineup
from kdcache.teacher.train import TrainTeacherParams, fine_tune


def test_student_of_the_best_epoch_is_the_one_saved(cached_project, monkeypatch):
    folder = cached_project(distill={"epochs": 3, "seeds": [0]})
    scores = iter([0.5, 0.6, 0.9, 0.9])  # head start and three epochs; the earlier of equal ones wins
    seen: list[dict[str, torch.Tensor]] = []

    whole, score = np.empty(0), Grid.score_on_tune

    def watched(_lineup, student):
        seen.append({k: v.clone() for k, v in student.state_dict().items()})
        return whole

    def scripted(grid, logits, arm, seed):
        return {"tune_accuracy": next(scores)} if logits is whole else score(grid, logits, arm, seed)

    monkeypatch.setattr(Lineup, "_tune_logits", watched)
    monkeypatch.setattr(Grid, "score_on_tune", scripted)
    arguments = ("distill", "--task", "cb", "--arm", "kl", "--set", "distill.select=tune")
    assert run(*arguments)[0] == 0
    saved = folder / "runs" / "cb" / "kl-0"
    assert json.loads((saved / "result.json").read_text())["epoch"] == 2
    prompts = load_file(saved / "adapter_model.safetensors")["prompt_embeddings"]
    assert [torch.equal(prompts, state["prompt.weight"]) for state in seen] == [False, False, True, False]


def test_last_epoch_is_kept_by_default(cached_project):
    folder = cached_project(distill={"seeds": [0], "epochs": 2})
    assert run("distill", "--task", "cb", "--arm", "kl", "--arm", "head")[0] == 0
    epochs = {arm: json.loads((folder / "runs" / "cb" / f"{arm}-0" / "result.json").read_text())["epoch"]
              for arm in ("kl", "head")}  # fmt: skip
    assert epochs == {"kl": 2, "head": 0}


def test_tune_needs_the_split(project):
    project(prepare={"tune_fraction": 0})
    assert run("prepare")[0] == 0
    remedy = "Set prepare.tune_fraction above 0 and run: kdcache prepare --task cb"
    message = "must be last without a tune split, got tune. " + remedy
    teach = fails("teach", "--task", "cb", "--set", "train_teacher.select=tune")
    assert teach == f"train_teacher.select: it {message}"
    for command in (["shrink"], ["run", "--task", "cb"]):
        assert run(*command)[0] == 0
    distill = fails("distill", "--task", "cb", "--set", "distill.select=tune")
    assert distill == f"distill.select: it {message}"


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
    from kdcache.teacher import train as teacher

    monkeypatch.setattr(teacher, "CHECKPOINT_STEPS", 2)
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


def test_selected_teacher_is_at_least_as_good_on_tune_as_the_last(project):
    project(train_teacher={"epochs": 4, "folds": 0, "lr": 3e-2})
    assert run("prepare")[0] == 0
    scores = {}
    for how in ("last", "tune"):
        assert run("run", "--task", "cb", "--set", f"train_teacher.select={how}")[0] == 0
        scores[how] = read_manifest(Path("cache/cb")).metrics["tune"]["accuracy"]
    assert scores["tune"] >= scores["last"]
