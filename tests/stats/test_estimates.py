"""Estimates against slow formulas and textbook tests, and at their edges."""

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest
from simulated import World, crossed_bootstrap
from statsmodels.stats.multitest import multipletests

from kdcache.errors import DataError
from kdcache.stats.contrasts import Contrast, contrast, covariance
from kdcache.stats.estimates import Estimate, effect, estimate, holm, level, mean_estimate
from kdcache.stats.runs import Runs, tally_runs


def test_accuracy_is_a_mean_of_rows_and_its_pseudo_values_are_the_rows():
    runs = World(rows=40, seeds=3).runs(np.random.default_rng(0))
    table = contrast(runs, {"a": 1.0})
    rows = np.stack([sums[:, 0] for sums in runs.paired("a")["a"]])
    np.testing.assert_allclose(table.pseudo, 100 * rows, atol=1e-9)
    np.testing.assert_allclose(table.values, 100 * rows.mean(axis=1))
    assert level(runs, "a").points == pytest.approx(100 * rows.mean())


def test_variances_are_those_between_seeds_and_between_rows_of_two_seeds():
    table = contrast(World(rows=80, seeds=4).runs(np.random.default_rng(0)), {"b": 1.0, "a": -1.0})
    pairs = [
        np.cov(table.pseudo[i], table.pseudo[j])[0, 1] for i in range(4) for j in range(4) if i != j
    ]  # fmt: skip
    got = estimate(table)
    assert got.of_groups == pytest.approx(max(np.mean(pairs), 0) / 80)
    assert got.of_seeds == pytest.approx(table.values.var(ddof=1) / 4)
    assert (got.df_seeds, got.df_groups, got.seeds, got.groups) == (3, 79, 4, 80)
    assert got.se == pytest.approx((got.of_groups + got.of_seeds) ** 0.5)


def test_one_seed_is_the_paired_t_test_over_rows():
    runs = World(rows=50, seeds=1).runs(np.random.default_rng(0))
    b, a = (runs.tallies[arm][0][:, 0] for arm in "ba")
    expected = stats.ttest_rel(b, a)
    got = effect(runs, "b", "a")
    assert got.p == pytest.approx(expected.pvalue)
    np.testing.assert_allclose(got.interval(0.9), 100 * np.array(expected.confidence_interval(0.9)))


def test_where_only_seeds_differ_it_is_the_t_test_over_seeds():
    values = np.array([1.0, 2.5, 3.0, 0.5])
    got = estimate(Contrast(values, np.tile(values[:, None], 300)))
    expected = stats.ttest_1samp(values, 0)
    assert got.p == pytest.approx(expected.pvalue)
    np.testing.assert_allclose((got.low, got.high), expected.confidence_interval(0.95))


def test_interval_at_level_1_minus_p_ends_at_0():
    for points in (0.3, -2.0, 40.0):
        got = Estimate(points, 0.2, 0.05, df_seeds=4, df_groups=299, seeds=5, groups=300)
        assert min(np.abs(got.interval(1 - got.p))) == pytest.approx(0, abs=1e-3)
    assert Estimate(0.0, 0.2, 0.05, 4, 299, 5, 300).p == pytest.approx(1)
    assert Estimate(1e200, 0.0, 0.05, 4, 299, 5, 300).p == 0.0


def test_seeds_that_agree_by_coincidence_do_not_make_an_effect_certain():
    """Two seeds gain one row each, another one: the same score, not the same rows."""
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    over = np.array([wrong] * 40)
    arm = {seed: np.array([right if row == seed else wrong for row in range(40)]) for seed in range(3)}
    found = effect(
        tally_runs("accuracy", np.zeros(40, int), {"b": arm, "a": dict.fromkeys(arm, over)}), "b", "a"
    )
    assert found.points == pytest.approx(2.5)
    assert found.low < found.points - 1
    assert found.p > 0.1


@pytest.mark.parametrize("rows", [40, 300, 324, 3000])
def test_equal_gains_are_equal_however_the_scores_are_rounded(rows):
    """Shares such as 17/300 and 23/300 have no exact binary form: their differences are not quite equal."""
    right, wrong = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    rng, told = np.random.default_rng(0), set()
    for _ in range(20):
        arms = {"a": {}, "b": {}}
        for seed in range(3):
            base, gained = rng.integers(1, rows - 4), rng.permutation(rows)
            arms["a"][seed] = np.where((gained < base)[:, None], right, wrong)
            arms["b"][seed] = np.where((gained < base + 3)[:, None], right, wrong)
        found = effect(tally_runs("accuracy", np.zeros(rows, int), arms), "b", "a")
        assert found.points == pytest.approx(300 / rows)
        told.add(found.p > 0.01)
    assert told == {True}, "three rows in each of three seeds"


def test_arms_that_never_differ_have_no_effect():
    logits = np.eye(2)[[0, 1, 1]]
    runs = tally_runs("accuracy", np.zeros(3, int), {arm: {0: logits, 1: logits} for arm in "ab"})
    got = effect(runs, "b", "a")
    assert (got.points, got.p) == (0.0, 1.0)


def test_no_difference_seen_is_no_certainty():
    """None of so many rows differ: the interval ends at Wilson's bound on how many may."""
    for rows in (20, 500):
        logits = np.eye(2)[np.arange(rows) % 2]
        runs = tally_runs("accuracy", np.zeros(rows, int), {arm: {0: logits, 1: logits} for arm in "ab"})
        found = effect(runs, "b", "a")
        bound = 100 * binomtest(0, rows).proportion_ci(method="wilson").high
        assert found.high == pytest.approx(bound, rel=0.15), "Student's quantile in place of the normal one"
        assert found.low == -found.high


@pytest.mark.parametrize("right", [0, 1, 37, 39, 40])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_level_has_wilsons_interval(right, seeds):
    """At a ceiling it neither ends above 100 nor has no width."""
    logits = np.eye(2)[(np.arange(400) >= 10 * right).astype(int)]
    found = level(tally_runs("accuracy", np.zeros(400, int), {"a": dict.fromkeys(range(seeds), logits)}), "a")
    wanted = binomtest(10 * right, 400).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((100 * wanted.low, 100 * wanted.high), abs=0.3)


def test_effect_turned_round_changes_only_its_sign():
    runs = World({"a": 0.0, "b": 0.3}).runs(np.random.default_rng(0), "matthews")
    there, back = effect(runs, "b", "a"), effect(runs, "a", "b")
    assert (there.low, there.points, there.p) == pytest.approx((-back.high, -back.points, back.p))


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "matthews", "f1a"])
def test_rows_of_a_group_count_as_one(metric):
    """Doubled rows hold nothing new: with groups the interval stays, without groups it shrinks."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=100)
    logits = {arm: {s: rng.standard_normal((100, 2)) for s in range(3)} for arm in "ab"}
    twice = {arm: {s: np.concatenate([z, z]) for s, z in of.items()} for arm, of in logits.items()}
    once = effect(tally_runs(metric, labels, logits), "b", "a")
    labels = np.concatenate([labels, labels])
    grouped = effect(tally_runs(metric, labels, twice, [str(i % 100) for i in range(200)]), "b", "a")
    assert grouped.se == pytest.approx(once.se)
    assert (grouped.groups, grouped.points) == (100, pytest.approx(once.points))
    apart = effect(tally_runs(metric, labels, twice), "b", "a")
    assert apart.of_groups == pytest.approx(once.of_groups / 2, rel=0.05)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "matthews"])
def test_variance_over_examples_is_that_of_the_bootstrap(metric):
    """With one seed, the metric recomputed on resampled rows is an oracle."""
    runs = World({"a": 0.0, "b": 0.4}, seeds=1, rows=400).runs(np.random.default_rng(0), metric)
    draws = crossed_bootstrap(runs, {"b": 1.0, "a": -1.0}, resamples=4000)
    got = effect(runs, "b", "a")
    assert draws.std() == pytest.approx(got.se, rel=0.06)
    assert draws.mean() == pytest.approx(got.points, abs=0.1 * got.se)


def test_single_teacher_meets_every_seed():
    world = World({"kl": 0.0, "teacher": 0.3}, single=("teacher",), seeds=3)
    runs = world.runs(np.random.default_rng(0))
    table = contrast(runs, {"kl": 1.0, "teacher": -1.0})
    teacher = runs.tallies["teacher"][0][:, 0]
    students = np.stack([sums[:, 0] for sums in runs.tallies["kl"].values()])
    np.testing.assert_allclose(table.pseudo, 100 * (students - teacher), atol=1e-9)


def test_a_student_with_one_seed_left_is_paired_with_only_that_seed():
    runs = World({"kl": 0.0, "ce": 0.3}, seeds=3).runs(np.random.default_rng(0))
    left = Runs(runs.metric, runs.tallies | {"kl": {2: runs.tallies["kl"][2]}})
    assert effect(left, "kl", "ce").seeds == 1
    assert left.paired(["kl", "ce"])["ce"][0] is runs.tallies["ce"][2]
    apart = Runs(runs.metric, {"kl": {2: runs.tallies["kl"][2]}, "ce": {0: runs.tallies["ce"][0]}})
    with pytest.raises(DataError, match="share no seed"):
        effect(apart, "kl", "ce")


def test_covariance_of_contrasts_is_semidefinite_and_has_the_estimates_on_its_diagonal():
    runs = World(rows=30, seeds=2).runs(np.random.default_rng(3))
    tables = [contrast(runs, {"a": 1.0}), contrast(runs, {"b": 1.0})]
    of_seeds, of_groups = covariance(tables)
    assert np.linalg.eigvalsh(of_groups).min() > -1e-9
    assert of_seeds[1, 1] == pytest.approx(estimate(tables[1]).of_seeds)
    difference = np.array([-1.0, 1.0])
    assert difference @ of_seeds @ difference == pytest.approx(effect(runs, "b", "a").of_seeds)


def test_mean_over_tasks_weighs_each_the_same():
    small = Estimate(4.0, 0.0, 4.0, df_seeds=0, df_groups=55, seeds=1, groups=56)
    large = Estimate(1.0, 0.2, 0.05, df_seeds=4, df_groups=299, seeds=5, groups=300)
    mean = mean_estimate([small, large])
    assert mean.points == 2.5
    assert mean.se == pytest.approx((4.0 + 0.25) ** 0.5 / 2)
    assert (mean.df_seeds, mean.seeds, mean.groups) == (4, 1, 356)
    assert mean.df_groups == pytest.approx(4.05**2 / (4.0**2 / 55 + 0.05**2 / 299))
    single = mean_estimate([large])
    assert (single.low, single.high) == pytest.approx((large.low, large.high))


def test_holm_steps_down_and_never_decreases():
    adjusted = holm({"late": 0.3, "first": 0.011, "tie": 0.02, "next": 0.02})
    assert adjusted == pytest.approx({"late": 0.3, "first": 0.044, "tie": 0.06, "next": 0.06})
    for p_values in np.random.default_rng(0).random((1, 7)) ** 3:
        expected = multipletests(p_values, method="holm")[1]
        assert list(holm(dict(enumerate(p_values))).values()) == pytest.approx(expected)


def test_bootstrap_repeats_by_its_seed():
    runs = World(rows=50, seeds=3).runs(np.random.default_rng(0))
    weights = {"b": 1.0, "a": -1.0}
    one = crossed_bootstrap(runs, weights, resamples=700, seed=1)
    assert one.shape == (700,)
    assert (one == crossed_bootstrap(runs, weights, resamples=700, seed=1)).all()
    assert (one != crossed_bootstrap(runs, weights, resamples=700, seed=2)).any()
