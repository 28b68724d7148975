"""The numbers are those of kdcache.stats, and the sentences say what they say."""

import dataclasses

import pytest
from records import LEVEL, LIFTED, RECIPES, build_record

from kdcache.report.answer import answer, verdict
from kdcache.report.answer import sentence as of_comparison
from kdcache.report.comparisons import OVER_CE, RELATION, Comparison
from kdcache.report.findings import find
from kdcache.report.roles import find_roles
from kdcache.report.sections import build_sections, headline
from kdcache.report.tables import level_table
from kdcache.stats.estimates import Estimate, effect, holm, level, mean_estimate
from kdcache.stats.runs import read_runs
from kdcache.stats.verdicts import gap_closed


@pytest.fixture(scope="module")
def lifted():
    return [build_record(LIFTED, "wic", seed=1), build_record(LIFTED, "cb", seed=2)]


def said(findings):
    found = {}
    for sentence in answer(findings):
        found[sentence.topic] = f"{found.get(sentence.topic, '')} {sentence.text}".strip()
    return found


def without(records, *arms):
    """As if these arms had not been there."""
    kept = []
    for record in records:
        metrics = dict(record.metrics)
        metrics["arm_order"] = [arm for arm in metrics["arm_order"] if arm not in arms]
        metrics["arms"] = {arm: metrics["arms"][arm] for arm in metrics["arm_order"]}
        predictions = record.predictions[~record.predictions["arm"].isin(arms)]
        kept.append(dataclasses.replace(record, metrics=metrics, predictions=predictions))
    return kept, {arm: recipe for arm, recipe in RECIPES.items() if arm not in arms}


def test_every_number_is_that_of_kdcache_stats(lifted):
    findings = find(lifted, RECIPES, "prefix")
    runs = [read_runs(record.predictions, "accuracy", record.rows) for record in lifted]
    assert findings.levels["cb"]["accuracy"]["kl"] == level(runs[1], "kl")
    assert findings.gains["kl"]["wic"] == effect(runs[0], "kl", over="ce")
    by_question = {c.question: c for c in findings.comparisons}
    relation = mean_estimate([effect(r, "kl+gram", over="kl") for r in runs])
    assert by_question[RELATION].mean == relation
    assert findings.shares["kl+gram"] == gap_closed(runs, "kl+gram", base="ce", full="full")


def test_a_planted_effect_is_found_and_said(lifted):
    findings = find(lifted, RECIPES, "prefix")
    mean = {c.question: c.mean for c in findings.comparisons}[OVER_CE]
    assert mean.low < LIFTED["kl+gram"] - LIFTED["ce"] < mean.high
    share = findings.shares["kl+gram"]
    assert share.low < 100 * (76 - 66) / (82 - 66) < share.high
    text = said(findings)
    assert text[OVER_CE].startswith(f"`kl+gram` over `ce`: {mean} points, better, mean over 2 tasks.")
    assert f"closes {share} of the {share.gap} points between `ce` and `full`" in text["Gap"]
    # the feature arm gains nothing, and is not named
    assert text["Gap"].endswith(f" Other arms above 0: `kl` {findings.shares['kl']}.")
    assert "primary" in text[RELATION]
    assert "Not working" not in text


def test_no_effect_is_said_to_be_none():
    findings = find([build_record(LEVEL, seed=3)], RECIPES, "prefix")
    text = said(findings)
    for question in (OVER_CE, RELATION, "Logits over features"):
        assert "not distinguishable from 0, on wic" in text[question]
    assert text["Gap"] == "There is none to close: on no task does `full` beat `head` by a point."
    assert text["Teacher"] == "On no task is it 5 points above the head: reaching it would mean nothing."


def test_a_harm_is_said_to_be_one():
    assert verdict(Estimate(-1.0, 0.0, 0.05, 0, 299, 1, 300)).endswith("points, worse")


def test_a_prompt_arm_below_the_head_is_marked():
    findings = find([build_record(LIFTED | {"ce": 50}, seed=1)], RECIPES, "prefix")
    assert findings.not_working == {"wic": ["ce"]}
    assert said(findings)["Not working"] == "At or below the head on wic: `ce`."


def test_roles_come_from_recipes_and_not_from_names(lifted):
    renamed = dict(zip(["a", "b", "c", "d", "e", "f"], RECIPES.values(), strict=True))
    roles = find_roles(renamed, "prefix")
    assert (roles.head, roles.ce, roles.kl, roles.relation, roles.feature, roles.full) == tuple("abcdef")
    lures = {
        "kl": {},
        "ce": {"inter_class": {"name": "kl"}},
        "smooth": {"label_smoothing": 0.1},
        "full": {"method": "lora"},
    }
    roles = find_roles(lures, "prefix")
    assert (roles.ce, roles.kl, roles.full) == ("kl", "ce", None)
    assert find_roles({"x": {"targets": "all_rows", "inter_class": KL_TERM}}, "prefix").kl is None
    assert find_roles({"x": {}}, "head").head == "x"


def test_the_inter_instance_arm_is_paired_with_the_one_that_lacks_nothing_else():
    more = {"epochs": 3, "inter_class": KL_TERM}
    arms = {
        "kl": {"inter_class": KL_TERM, "unlabelled": False},
        "kl@more": more,
        "both@more": more | {"inter_instance": {"name": "gram"}},
    }
    roles = find_roles(arms, "prefix")
    assert (roles.kl, roles.relation) == ("kl@more", "both@more")
    arms["both"] = arms["kl"] | {"inter_instance": {"name": "gram"}}
    roles = find_roles(dict(reversed(arms.items())), "prefix")
    assert (roles.kl, roles.relation) in {("kl", "both"), ("kl@more", "both@more")}
    assert find_roles({name: arms[name] for name in ("kl", "both@more")}, "prefix").kl == "kl"


def test_the_relations_pair_is_the_one_that_the_plan_compares():
    """Each at a rate of its own: no arm differs from the relation's in nothing else."""
    arms = {
        "other": {"inter_class": KL_TERM},
        "kl": {"inter_class": KL_TERM, "targets": "member"},
        "both": {"inter_class": KL_TERM, "inter_instance": {"name": "gram"}, "targets": "member", "lr": 0.03},
    }
    assert find_roles(arms, "prefix").kl == "other"
    roles = find_roles(arms, "prefix", [("both", "kl")])
    assert (roles.relation, roles.kl) == ("both", "kl")


KL_TERM = {"name": "kl"}


def test_temperature_of_the_relation_is_the_one_at_the_end():
    ramp = {"name": "gram", "temperature": {"start": 4.0, "end": 2.0}}
    assert find_roles({"x": {"inter_class": KL_TERM, "inter_instance": ramp}}, "prefix").temperature == 2.0


@pytest.mark.parametrize(
    ("gone", "topic", "text"),
    [
        (
            ("full",),
            "Gap",
            "How much closes is not known: that takes `full: {method: full, lr: 1e-4}` among the arms.",
        ),
        (("head",), "Teacher", "Whether a student reaches it is not asked without `head: {method: head}`."),
        (("ce",), OVER_CE, "Not known: no arm learns a prompt from the labels alone (`ce: {}`)."),
        (("kl+gram",), RELATION, "Not asked: no arm has both `inter_class` and `inter_instance`."),
        (("kl",), RELATION, "Not asked: no arm has `inter_class` alone."),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said(lifted, gone, topic, text):
    records, recipes = without(lifted, *gone)
    assert said(find(records, recipes, "prefix"))[topic] == text


def test_one_seed_is_said_and_plans_nothing():
    findings = find([build_record(LIFTED, seeds=1)], RECIPES, "prefix")
    assert findings.plan is None
    assert (
        said(findings)["One seed"]
        == "Arms trained once have intervals that know of other examples, not of other seeds."
    )


def test_planning_says_how_many_seeds(lifted):
    plan = find(lifted, RECIPES, "prefix").plan
    assert plan.seeds == 3
    text = said(find(lifted, RECIPES, "prefix"))["Planning"]
    assert f"`kl+gram` over `kl` is known to ± {plan.half:.2g} points with 3 seeds. " in text
    assert f"{plan.to_know or 'No number of'} seeds" in text


def test_a_plan_has_its_primary_comparison_and_its_own_family(lifted):
    standing = find(lifted, RECIPES, "prefix").comparisons
    assert [c.place for c in standing] == ["primary", "secondary", "secondary", "secondary"]
    planned = [("kl", "ce"), ("kl", "head"), ("full", "kl")]
    findings = find(lifted, RECIPES, "prefix", planned)
    found = {(c.arm, c.over): c for c in findings.comparisons}
    assert list(found)[:3] == planned
    assert set(found) == {*planned, *((c.arm, c.over) for c in standing if c.question != OVER_CE)}
    places = {pair: c.place for pair, c in found.items()}
    assert [places[pair] for pair in planned] == ["primary", "secondary", "secondary"]
    assert {places[pair] for pair in found if pair not in planned} == {"unplanned"}
    runs = [read_runs(record.predictions, "accuracy", record.rows) for record in lifted]
    of_head = mean_estimate([effect(r, "kl", over="head") for r in runs])
    of_full = mean_estimate([effect(r, "full", over="kl") for r in runs])
    assert found["kl", "head"].mean == of_head
    adjusted = holm({"a": of_head.p, "b": of_full.p})
    assert (found["kl", "head"].holm, found["full", "kl"].holm) == (adjusted["a"], adjusted["b"])
    text = said(findings)
    assert text[OVER_CE].startswith("`kl` over `ce`")  # what a plan compares with ce stands for distillation
    assert text[OVER_CE].endswith("The primary comparison.")
    assert text["Gap"].startswith("`kl` closes")
    assert text["Planning"].startswith("`kl` over `ce` is known to ±")
    assert "kl+gram" in findings.relations["wic"].matrices
    assert text["kl over head"].endswith(f"After Holm, p = {adjusted['a']:.2g}.")
    assert text[RELATION].endswith("Not planned, not corrected.")


def test_headline_figure_has_every_planned_arm(lifted):
    def drawn(planned):
        findings = find(lifted, RECIPES, "prefix", planned)
        (_, rows, _), *_ = headline(findings, {})
        return [label for label, *_ in rows]

    standing = ["head", "ce", "kl", "kl+gram", "feature", "full", "teacher"]
    assert drawn([]) == standing
    assert drawn([("kl+gram", "kl")]) == [arm for arm in standing if arm != "feature"]
    assert "feature" in drawn([("kl+gram", "kl"), ("feature", "ce")])


def test_what_holm_takes_back_is_not_called_better():
    mean = Estimate(1.5, 0.05, 0.1, df_seeds=4, df_groups=2999, seeds=5, groups=3000)
    assert mean.low > 0
    pair = Comparison("kl over ce", "kl", "ce", {"subj": mean, "clinc150": mean}, mean, holm=0.071)
    said = of_comparison(pair)
    assert said == (
        f"`kl` over `ce`: {mean} points, alone distinguishable from 0, among the planned comparisons not, "
        "mean over 2 tasks. After Holm, p = 0.071."
    )
    assert "points, better, mean over 2 tasks." in of_comparison(dataclasses.replace(pair, holm=0.049))


def test_a_distilled_head_is_no_control(lifted):
    taught = {"head+kl": {"method": "head", "inter_class": KL_TERM}}
    record = build_record(LIFTED | {"head+kl": 68}, seed=1)
    metrics = dict(record.metrics) | {"arm_order": ["head+kl", *RECIPES]}
    findings = find([dataclasses.replace(record, metrics=metrics)], taught | RECIPES, "prefix")
    assert findings.not_working == {}


def test_arms_without_a_student_are_not_known(lifted):
    records, _ = without(lifted[:1], "full")
    assert said(find(records, RECIPES, "prefix"))["Gap"] == (
        "How much closes is not known: `full` and `head` share no student's seed."
    )
    records, _ = without(lifted[:1], "kl+gram")
    text = said(find(records, RECIPES, "prefix"))["Gap"]
    unknown = "What `kl+gram` closes is not known: it shares no seed with the others."
    assert text.startswith(f"{unknown} Other arms above 0: `kl`")
    records, _ = without(lifted[:1], "head")
    assert said(find([*records, lifted[1]], RECIPES, "prefix"))["Teacher"].endswith(
        "Not known, for want of a head to compare with: wic."
    )


def test_without_a_head_nothing_is_said_to_work(lifted):
    records, _ = without(lifted[:1], "head")
    assert said(find(records, RECIPES, "prefix"))["Not working"] == (
        "Whether a prompt arm is above `head` on wic is not known: it has no student there."
    )


def test_a_diverged_student_is_named_and_its_partners_still_compared(lifted):
    (record,) = lifted[:1]
    rest = record.predictions[~((record.predictions["arm"] == "kl") & (record.predictions["seed"] == 1))]
    student = {"arm": "kl", "seed": 1, "diverged": {"step": 7, "last_finite_loss": 9.0}}
    metrics = dict(record.metrics) | {"diverged": [student]}
    findings = find([dataclasses.replace(record, metrics=metrics, predictions=rest)], RECIPES, "prefix")
    assert said(findings)["Diverged"] == "`kl`, seed 1, on wic at step 7; left out."
    assert findings.gains["kl"]["wic"].seeds == 2


def test_a_task_without_a_gap_is_left_out_of_shares(lifted):
    findings = find([*lifted, build_record(LEVEL | {"full": 65}, "rte", seed=4)], RECIPES, "prefix")
    assert findings.gap_tasks == ["wic", "cb"]
    over_ce = next(c for c in findings.comparisons if c.question == OVER_CE)
    assert list(over_ce.by_task) == ["wic", "cb", "rte"]
    assert over_ce.with_gap == mean_estimate([over_ce.by_task["wic"], over_ce.by_task["cb"]])


def test_students_with_teachers_of_their_own_are_compared_with_these():
    own = {**RECIPES["kl"], "targets": "member"}
    recipes = {
        "head": RECIPES["head"], "ce": {}, "kl@mean": RECIPES["kl"], "kl": own,
        "kl+gram": {**own, "inter_instance": {"name": "gram"}},
    }  # fmt: skip
    truth = {
        "head": 60,
        "ce": 66,
        "kl@mean": 74,
        "kl": 76,
        "kl+gram": 76,
        "teacher": 85,
        "teacher_member": 76,
    }
    record = build_record(truth, rows=3000)
    record.metrics["teacher"]["folds"] = 0
    findings = find([record], recipes, "prefix")
    assert (findings.roles.kl, findings.roles.relation) == ("kl", "kl+gram")  # member targets are no lever
    assert findings.teacher == "teacher_member"
    runs = read_runs(record.predictions, "accuracy", record.rows)
    verdict = findings.verdicts["wic"]["kl"]
    assert verdict.difference == effect(runs, "kl", "teacher_member")
    assert verdict.difference.seeds == 3
    assert {"one teacher", "ensemble"} <= {row[0] for row in level_table(findings).rows}
    sections = {section.name: section.reading for section in build_sections(findings, [], {})}
    assert "new seeds of the students and of their teachers, one for each, and new" in sections["answer"]
    assert "backbone, and the ensemble where it teaches, are taken as they are" in sections["answer"]
    assert "A student reaches a single teacher, of the ensemble the one" in sections["teacher"]
    assert next(iter(findings.relations["wic"].matrices)) == "teacher_member"
    # With folds a member is a mean of them, and no teacher that anyone would deploy.
    crossed = dict(record.metrics["teacher"], folds=2)
    folded = dataclasses.replace(record, metrics={**record.metrics, "teacher": crossed})
    assert find([folded], recipes, "prefix").teacher == "teacher"
    # Without such an arm the teacher on all rows is the one to reach, and the intervals take it as it is.
    others = find([record], {arm: r for arm, r in recipes.items() if not r.get("targets")}, "prefix")
    assert others.teacher == "teacher"
    assert "teacher and backbone are taken as they are" in build_sections(others, [], {})[0].reading


def test_an_arm_that_is_best_after_its_last_epoch_is_named(lifted):
    assert "Still rising" not in said(find(lifted, RECIPES, "prefix"))
    curves = lifted[0].curves.copy()
    for arm, scores in {"ce": (0.5, 0.6, 0.7), "kl": (0.5, 0.7, 0.6), "kl+gram": (0.5, 0.7, 0.7)}.items():
        curves.loc[curves["arm"] == arm, "tune_accuracy"] = scores
    rising = [dataclasses.replace(lifted[0], curves=curves), lifted[1]]
    text = said(find(rising, RECIPES, "prefix"))["Still rising"]
    assert "`ce` (wic +10.0)." in text
    assert "kl" not in text
    assert text.endswith("A gain over `ce` may then be one of steps, not of the teacher.")
