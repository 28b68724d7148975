"""Plans against what the stages do: rows, tokens, operations, bytes, and what changes with the parameters."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_tiny_model, build_tokenizer, fails, run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdcache.analysis import plan as plan_module
from kdcache.analysis import planned, rates
from kdcache.analysis.plan import plan
from kdcache.analysis.planned import Split, Stage, in_windows
from kdcache.analysis.rates import Rate
from kdcache.cache.manifest import read_manifest
from kdcache.data.splits import read_tables
from kdcache.encoder.batching import encode
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_classifier
from kdcache.encoder.plans import fixed_plan
from kdcache.project import Project
from kdcache.students.student import EVAL_BATCH_SIZE

CPU = torch.device("cpu")
MEASURING = ("kdcache.analysis.plan", "kdcache.analysis.student_rates")


@pytest.fixture(autouse=True)
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch costs 1000 operations and each of its tokens 100, whatever the machine."""

    def known(_work: object, _model: object, _rows: object, size: int) -> Rate:
        return Rate((1e3, 1e2), (1e-3, 1e-5), (1e3, 1e2), size, 1000)

    for module in MEASURING:
        monkeypatch.setattr(f"{module}.measure", known)


def planned_stages(*overrides: str, tasks: tuple[str, ...] = ("cb",)) -> dict[str, Stage]:
    project = Project.load(overrides)
    return {stage.stage: stage for stage in plan(project, tasks)[0]}


def test_planned_rows_and_bytes_are_those_of_the_stages(cached_project):
    cached_project()
    stages = planned_stages()
    _, tables = read_tables("data", "cb")
    manifest = read_manifest(Path("cache", "cb"))
    assert stages["train_teacher"].rows == len(tables["train"])
    assert (
        stages["cache_teacher"].rows
        == sum(map(len, tables.values()))
        == sum(entry["rows"] for entry in manifest.files.values())
    )
    more = planned_stages("cache_teacher.top_k=2")["cache_teacher"].bytes - stages["cache_teacher"].bytes
    columns = 2  # the cached logits, and those of the teacher on all rows
    assert more == stages["cache_teacher"].rows * columns * 4 * (2 + 2 + 1 - 3)
    weights = [path.stat().st_size for path in Path("models", "teacher", "cb").rglob("*.safetensors")]
    assert stages["train_teacher"].bytes == pytest.approx(sum(weights), rel=0.1)
    assert stages["student_backbone"].bytes == pytest.approx(
        Path("models", "backbone", "model.safetensors").stat().st_size, rel=0.1
    )


def test_twice_the_steps_cost_twice_and_more_workers_less(built_project):
    built_project("prepare")

    def distill(steps: int, **changes: str) -> Stage:
        more = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
        return planned_stages("distill.epochs=null", f"distill.steps={steps}", *more)["distill"]

    few, some, many = (distill(steps).flops for steps in (1000, 2000, 3000))
    assert many - some == pytest.approx(some - few, rel=1e-6)
    assert some / few == pytest.approx(2, rel=0.05)
    assert distill(1000, distill__seeds="[0,1,2,3]").flops == pytest.approx(2 * few, rel=0.05)


def test_teachers_cost_by_their_number(built_project):
    built_project("prepare")
    one = planned_stages("train_teacher.folds=0")
    folds = planned_stages("train_teacher.folds=2")
    both = planned_stages("train_teacher.folds=0", "train_teacher.ensemble=2")
    two_epochs = ("train_teacher.epochs=3", "train_teacher.folds=0")
    more = planned_stages(*two_epochs)["train_teacher"].flops - one["train_teacher"].flops
    more_folds = planned_stages(two_epochs[0])["train_teacher"].flops - folds["train_teacher"].flops
    assert more_folds == pytest.approx(2 * more), "two teachers of half the rows beside the one of all"
    assert both["train_teacher"].bytes == pytest.approx(2 * one["train_teacher"].bytes)
    assert both["cache_teacher"].tokens == pytest.approx(2 * one["cache_teacher"].tokens)
    assert folds["cache_teacher"].tokens > 2 * one["cache_teacher"].tokens, "of rows outside train, three"


def test_rows_below_late_prompts_are_read_once(built_project):
    built_project("prepare", student_backbone={"num_layers": "all"})

    def tokens(method: str, seeds: list[int]) -> float:
        arms = {"one": {"method": method, "late_layers": 1 if method == "late_prefix" else None}}
        return planned_stages(f"distill.arms={json.dumps(arms)}", f"distill.seeds={seeds}")["distill"].tokens

    saved = [tokens("prefix", seeds) - tokens("late_prefix", seeds) for seeds in ([0], [0, 1])]
    _, splits = planned.read_prepared(Project.load(), ["cb"], build_tokenizer(), 64)["cb"]
    once = sum(part.batches(fixed_plan, EVAL_BATCH_SIZE)[1] for part in splits.values())
    assert 2 * saved[0] - saved[1] == pytest.approx(-once / 2), "half of the layers, whatever the seeds"


def test_the_order_of_arms_changes_no_plan(built_project):
    built_project("prepare", prepare={"max_rows": {"train": 24, "unlabelled": 40}})

    def tokens(*arms: str) -> float:
        losses = {"ce": {}, "kl": {"inter_class": {"name": "kl"}}}
        late = {arm: {"method": "late_prefix", "late_layers": 1} | losses[arm] for arm in arms}
        change = ("student_backbone.num_layers=all", f"distill.arms={json.dumps(late)}")
        return planned_stages(*change)["distill"].tokens

    assert tokens("ce", "kl") == pytest.approx(tokens("kl", "ce"))


def test_teachers_score_in_float32_whatever_the_cache_is_computed_in(built_project, monkeypatch):
    built_project("prepare")
    read, dtypes = plan_module.extract, []

    def reading(*arguments: Any) -> Any:
        dtypes.append(arguments[-1])
        return read(*arguments)

    monkeypatch.setattr("kdcache.analysis.plan.extract", reading)
    monkeypatch.setattr("kdcache.analysis.plan.measure", partial(rates.measure, seconds=0))
    planned_stages("cache_teacher.dtype=bfloat16")
    assert set(dtypes) == {"bfloat16", "float32"}


def test_a_students_step_is_measured_with_dropout_and_its_forward_pass_without(cached_project, monkeypatch):
    cached_project("cb", distill={"dropout": 0.1})
    trained = []

    def watched(work: Any, model: Any, rows: Any, size: int) -> Rate:
        encoder = model.backbone.encoder
        hook = encoder.register_forward_pre_hook(lambda *_: trained.append(encoder.training))
        work(rows.take(np.arange(8)))
        hook.remove()
        return Rate((1e3, 1e2), (1e-3, 1e-5), (1e3, 1e2), size, 1000)

    monkeypatch.setattr("kdcache.analysis.student_rates.measure", watched)
    planned_stages()
    assert trained == [True, False] * (len(trained) // 2)


def test_operations_of_a_pass_are_those_that_torch_counts(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 256}
    folder = build_tiny_model(tmp_path / "model", **sizes)
    tokenizer = build_tokenizer()
    texts = [" ".join(["the"] * (3 + k % 40)) for k in range(64)]
    rows = encode(tokenizer, texts, None, 64)
    model = load_classifier(folder, 3, 0)
    rate = rates.measure(lambda some: extract(model, some, 3, len(some), CPU), model, rows, 16, seconds=0)
    stage = Stage("cache_teacher", "t", 64, 0.0)
    stage.read(rate, Split(64, 64, rows, np.zeros(64, int)).batches(fixed_plan, 16))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        extract(model, rows, 3, 16, CPU)
    assert stage.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_training_step_holds_what_autograd_keeps(tiny_model):
    """A step of a model that keeps its inputs only, by hand: two Linears and a GELU between them."""
    encoded = encode(build_tokenizer(), ["the bank"] * 8, None, 64)
    layers = [torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 3)]
    model = torch.nn.Sequential(*layers)
    states = torch.randn(8, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    step = rates.training_step(lambda batch: model(states), optimizer, "float32", CPU)
    rate = rates.measure(step, model, encoded, 8, seconds=0)
    kept = 4 * 8 * (16 + 32 + 32 + 3) + 8 * 8  # inputs of each, log-softmax, labels
    assert rates.at(rate.held, 1, rate.tokens) == pytest.approx(kept, rel=0.02)
    before = [parameter.clone() for parameter in model.parameters()]
    step(encoded)
    assert all(map(torch.equal, before, model.parameters())), "the rate is 0"


def test_a_sample_stands_for_all_rows(built_project, monkeypatch):
    built_project("prepare", prepare={"max_rows": None})
    tokenizer, whole = build_tokenizer(), {}
    for most in (10**6, 400):
        monkeypatch.setattr(planned, "SAMPLED_ROWS", most)
        _, splits = planned.read_prepared(Project.load(), ["cb"], tokenizer, 64)["cb"]
        assert sum(len(part.sample) for part in splits.values()) <= most + len(splits)
        whole[most] = splits["train"].batches(in_windows, 8)
        assert splits["train"].rows == len(read_tables("data", "cb")[1]["train"])
    assert np.allclose(whole[400], whole[10**6], rtol=0.05)


def test_rows_that_are_not_prepared_are_refused(project):
    project()
    assert "kdcache prepare --task wic" in fails("plan")
    assert not Path("data").exists()


def test_what_a_stage_refuses_is_refused(built_project):
    built_project("prepare", prepare={"max_rows": 32, "tune_fraction": 0})
    assert "tune" in fails("plan", "--set", "train_teacher.select=tune")
    assert "max_length" in fails("plan", "--set", "student_backbone.max_length=4000")
    assert "arms" in fails("plan", "--set", "distill.arms={}")
    assert "distill.select" in fails("plan", "--set", "distill.select=tune")


def test_the_command_shows_what_is_planned_beside_what_it_took(cached_project, monkeypatch):
    for module in MEASURING:
        monkeypatch.setattr(f"{module}.measure", partial(rates.measure, seconds=0))  # the real one
    folder = cached_project()
    there = sorted(folder.rglob("*"))
    code, out, error = run("plan", "--task", "cb", "--workers", "3")
    assert (code, error) == (0, "")
    assert sorted(folder.rglob("*")) == there, "it writes nothing"
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    assert {"teach*", "cache*", "shrink*", "distill", "all"} <= lines.keys()
    timing = json.loads(Path("timings", "cache_teacher-cb.json").read_text())["seconds"]
    assert float(lines["cache*"][-2]) == pytest.approx(timing / 60, abs=0.06)
    assert "GFLOP/s" in out


def test_workers_share_units_and_no_more():
    stage = Stage("cache_teacher", "t", rows=1, start=10, work=80, units=4)
    assert [stage.on(workers) for workers in (1, 2, 4, 9)] == [90, 50, 30, 30]
    assert replace(stage, units=1).on(8) == 90
    assert replace(stage, parallel=2, units=1).on(1) == 50
