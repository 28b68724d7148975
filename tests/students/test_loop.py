"""The loop: many in one pass as each alone, resumed as uninterrupted, nothing frozen moves."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import KL_GRAM, TEXTS, build_rows, build_run, double, fit, gap, share_off, values
from save_every import save_every
from specs import tiny_spec

from kdcache.encoder.linear_probe import LinearProbe, fit_probe, one_hot
from kdcache.encoder.plans import TrainingPlan
from kdcache.losses import Term
from kdcache.students import loop as train_module
from kdcache.students import run as run_module
from kdcache.students.frozen_inputs import FrozenInputs
from kdcache.students.loop import restore_runs
from kdcache.students.methods import METHODS
from kdcache.students.probes import Probes, starting_features
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.run import Run
from kdcache.students.student import build_student, forward, predict
from kdcache.students.training_rows import StudentRows


@pytest.fixture(scope="module")
def backbone(tiny_model: Path) -> Backbone:
    return Backbone.load(tiny_model)


@pytest.fixture(scope="module")
def rows(tiny_model: Path, backbone: Backbone) -> StudentRows:
    return build_rows(tiny_model, backbone)


@pytest.mark.parametrize("method", METHODS)
def test_only_what_the_method_names_is_trained(tiny_model: Path, rows, backbone, method):
    run = build_run(tiny_model, backbone, rows, method, lr=1e-2)
    frozen = {name: p.clone() for name, p in backbone.encoder.named_parameters()}
    before = {name: p.detach().clone() for name, p in run.student.named_parameters()}
    fit(run)
    assert all(torch.equal(p, frozen[name]) for name, p in backbone.encoder.named_parameters())
    assert all(p.grad is None for p in backbone.encoder.parameters())
    assert not backbone.encoder.training
    trained = {id(p) for p in (*run.student.tuned, *run.student.head_parameters)}
    moved = {id(p) for name, p in run.student.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= trained
    assert bool(run.student.tuned) == (method != "head")
    if method == "head":
        assert not moved
    else:
        assert {id(p) for p in run.student.head_parameters} <= moved
        assert moved & {id(p) for p in run.student.tuned}


def test_heads_without_a_prompt_share_one_pass_over_the_rows(tiny_model: Path, rows, backbone, monkeypatch):
    students = [build_run(tiny_model, backbone, rows, method).student for method in ("head", "prefix")]
    wanted = [predict(student, rows.encoded) for student in students]
    assert len(rows.inputs.states) == len(rows.encoded)
    passes: list[Any] = []
    pooled = Backbone.pooled
    monkeypatch.setattr(Backbone, "pooled", lambda *some: passes.append(some) or pooled(*some))
    found = []
    for student in students:
        found.append(predict(student, rows.encoded, frozen=rows.inputs))
        assert bool(passes) == (student.prompt is not None)
    assert all(map(np.array_equal, found, wanted))


LONG = [pytest.param(method, 75, marks=pytest.mark.slow) for method in ("prefix", "prompt", "p_tuning")]


@pytest.mark.parametrize(("method", "epochs"), [("prefix", 3), ("late_prefix", 3), *LONG])
def test_a_pass_of_three_equals_three_alone_in_double_precision(tiny_model: Path, rows, method, epochs):
    """Students that differ in seed, rate, length of training and objective."""
    plans = [
        {"seed": 0, "lr": 0.01, "terms": KL_GRAM, "epochs": epochs},
        {"seed": 1, "lr": 0.003, "epochs": epochs * 4 // 5},
        {"seed": 2, "lr": 0.01, "terms": {"inter_instance": Term("gram", scope="all")}, "epochs": epochs},
    ]
    plans = [{"method": method, **plan} for plan in plans]
    alone = [double(tiny_model, rows, **plan) for plan in plans]
    for run in alone:
        fit(run)
    together = [double(tiny_model, rows, **plan) for plan in plans]
    shared = together[0].student.backbone
    for run in together:
        run.student.backbone = shared
    fit(*together)
    steps = [run.step for run in together]
    assert steps == [4 * epochs, 4 * (epochs * 4 // 5), 4 * epochs]
    for one, other in zip(alone, together, strict=True):
        assert gap(values(one), values(other)) <= 1e-8
        assert len(one.history) == len(other.history)
    assert gap(values(together[0]), values(together[2])) > 1e-3


def test_a_pass_of_two_equals_two_alone_for_the_first_20_steps(tiny_model: Path, rows, backbone):
    plans = [{"lr": 0.01, "seed": seed, "terms": KL_GRAM, "epochs": 5} for seed in range(2)]
    alone = [build_run(tiny_model, backbone, rows, **plan) for plan in plans]
    for run in alone:
        fit(run)
    together = [build_run(tiny_model, backbone, rows, **plan) for plan in plans]
    fit(*together)
    assert together[0].step == 20
    for one, other in zip(alone, together, strict=True):
        parts, others = (
            [torch.cat([p.detach().flatten() for p in part]) for part in (s.tuned, s.head_parameters)]
            for s in (one.student, other.student)
        )
        for a, b, share in zip(parts, others, (2e-5, 1e-6), strict=True):  # of the prompt, of the head
            assert torch.linalg.norm(a - b) <= share * torch.linalg.norm(a)


def test_a_student_is_blind_to_whoever_shares_its_batch(tiny_model: Path, rows, backbone):
    runs = [build_run(tiny_model, backbone, rows, seed=s, num_virtual_tokens=3 + s) for s in range(3)]
    batch = rows.encoded.batch([0, 1, 0, 1, 0, 1])
    together = forward([run.student for run in runs], batch, [2, 2, 2])
    for run, (logits, features) in zip(runs, together, strict=True):
        ((alone, alone_features),) = forward([run.student], rows.encoded.batch([0, 1]), [2])
        assert (logits - alone).abs().max() < 1e-5 * alone.abs().max()
        assert (features - alone_features).abs().max() < 1e-6
    assert (together[0][0] - together[1][0]).abs().max() > 1e-3


class Killed(Exception):
    """Stands for a killed process."""


def start_two(folder: Path, rows: StudentRows) -> list[Run]:
    """A prompt and a p-tuning with dropout, memory and selection: all that a checkpoint must hold."""
    backbone = Backbone.load(folder, dropout=0.1)
    tune = replace(rows, inputs=FrozenInputs(backbone, rows.encoded))
    terms = {"feature": Term("feature_mse"), "inter_instance": Term("gram", scope="queue:8")}
    plans = [
        {"method": "prompt", "terms": terms, "seed": 0, "epochs": 5},
        {"method": "p_tuning", "seed": 1, "epochs": 8},
    ]
    torch.manual_seed(7)
    runs = [build_run(folder, backbone, rows, tune=tune, select="tune", **plan) for plan in plans]
    torch.manual_seed(8)
    return runs


@pytest.fixture(scope="module")
def uninterrupted(tiny_model: Path, rows) -> list[Run]:
    runs = start_two(tiny_model, rows)
    fit(*runs)
    return runs


# In steps of the longer one, of 32: between two looks, and after the end of the other one.
KILLS = [7, pytest.param(15, marks=pytest.mark.slow), 29]


@pytest.mark.parametrize("kill_at", KILLS)
def test_resumed_equals_uninterrupted_bit_for_bit(
    tiny_model: Path, rows, uninterrupted, tmp_path, monkeypatch, kill_at: int
):
    save_every(2, train_module, monkeypatch.setattr)
    taken = 0

    def kill(_students: int) -> None:
        nonlocal taken
        taken += 1
        if taken == kill_at:
            raise Killed

    checkpoint = tmp_path / "pass.pt"
    with pytest.raises(Killed):
        fit(*start_two(tiny_model, rows), checkpoint=checkpoint, after_step=kill)
    resumed = start_two(tiny_model, rows)
    torch.manual_seed(99)  # a new process starts anywhere
    restore_runs(resumed, checkpoint)
    assert max(run.step for run in resumed) >= kill_at - 2
    fit(*resumed)
    for one, other in zip(uninterrupted, resumed, strict=True):
        assert one.history == other.history
        assert (one.best.step, one.examples) == (other.best.step, other.examples)
        assert one.last_finite == other.last_finite
        assert all(torch.equal(a, b) for a, b in zip(values(one), values(other), strict=True))


def test_the_best_step_on_tune_is_kept_the_probe_among_them(tiny_model: Path, rows, backbone, monkeypatch):
    scores = iter([0.5, 0.2, 0.6, 0.6, *[0.1] * 5] + [0.9] + [0.1] * 8)  # the earlier of equal ones wins
    seen = []

    def score(run, logits):
        seen.append(values(run))
        return {"tune_accuracy": next(scores)}

    monkeypatch.setattr(Run, "score", score)
    for best, step in ((2, 2), (9, 0)):  # of the 9 looks of each run
        run = build_run(tiny_model, backbone, rows, tune=rows, select="tune")
        fit(run)
        assert run.best.step == step
        assert gap(values(run), seen[best]) == 0
    assert gap(seen[2], seen[3]) > 0


def test_nan_stops_one_student_and_leaves_the_others(tiny_model: Path, rows, backbone):
    bad = replace(rows, teacher_logits=rows.teacher_logits * float("nan"))
    alone = build_run(tiny_model, backbone, rows, seed=1, lr=0.01)
    fit(alone)
    good = build_run(tiny_model, backbone, rows, seed=1, lr=0.01)
    ill = build_run(tiny_model, backbone, bad, terms={"inter_class": Term("kl")})
    late = build_run(tiny_model, backbone, rows, seed=2, lr=float("inf"))
    fit(ill, good, late)
    assert gap(values(good), values(alone)) < 1e-5
    assert good.diverged is None
    assert ill.diverged is not None
    assert late.diverged is not None
    assert ill.diverged == (1, None)  # no loss was ever finite
    step, last = late.diverged
    assert step == 2  # the first step is taken on a finite loss
    assert math.isfinite(last)


def test_step_of_a_divergence_is_exact_however_seldom_losses_are_looked_at(
    tiny_model: Path, rows, backbone, monkeypatch
):
    found = set()
    for every in (1, 3, 50):
        monkeypatch.setattr(run_module, "CHECK_STEPS", every)
        run = build_run(tiny_model, backbone, rows, lr=float("inf"))
        fit(run)
        found.add(run.diverged)
    assert len(found) == 1


@pytest.mark.parametrize("method", ["head", "prefix", "full"])
def test_the_head_starts_as_the_probe_of_what_it_reads(tiny_model: Path, rows, backbone, method):
    """With the prompt in place, so that training starts from a good student; the control is the probe."""
    run = build_run(tiny_model, backbone, rows, method)
    ((logits, features),) = forward([run.student], rows.encoded.batch(range(len(rows))), [len(rows)])
    probe = fit_probe(features.detach()[:, None], one_hot(rows.labels, 3))  # 5 folds, since there is no tune
    assert probe.strength == run.probe.strength
    wanted = probe.logits(features[:, None])
    assert (logits - wanted).abs().max() < 1e-3 * wanted.abs().max()
    before = values(run)
    fit(run)
    assert (gap(before, values(run)) == 0) == (method == "head")


def test_students_share_the_probe_of_what_they_share(
    tiny_model: Path, rows, backbone, monkeypatch, tmp_path: Path
):
    """The rows without a label change nothing, the teacher's probabilities do, and so does a prompt.

    Rows are read once for all that share, in other processes too: a probe of many rows takes as
    long as many steps.
    """
    read = []
    monkeypatch.setattr(
        "kdcache.students.probes.starting_features",
        lambda *some: read.append(some) or starting_features(*some),
    )
    half = replace(rows, labels=rows.labels.where(torch.arange(len(rows)) < 8, -1))

    def probe(method: str, some: StudentRows, seed: int = 0, **changes: Any) -> tuple[LinearProbe, bool]:
        """And whether it was made anew."""
        spec, before = tiny_spec(method, **changes), len(read)
        student = build_student(spec, 3, seed, tiny_model, backbone, rows.encoded)
        found = Probes(tmp_path).fit(student, some, spec, rows)
        assert len(read) - before in (0, 2)  # once the rows it learns from, once tune
        return found, len(read) > before

    alone, made = probe("head", half)
    assert made
    again, made = probe("head", half, terms=KL_GRAM, lr=0.5)
    assert not made
    assert again.strength == alone.strength
    assert all(torch.equal(getattr(again, part), getattr(alone, part)) for part in ("weight", "bias"))
    full, made = probe("full", half)
    assert made
    assert torch.equal(full.weight, alone.weight)
    assert [probe("head", rows.take(np.arange(8)))[1], probe("head", rows)[1]] == [False, True]
    taught = {"ce_weight": 0, "terms": KL_GRAM}
    assert [probe("head", half, **taught)[1], probe("head", rows, **taught)[1]] == [True, False]
    prompts = [probe("prefix", half), probe("prefix", half, terms=KL_GRAM), probe("prefix", half, seed=1)]
    assert [made for _, made in prompts] == [True, False, True]


def test_batches_run_on_over_epochs_of_the_runs_own_rows(tiny_model: Path, rows, backbone):
    run = build_run(tiny_model, backbone, rows)
    taken = []
    for run.step in range(6):
        taken.append(run.next_batch())
    plans = [batch for epoch in (0, 1) for batch in TrainingPlan(rows.encoded.lengths, 4, run.seed, epoch)]
    assert len(plans) == 8
    assert all(map(np.array_equal, taken, plans))


def test_training_repeats_bit_for_bit_and_lowers_the_loss(tiny_model: Path, rows, backbone):
    terms = {**KL_GRAM, "feature": Term("feature_mse")}
    runs = [build_run(tiny_model, backbone, rows, terms=terms, epochs=4) for _ in range(2)]
    for run in runs:
        fit(run)
    assert gap(*map(values, runs)) == 0.0
    assert (runs[0].steps, runs[0].examples) == (16, 4 * len(TEXTS))
    history = runs[0].history
    assert [entry["step"] for entry in history] == [0, 4, 8, 12, 16]
    names = ("ce", "kl", "gram", "feature_mse")
    watched = {f"{what}_{name}" for what in ("loss", "fixed", "share") for name in names}
    assert set(history[1]) == watched | {"step", "agreement", "kl_to_teacher", "gram_to_teacher"}
    assert set(history[0]) == {key for key in history[1] if not key.startswith("loss_")}
    for seen in history:
        assert sum(seen[f"share_{name}"] for name in names) == pytest.approx(1.0)
    totals = [sum(seen[f"loss_{name}"] for name in names) for seen in history[1:]]
    assert totals[-1] < totals[0]


def test_teacher_targets_matter(tiny_model: Path, rows, backbone):
    terms = {"inter_class": Term("kl")}
    other = replace(rows, teacher_logits=rows.teacher_logits.roll(1, 0))
    runs = [build_run(tiny_model, backbone, some, terms=terms) for some in (rows, other)]
    for run in runs:
        fit(run)
    outputs = [predict(run.student, rows.encoded, 8) for run in runs]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_dropout_acts_while_prompts_train_and_nowhere_else(tiny_model: Path, rows):
    dropping = Backbone.load(tiny_model, dropout=0.5)
    runs = [build_run(tiny_model, dropping, rows) for _ in range(2)]
    for seed, run in enumerate(runs):
        torch.manual_seed(seed)
        fit(run)
        assert np.array_equal(predict(run.student, rows.encoded, 8), predict(run.student, rows.encoded, 8))
    assert gap(*map(values, runs)) > 1e-3


def test_bfloat16_stays_near_float32(tiny_model: Path, rows, backbone):
    half = Backbone.load(tiny_model, dtype="bfloat16")
    runs = [build_run(tiny_model, some, rows, lr=1e-2) for some in (backbone, half)]
    for run in runs:
        fit(run)
    assert {value.dtype for value in values(runs[1])} == {torch.float32}
    assert {p.dtype for p in half.encoder.parameters()} == {torch.bfloat16}
    exact, found = (predict(run.student, rows.encoded) for run in runs)
    assert 0 < share_off(found, exact) < 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_is_not_fused_in_bfloat16_on_a_cpu(tiny_model: Path, rows, dtype):
    attention = "sdpa" if dtype == "float32" or torch.cuda.is_available() else "eager"
    backbone = Backbone.load(tiny_model, dtype=dtype)
    for method in ("prefix", "full", "lora"):
        own = build_run(tiny_model, backbone, rows, method).student.backbone
        assert own.config._attn_implementation == attention, method


def test_shuffled_targets_stay_within_the_class_and_leave_labels_and_text(rows):
    shuffled = rows.shuffled_within_class(seed=1)
    assert torch.equal(shuffled.labels, rows.labels)
    assert shuffled.encoded is rows.encoded
    where = {tuple(row): i for i, row in enumerate(rows.teacher_logits.tolist())}
    origin = [where[tuple(row)] for row in shuffled.teacher_logits.tolist()]
    assert sorted(origin) == list(range(len(TEXTS)))
    kept = [i for i, j in enumerate(origin) if i == j]
    assert all((rows.labels == rows.labels[i]).sum() == 1 for i in kept), "only a row alone of its label"
    assert len(kept) < len(origin)
    assert torch.equal(rows.labels[origin], rows.labels)
    assert torch.equal(rows.teacher_features[origin], shuffled.teacher_features)


def test_losses_are_means_over_the_rows_since_the_last_look(tiny_model: Path, rows, backbone, monkeypatch):
    batches = []
    terms = Run.terms

    def heard(run, logits, features, rows, remember=True):
        found = terms(run, logits, features, rows, remember)
        if remember:  # and is no look
            batches.append((len(rows), sum(found.values()).item()))
        return found

    monkeypatch.setattr(Run, "terms", heard)
    run = build_run(tiny_model, backbone, rows, epochs=4)
    fit(run)
    assert len({size for size, _ in batches}) > 1  # the last batch of an epoch is smaller
    steps = [entry["step"] for entry in run.history]
    for entry, start, end in zip(run.history[1:], steps, steps[1:], strict=False):
        some = batches[start:end]
        mean = sum(size * value for size, value in some) / sum(size for size, _ in some)
        assert entry["loss_ce"] == pytest.approx(mean, rel=1e-5)


def test_a_run_scores_its_student_on_tune(tiny_model: Path, rows, backbone):
    run = build_run(tiny_model, backbone, rows, tune=rows, select="tune")
    fit(run)
    logits = predict(run.student, rows.encoded)
    right = (logits.argmax(1) == rows.labels.numpy()).mean()
    assert run.score(logits)["tune_accuracy"] == pytest.approx(right)
    assert max(entry["tune_accuracy"] for entry in run.history) == pytest.approx(right)  # the best is kept
