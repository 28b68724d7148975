"""Numbers of the report are those of kdcache.stats, and its sentences say what they show."""

import dataclasses

import pytest
from records import BLANK, KINDS, LEVEL, LIFTED, PARAMS, build_record

from kdcache.errors import ParamsError
from kdcache.report import figures
from kdcache.report.answer import answer, shown
from kdcache.report.comparisons import PROMPTLESS, Comparison
from kdcache.report.findings import ReportParams, compute_findings
from kdcache.report.page import build_sections, page_json, score_panels
from kdcache.report.tables import gain_table
from kdcache.stats.estimates import Estimate, effect, holm, level, mean_estimate
from kdcache.stats.runs import read_runs
from kdcache.stats.verdicts import gap_closed
from kdcache.students.methods import METHODS

LIFT, TEACHER = "Does distillation lift the students over the baseline?", "Is the teacher reached?"


@pytest.fixture(scope="module")
def lifted():
    return [build_record(LIFTED, "wic", seed=1), build_record(LIFTED, "cb", seed=2)]


@pytest.fixture(scope="module")
def findings(lifted):
    """What the report finds in these."""
    return compute_findings(lifted, PARAMS)


def told(findings):
    """Topic → text."""
    return {sentence.topic: sentence.text for sentence in answer(findings)}


def without(records, *arms):
    """The records as if these arms had not been there."""
    kept = []
    for record in records:
        metrics = dict(record.metrics)
        metrics["arm_order"] = [arm for arm in metrics["arm_order"] if arm not in arms]
        metrics["arms"] = {arm: metrics["arms"][arm] for arm in metrics["arm_order"]}
        predictions = record.predictions[~record.predictions["arm"].isin(arms)]
        curves = record.curves[~record.curves["arm"].isin(arms)]
        kept.append(dataclasses.replace(record, metrics=metrics, predictions=predictions, curves=curves))
    return kept


def test_every_number_is_that_of_kdcache_stats(findings, lifted):
    runs = [read_runs(record.predictions, "accuracy", record.rows) for record in lifted]
    assert findings.levels["cb"]["kl"] == level(runs[1], "kl")
    assert findings.gains["kl"]["wic"] == effect(runs[0], "kl", over="ce")
    assert findings.lift.mean == mean_estimate([effect(r, "kl", over="ce") for r in runs])
    assert findings.shares["kl+gram"] == gap_closed(runs, "kl+gram", baseline="ce", upper="full")


def test_a_planted_effect_is_found_and_comes_first(findings):
    mean = findings.lift.mean
    assert mean.low < LIFTED["kl"] - LIFTED["ce"] < mean.high
    share = findings.shares["kl+gram"]
    assert share.low < 100 * (LIFTED["kl+gram"] - LIFTED["ce"]) / (LIFTED["full"] - LIFTED["ce"]) < share.high
    text = told(findings)
    assert list(text)[1:3] == [LIFT, TEACHER]  # after what there is to distil
    assert text[LIFT].startswith("Yes. `kl` over `ce`: ")
    assert f"95% CI {mean.range}" in text[LIFT]
    assert "primary" in text[LIFT]
    gap = text["How much of the gap between `ce` and `full` closes?"]
    assert gap.startswith(f"`kl` closes {findings.shares['kl']} of the ")
    assert "`kl+gram`" in gap
    assert "feature" not in gap  # it gains nothing
    assert not findings.not_working


def test_no_effect_is_said_to_be_none():
    findings = compute_findings([build_record(LEVEL, seed=3)], PARAMS)
    text = told(findings)
    assert text[LIFT].startswith("No difference is shown.")
    assert "Better" not in text["Other comparisons, after Holm's correction."]
    assert "There is none" in text["How much of the gap between `ce` and `full` closes?"]
    assert text[TEACHER].startswith("Not asked on wic")


def test_a_harm_is_said_to_be_one():
    worse = build_record(LIFTED | {"kl": 55}, rows=1500, seed=1)
    assert told(compute_findings([worse], PARAMS))[LIFT].startswith("No, it is worse.")


def test_what_holm_takes_back_is_not_called_better():
    mean = Estimate(1.5, 0.05, 0.1, df_seeds=4, df_groups=2999, seeds=5, groups=3000)
    assert mean.low > 0
    pair = Comparison("kl", "ce", {"subj": mean}, mean, "secondary", holm=0.071)
    assert shown(pair) == "none"
    assert shown(dataclasses.replace(pair, holm=0.049)) == "better"


def test_an_arm_that_is_not_above_the_control_is_named():
    findings = compute_findings([build_record(LIFTED | {"ce": 50}, seed=1)], PARAMS)
    assert findings.not_working == {"wic": ["ce"]}
    assert "on wic: `ce`." in told(findings)["Not working."]


def test_arms_are_those_that_the_parameters_name(lifted):
    findings = compute_findings(lifted, ReportParams(control="ce", baseline="head", upper="kl+gram"))
    assert (findings.control, findings.baseline, findings.upper) == ("ce", "head", "kl+gram")
    runs = [read_runs(record.predictions, "accuracy", record.rows) for record in lifted]
    assert findings.gains["kl"]["wic"] == effect(runs[0], "kl", over="head")
    assert findings.shares["kl"] == gap_closed(runs, "kl", baseline="head", upper="kl+gram")
    assert all("head" in below for below in findings.not_working.values())


def test_without_an_upper_arm_no_share_is_reported(lifted):
    findings = compute_findings(without(lifted, "full"), PARAMS)
    assert (findings.upper, findings.shares) == (None, {})
    assert not any("gap" in sentence.topic + sentence.text for sentence in answer(findings))
    assert "gap" not in str(gain_table(findings).header)


@pytest.mark.parametrize(
    ("gone", "topic", "missing"), [("head", TEACHER, "report.control"), ("ce", LIFT, "report.baseline")]
)
def test_a_missing_arm_leaves_out_what_needs_it_with_one_sentence(gone, topic, missing, monkeypatch):
    monkeypatch.setattr(figures, "_svg", lambda *_, **__: BLANK)
    truth = {arm: points for arm, points in LIFTED.items() if arm in {"head", "ce", "kl", "teacher"} - {gone}}
    findings = compute_findings([build_record(truth, rows=100)], PARAMS)
    about = [sentence for sentence in answer(findings) if f"`{gone}`" in sentence.text]
    assert [sentence.topic for sentence in about] == [topic]
    assert about[0].text.startswith(f"Not known: `{gone}` ({missing})")
    assert findings.shares == {}
    assert build_sections(findings, [], {})


def test_methods_without_a_prompt_are_those_of_the_students():
    assert {name for name, method in METHODS.items() if method.place is None} == set(PROMPTLESS)


def test_standing_comparisons_are_every_other_prompt_arm_over_the_baseline(lifted):
    kinds = KINDS | {"p": ("p_tuning", None)}
    record = build_record({"p": 70} | LIFTED, kinds=kinds, rows=200)
    pairs = [(c.arm, c.over, c.place) for c in compute_findings([record], PARAMS).comparisons]
    assert pairs[0] == ("kl", "ce", "primary")  # the first arm that learns from the teacher
    assert pairs[1:] == [(arm, "ce", "secondary") for arm in ("p", "kl+gram", "feature")]
    controlled = compute_findings([record], ReportParams(control="p")).comparisons
    assert [c.arm for c in controlled] == ["kl", "kl+gram", "feature"]


def test_a_plan_has_its_primary_comparison_and_its_own_family(lifted):
    planned = [("kl", "ce"), ("kl", "head"), ("full", "kl")]
    findings = compute_findings(lifted, ReportParams(comparisons=tuple(planned)))
    assert [(c.arm, c.over) for c in findings.comparisons] == planned
    assert [c.place for c in findings.comparisons] == ["primary", "secondary", "secondary"]
    runs = [read_runs(record.predictions, "accuracy", record.rows) for record in lifted]
    means = [mean_estimate([effect(r, arm, over) for r in runs]) for arm, over in planned]
    assert [c.mean for c in findings.comparisons] == means
    adjusted = holm({"head": means[1].p, "full": means[2].p})
    assert [c.holm for c in findings.comparisons] == [None, adjusted["head"], adjusted["full"]]


def test_a_lift_that_is_not_the_primary_comparison_is_still_the_first_answer(lifted):
    params = ReportParams(comparisons=(("kl+gram", "kl"), ("kl+gram", "ce")))
    findings = compute_findings(lifted, params)
    assert findings.distilled == "kl+gram"
    text = told(findings)
    assert "`kl+gram` over `ce`" in text[LIFT]
    assert "Holm" in text[LIFT]
    assert "`kl+gram` over `kl`" in text["Primary comparison."]
    unplanned = compute_findings(lifted, ReportParams(comparisons=(("kl+gram", "kl"),)))
    assert unplanned.lift.place == "unplanned"
    assert "not planned" in told(unplanned)[LIFT]


@pytest.mark.parametrize("pair", [("kl", "cee"), ("kl",), ("kl", "kl"), ("kl", "ce")])
def test_a_comparison_of_no_two_arms_or_that_is_there_is_refused(lifted, pair):
    with pytest.raises(ParamsError, match=r"report\.comparisons\[1\]"):
        compute_findings(lifted, ReportParams(comparisons=(("kl", "ce"), pair)))


def test_arms_that_share_no_seed_are_named(lifted):
    (record,) = without(lifted[:1], "full")
    student = {"arm": "full", "seed": 0, "diverged": {"step": 7, "last_finite_loss": 9.0}}
    record = dataclasses.replace(record, metrics=dict(record.metrics) | {"diverged": [student]})
    findings = compute_findings([record], ReportParams(comparisons=(("kl", "ce"), ("full", "kl"))))
    assert "`full` and `kl`" in told(findings)["Not compared."]
    assert "`full`, seed 0, on wic at step 7" in told(findings)["Diverged and left out."]


def test_the_control_may_lack_a_student_on_one_task(lifted):
    records = [*without(lifted[:1], "head"), lifted[1]]
    assert "Not known on wic" in told(compute_findings(records, PARAMS))[TEACHER]


def test_a_diverged_student_leaves_its_other_seeds_compared(lifted):
    (record,) = lifted[:1]
    rest = record.predictions[~((record.predictions["arm"] == "kl") & (record.predictions["seed"] == 1))]
    findings = compute_findings([dataclasses.replace(record, predictions=rest)], PARAMS)
    assert findings.gains["kl"]["wic"].seeds == 2


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_are_said_first_with_what_to_do(seeds):
    findings = compute_findings([build_record(LIFTED, seeds=seeds)], PARAMS)
    assert (findings.plan is None) == (seeds == 1)
    topic, text = next(iter(told(findings).items()))
    assert topic == "Too few seeds."
    assert "distill.seeds" in text


def test_a_teacher_below_the_baseline_is_said_with_what_to_do():
    findings = compute_findings([build_record(LIFTED | {"teacher": 62})], PARAMS)
    text = told(findings)["Is there anything to distil?"]
    assert "`ce`" in text
    assert "train_teacher" in text


def test_planning_says_how_many_seeds(findings):
    assert (findings.plan.arm, findings.plan.over, findings.plan.seeds) == ("kl", "ce", 3)
    text = told(findings)["Seeds needed."]
    assert f"±{findings.plan.half:.2g} points with 3 seeds" in text
    many = dataclasses.replace(findings, plan=dataclasses.replace(findings.plan, to_know=7, to_find=9))
    assert "7 seeds per arm give" in told(many)["Seeds needed."]
    assert "9 seeds per arm find" in told(many)["Seeds needed."]


def test_a_task_without_a_gap_is_left_out_of_shares(lifted):
    findings = compute_findings([*lifted, build_record(LEVEL | {"full": 65}, "rte", seed=4)], PARAMS)
    assert findings.gap_tasks == ["wic", "cb"]
    runs = [read_runs(record.predictions, "accuracy", record.rows) for record in lifted]
    assert findings.shares["kl"] == gap_closed(runs, "kl")
    assert list(findings.lift.by_task) == ["wic", "cb", "rte"]


def test_students_with_teachers_of_their_own_are_compared_with_these(monkeypatch):
    monkeypatch.setattr(figures, "_svg", lambda *_, **__: BLANK)
    kinds = KINDS | {"kl": ("prefix", "member")}
    truth = {"head": 60, "ce": 66, "kl@mean": 74, "kl": 76, "teacher": 85, "teacher_member": 76}
    record = build_record(truth, rows=1000, kinds=kinds)
    record.metrics["teacher"]["folds"] = 0
    findings = compute_findings([record], PARAMS)
    assert findings.teacher == "teacher_member"
    runs = read_runs(record.predictions, "accuracy", record.rows)
    verdict = findings.verdicts["wic"]["kl"]
    assert verdict.difference == effect(runs, "kl", "teacher_member")
    assert verdict.difference.seeds == 3
    sections = {section.name: section.reading for section in build_sections(findings, [], {})}
    assert "students and their teachers" in sections["answer"]
    assert "ensemble" in sections["answer"]
    assert "member of the ensemble" in sections["teacher"]
    # With folds, a member is a mean over folds and no single teacher.
    crossed = dict(record.metrics["teacher"], folds=2)
    folded = dataclasses.replace(record, metrics={**record.metrics, "teacher": crossed})
    assert compute_findings([folded], PARAMS).teacher == "teacher"
    # Without such an arm, the teacher on all rows is the one to reach.
    others = compute_findings(without([record], "kl"), PARAMS)
    assert others.teacher == "teacher"


def test_scores_are_drawn_of_every_arm_and_the_teacher(findings):
    panels = score_panels(findings)
    assert list(panels) == ["mean of 2 tasks", "wic", "cb"]
    assert [row.label for row in panels["wic"]] == [*(arm for arm in LIFTED if arm != "teacher"), "teacher"]
    assert all(row.high <= 100 for rows in panels.values() for row in rows)


def with_curves(record, by_arm):
    """A record whose arms have these scores on tune at steps 0, 5 and 10."""
    curves = record.curves.copy()
    for arm, scores in by_arm.items():
        curves.loc[curves["arm"] == arm, "tune_accuracy"] = scores
    return dataclasses.replace(record, curves=curves)


def test_an_arm_that_is_not_done_is_named_before_anything_else(findings, lifted):
    assert "Not done." not in told(findings)
    curves = {
        "ce": (0.5, 0.6, 0.7), "kl": (0.5, 0.7, 0.6), "kl+gram": (0.5, 0.7, 0.72),  # one of 50 rows: no rise
    }  # fmt: skip
    findings = compute_findings([with_curves(lifted[0], curves), lifted[1]], PARAMS)
    text = told(findings)
    assert next(iter(text)) == "Not done."
    assert "`ce` (wic +10.0)" in text["Not done."]
    assert "kl" not in text["Not done."]
    assert "more steps" in text["Not done."]
    numbers = page_json(findings)
    assert numbers["not_done"] == {"ce": {"wic": pytest.approx(0.1)}}
    curved = [with_curves(lifted[0], {"kl": (0.5, 0.6, 0.7)}), lifted[1]]
    others = told(compute_findings(curved, PARAMS))["Not done."]
    assert "from more steps" not in others


def test_unequal_steps_are_said_before_any_gain_and_kept(findings, lifted):
    assert "Unequal steps." not in told(findings)
    assert findings.comparisons[0].steps == {"wic": (10, 10), "cb": (10, 10)}
    metrics = dict(lifted[0].metrics)
    metrics["arms"] = dict(metrics["arms"], kl=metrics["arms"]["kl"] | {"steps": 3 * 40})
    findings = compute_findings([dataclasses.replace(lifted[0], metrics=metrics), lifted[1]], PARAMS)
    text = told(findings)
    assert list(text).index("Unequal steps.") < list(text).index(LIFT)
    assert "`kl` 40 and `ce` 10 on wic" in text["Unequal steps."]
    assert "cb" not in text["Unequal steps."]
    assert page_json(findings)["comparisons"][0]["steps"] == {"wic": [40, 10], "cb": [10, 10]}


def test_a_probe_that_takes_no_steps_is_no_case_of_unequal_ones(lifted):
    findings = compute_findings(lifted, ReportParams(comparisons=(("kl", "head"),)))
    assert findings.comparisons[0].steps["wic"] == (10, 0)
    assert "Unequal steps." not in told(findings)


def test_a_teacher_no_better_than_a_linear_probe_has_nothing_to_distil(findings, lifted):
    topic = "Is there anything to distil?"
    assert told(findings)[topic] == (
        "The teacher is above the linear probes of frozen encoders on wic and cb."
    )
    weak = build_record(LIFTED | {"head": 85}, "cb", seed=2)
    text = told(compute_findings([lifted[0], weak], PARAMS))
    assert list(text).index(topic) < list(text).index(LIFT)
    assert "Nothing on cb: the teacher (" in text[topic]
    assert "students' backbone (8" in text[topic]
    assert "frozen encoders on wic." in text[topic]
    metrics = dict(lifted[0].metrics)
    metrics["teacher"] = metrics["teacher"] | {"probe": {"strength": 0.1, "validation": {"accuracy": 0.95}}}
    record = dataclasses.replace(lifted[0], metrics=metrics)
    text = told(compute_findings([record], PARAMS))[topic]
    assert text.startswith("On wic fine-tuning added nothing: "), "the students have less than the teacher"
    assert "started from (95.0)" in text
    assert "students' backbone" not in text
    assert topic not in told(compute_findings(without(lifted, "head"), PARAMS))
