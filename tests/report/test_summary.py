"""Scores and the report: right numbers, the same bytes, failures marked."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdcache.data.metrics import accuracy_interval, compute_metrics, majority_metrics
from kdcache.data.superglue.score import superglue_metrics
from kdcache.report.figures import _shares_by_arm, draw_results, draw_shares
from kdcache.report.summary import results_markdown
from kdcache.students.results import mean_curves, over_seeds, summarise_arms


def result(arm: str, seed: int, accuracy: float) -> dict[str, Any]:
    return {
        "arm": arm, "seed": seed, "method": "head" if arm == "head" else "prefix",
        "validation": {"accuracy": accuracy, "rows": 100},
        "diagnostics": {"axb": {"matthews": accuracy - 0.6, "rows": 40}},
        "steps": 10, "probe_steps": 5, "examples": 160, "prompt_parameters": 8, "head_parameters": 2,
        "history": [{"epoch": e, "loss_ce": accuracy + e, "tune_accuracy": accuracy} for e in (0, 1)],
    }  # fmt: skip


RESULTS = [result("head", 0, 0.60), result("head", 1, 0.62), result("kl", 0, 0.70), result("kl", 1, 0.72)]


def task_metrics() -> dict[str, Any]:
    return {
        "task": "wic", "metric": "accuracy", "rows": {"train": 50, "validation": 100},
        "majority": {"accuracy": 0.5, "rows": 100},
        "teacher": {
            "folds": 2, "all_rows": {"accuracy": 0.8, "rows": 100}, "cached": {"accuracy": 0.75, "rows": 100},
            "cost": {"training_steps": 3, "training_examples": 90, "forward_examples": 300},
        },
        "arm_order": ["head", "kl"], "arms": summarise_arms(RESULTS),
    }  # fmt: skip


def test_arms_are_summarised_over_seeds():
    arms = summarise_arms(RESULTS)
    cell = arms["kl"]["validation"]["accuracy"]
    assert cell["mean"] == pytest.approx(0.71)
    assert cell["sd"] == pytest.approx(0.0141421, rel=1e-4)
    assert cell["seeds"] == {"0": 0.70, "1": 0.72}
    assert (arms["kl"]["steps"], arms["kl"]["examples"], arms["kl"]["trained_parameters"]) == (20, 320, 10)
    assert set(arms["kl"]["validation"]) == {"accuracy"}
    assert arms["kl"]["diagnostics"]["axb"]["matthews"]["mean"] == pytest.approx(0.11)


def test_diagnostics_have_a_table_of_their_own():
    metrics = task_metrics()
    metrics["teacher"]["diagnostics"] = {"axb": {"matthews": 0.25, "rows": 40}}
    text = results_markdown([metrics])
    section = text.split("## Diagnostics, scored with the models above\n\n")[1].split("\n\n")[0]
    assert section.splitlines() == [
        "|  | axb matthews |", "| --- | ---: |",
        "| head | 1.0 ± 1.4 |", "| kl | 11.0 ± 1.4 |", "| teacher | 25.0 |",
    ]  # fmt: skip
    assert "Diagnostics" not in results_markdown([task_metrics()])


def test_superglue_score_is_shown_when_all_eight_tasks_are_there():
    tasks = []
    for name, metrics in superglue_metrics().items():
        scores = {metric: 0.5 + 0.1 * i for i, metric in enumerate(metrics)}
        arm = {"validation": {k: {"mean": v, "sd": 0.0, "seeds": {"0": v}} for k, v in scores.items()}}
        whole = task_metrics() | {"task": name, "metric": metrics[0], "majority": scores, "arm_order": ["kl"]}
        whole["teacher"] |= {"all_rows": scores | {"rows": 9}, "cached": scores | {"rows": 9}}
        tasks.append(whole | {"arms": {"kl": task_metrics()["arms"]["kl"] | arm}})
    # Three tasks of two metrics at 50 and 60, five at 50.
    line = "SuperGLUE score over the eight validation splits: teacher 51.9, kl 51.9."
    assert line in results_markdown(tasks)
    assert "SuperGLUE score" not in results_markdown(tasks[1:])


def test_curves_are_means_over_seeds():
    curves = mean_curves(RESULTS)
    assert curves[["arm", "epoch"]].values.tolist() == [["head", 0], ["head", 1], ["kl", 0], ["kl", 1]]
    assert curves["loss_ce"].tolist() == pytest.approx([0.61, 1.61, 0.71, 1.71])


def test_table_shows_each_arm_with_interval_and_cost():
    text = results_markdown([task_metrics()])
    assert "| kl | 71.0 ± 1.4 |" in text
    assert "| teacher | 80.0 [71.1, 86.7] |" in text
    assert "| teacher as cached (mean of folds) | 75.0 [65.7, 82.5] |" in text
    assert "Not working" not in text


def test_an_arm_at_or_below_head_is_marked_as_not_working():
    metrics = task_metrics()
    metrics["arms"] = summarise_arms([*RESULTS[:2], result("kl", 0, 0.61)])
    assert "**Not working on wic** (at or below `head`): kl." in results_markdown([metrics], "head")
    assert "Not working" not in results_markdown([metrics])


def test_a_diverged_student_is_named_with_the_last_loss_it_had():
    diverged = {"arm": "kl", "seed": 2, "diverged": {"step": 7, "last_finite_loss": 12.34567}}
    text = results_markdown([task_metrics() | {"diverged": [diverged]}, task_metrics() | {"task": "cb"}])
    notes = [line for line in text.splitlines() if line.startswith("**")]
    assert notes == ["**Diverged on wic, left out**: kl, seed 2 (at step 7, last finite loss 12.35)."]
    assert "| kl | 71.0 ± 1.4 | 71.0 ± 1.4 |" in text  # of the seeds that are left
    diverged["diverged"] = {"step": 1, "last_finite_loss": None}
    text = results_markdown([task_metrics() | {"diverged": [diverged]}])
    assert "kl, seed 2 (at step 1, last finite loss none)." in text


def test_figure_is_the_same_bytes_and_shows_every_arm(tmp_path: Path):
    for name in ("a.svg", "b.svg"):
        draw_results([task_metrics(), task_metrics()], tmp_path / name)
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text()
    changed = copy.deepcopy(task_metrics())
    changed["arms"]["kl"]["validation"]["accuracy"]["seeds"]["0"] = 0.9
    draw_results([changed, task_metrics()], tmp_path / "c.svg")
    assert svg != (tmp_path / "c.svg").read_text()


def curves(gram: float = 0.3) -> pd.DataFrame:
    rows = [{"arm": "head", "epoch": 0, "share_ce": 1.0}]
    for epoch in (0, 1):
        shares = {"share_ce": 0.6 - gram / 2, "share_kl": 0.4 - gram / 2, "share_gram": gram}
        rows.append({"arm": "kl+gram", "epoch": epoch, **shares})
    return pd.DataFrame(rows)


def test_shares_are_drawn_for_arms_of_several_terms():
    (name,) = shares = _shares_by_arm(curves())
    assert name == "kl+gram"
    assert list(shares[name]) == ["share_ce", "share_kl", "share_gram"]
    assert list(shares[name].index) == [0, 1]


def test_shares_are_the_same_bytes_and_show_the_numbers(tmp_path: Path):
    for name, gram in (("a.svg", 0.3), ("b.svg", 0.3), ("c.svg", 0.1)):
        draw_shares({"wic": curves(gram), "cb": curves()}, tmp_path / name)
    first, again, other = ((tmp_path / name).read_bytes() for name in ("a.svg", "b.svg", "c.svg"))
    assert first == again
    assert first != other


def test_shares_of_arms_of_one_term_are_an_empty_figure(tmp_path: Path):
    draw_shares({"wic": curves()[:1]}, tmp_path / "empty.svg")
    assert (tmp_path / "empty.svg").is_file()


def test_scores_by_hand():
    labels = np.array([0, 0, 1, 2, -1])
    logits = np.eye(3)[[0, 1, 1, 1, 0]]
    scores = compute_metrics(["accuracy", "macro_f1"], labels, logits)
    # class F1: 0 → 2/3; 1 → 2·(1/3)·1/(4/3) = 1/2; 2 → 0
    assert scores == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 1 / 2) / 3), "rows": 4}
    assert compute_metrics(["accuracy"], np.array([-1]), logits[:1]) == {}
    assert majority_metrics(["accuracy"], labels, 3) == {"accuracy": 0.5, "rows": 4}


def test_interval_holds_the_truth_about_95_times_in_100():
    draws = np.random.default_rng(0).binomial(200, 0.7, size=2000)
    held = [low <= 0.7 <= high for low, high in (accuracy_interval(k / 200, 200) for k in draws)]
    assert 0.93 < np.mean(held) < 0.97


def test_an_ensembles_members_have_a_row_and_are_counted():
    metrics = task_metrics()
    metrics["teacher"] |= {"folds": 0, "members": over_seeds({0: {"accuracy": 0.7}, 1: {"accuracy": 0.8}})}
    text = results_markdown([metrics])
    assert "| one teacher | 75.0 ± 7.1 |" in text
    assert "| ensemble | 80.0 [71.1, 86.7] |" in text
    assert "students, one teacher: mean ± standard deviation over seeds 0, 1; ensemble: Wilson's" in text
    assert "| wic | 2 teachers (2 seeds) | all | 3 | 90 | 300 |" in text
    assert "one teacher" not in results_markdown([task_metrics()])
