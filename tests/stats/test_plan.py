"""Plans against an independent power formula, against simulation, and at their limits."""

from dataclasses import replace

import numpy as np
import pytest
from simulated import World
from statsmodels.stats.power import TTestPower

from kdcache.errors import DataError
from kdcache.stats.plan import Components, components, groups_needed, planned, power, seeds_needed

PILOT = Components(seed=0.5, group=900.0, rest=600.0, groups=3000)


@pytest.mark.parametrize("seeds", [3, 5, 12])
def test_where_seeds_are_all_it_is_the_power_of_the_t_test(seeds):
    got = power([Components(seed=4.0, group=0.0, rest=0.0, groups=3000)], gain=2.5, seeds=seeds)
    expected = TTestPower().power(effect_size=2.5 / 2.0, nobs=seeds, alpha=0.05)
    assert got == pytest.approx(expected, abs=0.003)


def test_where_examples_are_all_it_is_the_normal_one():
    got = power([Components(seed=0.0, group=900.0, rest=0.0, groups=3000)], gain=1.5, seeds=5)
    assert got == pytest.approx(TTestPower().power(effect_size=1.5 / 30, nobs=3000, alpha=0.05), abs=0.003)


def test_without_an_effect_it_finds_one_at_most_at_5_percent():
    for seeds in (2, 3, 5, 20):
        assert 0 < power([PILOT], gain=0.0, seeds=seeds) <= 0.0501


def test_numbers_needed_are_the_least_that_do():
    seeds = seeds_needed([PILOT], gain=2.0)
    assert power([PILOT], 2.0, seeds) >= 0.8 > power([PILOT], 2.0, seeds - 1)
    groups = groups_needed([PILOT], gain=2.0, seeds=5)
    at = [power([replace(PILOT, groups=count)], 2.0, 5) for count in (groups, groups - 1)]
    assert at[0] >= 0.8 > at[1]


def test_what_no_number_reaches_is_said():
    assert seeds_needed([PILOT], gain=1.0) is None  # examples alone have an error of 0.55 points
    assert groups_needed([PILOT], gain=1.0, seeds=3) is None  # and three seeds one of 0.41
    assert seeds_needed([Components(0.0, 0.0, 0.0, 300)], gain=1.0) == 2


def test_several_tasks_plan_for_their_mean():
    one, four = planned([PILOT], 1.0, 5), planned([PILOT] * 4, 1.0, 5)
    assert four.se == pytest.approx(one.se / 2)
    assert four.df_seeds == pytest.approx(4 * one.df_seeds)
    assert power([PILOT] * 4, 1.0, 5) > 0.8 > power([PILOT], 1.0, 5)
    assert groups_needed([PILOT, replace(PILOT, groups=1000)], 2.0, 5) < 4000


def test_components_are_found_in_a_large_pilot():
    """Known variances, on a table of normal draws scaled to rows that are right or wrong."""
    world = World({"a": 0.0, "b": 0.2}, seeds=60, rows=4000, of_seed=0.1)
    got = components(world.runs(np.random.default_rng(0)), "b", "a")
    assert got.seed == pytest.approx(2 * world.seed_points("a") ** 2, rel=0.35)
    rows = np.random.default_rng(1)
    right = replace(world, seeds=2, rows=400_000, of_seed=0.0).right(rows).astype(float)
    difference = 100 * (right[1] - right[0])
    group = np.cov(difference)[0, 1]
    assert got.group == pytest.approx(group, rel=0.1)
    assert got.rest == pytest.approx(difference.var() - group, rel=0.05)


def test_pilot_of_one_seed_is_refused():
    runs = World(seeds=1).runs(np.random.default_rng(0))
    with pytest.raises(DataError, match=r"2 seeds, got 1.*distill\.seeds"):
        components(runs, "b", "a")
