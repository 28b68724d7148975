"""Tables of scores and cost: right cells, failures marked."""

from typing import Any

import pytest
from records import LIFTED, build_record

from kdcache.data.superglue.score import superglue_metrics
from kdcache.report.cost import cost_table, saving_table, savings, timed_saving_table
from kdcache.report.tables import NONE, diagnostic_table, score_table, superglue_sentence
from kdcache.students.results import over_seeds


def cell(*values: float) -> dict[str, Any]:
    return over_seeds({seed: {"accuracy": value} for seed, value in enumerate(values)})["accuracy"]


def task_metrics(**scores: tuple[float, ...]) -> dict[str, Any]:
    """Metrics of one task: arm → accuracy of each seed."""
    counts = {"trained_parameters": 10, "steps": 20, "examples": 320}
    return {
        "task": "wic", "metric": "accuracy", "rows": {"train": 50, "validation": 100},
        "majority": {"accuracy": 0.5, "rows": 100}, "diverged": [],
        "teacher": {
            "folds": 2, "all_rows": {"accuracy": 0.8, "rows": 100}, "cached": {"accuracy": 0.75, "rows": 100},
            "cost": {"training_steps": 3, "training_examples": 90, "forward_examples": 300},
        },
        "arm_order": list(scores),
        "arms": {
            arm: {
                **counts, "method": "prefix", "targets": "cached", "validation": {"accuracy": cell(*values)},
                "diagnostics": {"axb": {"matthews": cell(*(value - 0.6 for value in values))}},
            }
            for arm, values in scores.items()
        },
    }  # fmt: skip


METRICS = {"head": (0.60, 0.62), "kl": (0.70, 0.72)}


def rows(table: Any) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in table.rows}


def test_scores_are_means_and_standard_deviations_over_seeds():
    table = score_table([task_metrics(**METRICS), task_metrics(**METRICS) | {"task": "cb"}], "head")
    assert table.header == ["", "wic accuracy", "cb accuracy"]
    assert rows(table) == {
        "majority class": ["50.0"] * 2,
        "head": ["61.0 ± 1.4"] * 2,
        "kl": ["71.0 ± 1.4"] * 2,
        "teacher": ["80.0"] * 2,
        "teacher as cached (mean of folds)": ["75.0"] * 2,
    }


def test_an_arm_at_or_below_the_control_is_marked():
    metrics = task_metrics(head=(0.60, 0.62), kl=(0.61, 0.61))
    assert rows(score_table([metrics], "head"))["kl"] == ["61.0 ± 0.0 †"]
    assert "`head`" in score_table([metrics], "head").caption
    assert "†" not in str(score_table([metrics], None))


def test_one_seed_has_no_deviation():
    assert rows(score_table([task_metrics(head=(0.60,), kl=(0.61,))], "head"))["kl"] == ["61.0"]


def test_an_arm_that_a_task_lacks_is_a_dash():
    table = score_table([task_metrics(**METRICS), task_metrics(head=(0.6,)) | {"task": "cb"}], "head")
    assert rows(table)["kl"] == ["71.0 ± 1.4", "—"]


def test_an_ensembles_members_have_a_row_and_are_counted():
    metrics = task_metrics(**METRICS)
    metrics["teacher"] |= {"folds": 0, "members": over_seeds({0: {"accuracy": 0.7}, 1: {"accuracy": 0.8}})}
    found = rows(score_table([metrics], "head"))
    assert found["one teacher"] == ["75.0 ± 7.1"]
    assert found["ensemble"] == ["80.0"]
    assert cost_table([metrics]).rows[0][1] == "2 teachers (2 seeds)"


def test_the_probe_of_the_teachers_base_stands_below_the_teacher():
    metrics = task_metrics(**METRICS)
    assert "linear probe of the teacher's base" not in rows(score_table([metrics], "head"))
    metrics["teacher"]["probe"] = {"strength": 0.1, "validation": {"accuracy": 0.66}}
    tasks = [metrics, task_metrics(**METRICS) | {"task": "cb"}]
    assert rows(score_table(tasks, "head"))["linear probe of the teacher's base"] == ["66.0", "—"]


def test_diagnostics_have_a_table_of_their_own():
    metrics = task_metrics(**METRICS)
    assert diagnostic_table([metrics]) is None
    metrics["teacher"]["diagnostics"] = {"axb": {"matthews": 0.25, "rows": 40}}
    table = diagnostic_table([metrics])
    assert table.header == ["", "axb matthews"]
    assert rows(table) == {"head": ["1.0 ± 1.4"], "kl": ["11.0 ± 1.4"], "teacher": ["25.0"]}


def test_superglue_score_is_said_when_all_eight_tasks_are_there():
    tasks = []
    for name, names in superglue_metrics().items():
        scores = {metric: 0.5 + 0.1 * i for i, metric in enumerate(names)}
        whole = task_metrics(**METRICS) | {"task": name, "metric": names[0], "majority": scores}
        whole["teacher"] |= {"all_rows": scores | {"rows": 9}}
        whole["arms"]["kl"]["validation"] = {metric: cell(value) for metric, value in scores.items()}
        tasks.append(whole | {"arm_order": ["kl"]})
    # Three tasks of two metrics at 50 and 60, five at 50.
    assert "teacher 51.9, kl 51.9." in superglue_sentence(tasks)
    assert superglue_sentence(tasks[1:]) is None


def test_cost_counts_teachers_and_students():
    unknown = task_metrics(**METRICS)
    unknown["teacher"] = unknown["teacher"] | {"cost": {}}  # of a cache that others wrote
    assert cost_table([unknown]).rows[0][3:] == [NONE] * 3
    assert savings([unknown]) == []
    table = cost_table([task_metrics(**METRICS)])
    assert table.rows == [
        ["wic", "3 teachers (all rows, 2 folds)", "all", "3", "90", "300"],
        ["wic", "head, all seeds", "10", "20", "320", "0"],
        ["wic", "kl, all seeds", "10", "20", "320", "0"],
    ]


def test_break_even_is_the_cost_of_caching_over_that_of_a_student():
    record = build_record(LIFTED, rows=20)
    found = savings([record.metrics])  # 3 arms of 3 students, 160 examples per arm and seed
    assert (found[0].cached, found[0].live, found[0].students) == (300, 3 * 3 * 160, 9)
    assert found[0].break_even == pytest.approx(300 / 160)
    assert saving_table(found).rows == [["wic", "300", "1440", "9", "1.9"]]
    # A head that fits the teacher's probabilities takes no step.
    record.metrics["arms"]["head"] |= {"targets": "cached", "examples": 0}
    assert savings([record.metrics]) == found
    timings = [{"stage": "cache_teacher", "task": "wic", "seconds": 10.0}]
    (row,) = timed_saving_table(found, timings).rows  # 30 examples/s, so 160 examples take 5.3 s
    assert row == ["wic", "30", "10.0", "5.3", "+38.0"]
    assert timed_saving_table(found, []).rows == []
