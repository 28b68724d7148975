"""Summaries of students over seeds."""

from typing import Any

import pytest

from kdcache.students.curves import mean_curves
from kdcache.students.results import summarise_arms


def result(arm: str, seed: int, accuracy: float) -> dict[str, Any]:
    return {
        "arm": arm, "seed": seed, "method": "prefix", "objective": "1 · ce", "targets": None,
        "validation": {"accuracy": accuracy, "rows": 100},
        "diagnostics": {"axb": {"matthews": accuracy - 0.6, "rows": 40}},
        "steps": 10, "examples": 160, "prompt_parameters": 8, "head_parameters": 2,
        "history": [{"step": s, "loss_ce": accuracy + s, "tune_accuracy": accuracy} for s in (0, 1)],
    }  # fmt: skip


RESULTS = [result("head", 0, 0.60), result("head", 1, 0.62), result("kl", 0, 0.70), result("kl", 1, 0.72)]


def test_arms_are_summarised_over_seeds():
    arm = summarise_arms(RESULTS)["kl"]
    cell = arm["validation"]["accuracy"]
    assert cell["mean"] == pytest.approx(0.71)
    assert cell["sd"] == pytest.approx(0.0141421, rel=1e-4)
    assert cell["seeds"] == {"0": 0.70, "1": 0.72}
    assert (arm["steps"], arm["examples"], arm["trained_parameters"]) == (20, 320, 10)
    assert (arm["method"], arm["objective"], arm["targets"]) == ("prefix", "1 · ce", None)
    assert set(arm["validation"]) == {"accuracy"}
    assert arm["diagnostics"]["axb"]["matthews"]["mean"] == pytest.approx(0.11)


def test_curves_are_means_over_seeds():
    curves = mean_curves(RESULTS)
    assert curves[["arm", "step"]].values.tolist() == [["head", 0], ["head", 1], ["kl", 0], ["kl", 1]]
    assert curves["loss_ce"].tolist() == pytest.approx([0.61, 1.61, 0.71, 1.71])
