"""How often intervals miss and tests reject, on predictions whose truth is known (tests/simulated.py).

    python benchmarks/stats.py [--simulations 1000] [--only intervals]

Baselines, on the same simulations as ours: McNemar's test pooled over seeds, the paired t-test over
seeds, and bootstraps of examples (seeds averaged) and of examples crossed with seeds. Everything else
prints our own rate beside the stated one. Percent; Monte-Carlo error of a 5 % rate: 0.7 at 1000.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import norm, t
from statsmodels.stats.contingency_tables import mcnemar

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from simulated import World, gain_of

from kdcache.stats.contrasts import Contrast
from kdcache.stats.estimates import effect, estimate, holm, mean_estimate
from kdcache.stats.plan import components, planned, power
from kdcache.stats.verdicts import gap_closed, non_inferiority

RESAMPLES = 999


def bootstrap(table: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of resampled groups, of shape (resamples, seeds)."""
    groups = table.shape[1]
    drawn = rng.integers(groups, size=(RESAMPLES, groups)) + groups * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * groups).reshape(RESAMPLES, groups)
    return counts.astype(float) @ table.T / groups


def percentile(draws: np.ndarray, centre: float = 0.0, widen: float = 1.0) -> tuple[float, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return centre + widen * (low - centre), centre + widen * (high - centre)


def bca(draws: np.ndarray, table: np.ndarray) -> tuple[float, float]:
    """Bias-corrected and accelerated (Efron, 1987), both sources in the acceleration."""
    mean, (seeds, groups) = table.mean(), table.shape
    influence = np.concatenate([(table.mean(0) - mean) / groups, (table.mean(1) - mean) / seeds])
    acceleration = (influence**3).sum() / (6 * max((influence**2).sum(), 1e-12) ** 1.5)
    below = (np.mean(draws < mean) + np.mean(draws <= mean)) / 2
    bias = norm.ppf(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    z = bias + norm.ppf([0.025, 0.975])
    return tuple(np.quantile(draws, norm.cdf(bias + z / (1 - acceleration * z))))


def student(points: float, variance: float, df: float) -> tuple[float, float]:
    half = np.sqrt(variance) * t.ppf(0.975, df) if variance else 0.0
    return points - half, points + half


def intervals(table: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, tuple[float, float]]]:
    """Each candidate's 95 % interval of one simulation."""
    ours, (seeds, groups) = estimate(Contrast(table.mean(axis=1), table)), table.shape
    of_groups = bootstrap(table, rng)
    crossed = (of_groups * rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)).sum(1) / seeds
    yield "paired t over seeds", student(ours.points, ours.of_seeds, seeds - 1)
    yield "examples, percentile", percentile(of_groups.mean(axis=1))
    yield "crossed, percentile", percentile(crossed)
    yield "crossed, widened", percentile(crossed, ours.points, (seeds / (seeds - 1)) ** 0.5)
    yield "crossed, BCa", bca(crossed, table)
    df = ours.se**4 / (ours.of_seeds**2 / (seeds - 1) + ours.of_groups**2 / (groups - 1)) if ours.se else 1
    yield "components, one t", student(ours.points, ours.se**2, df)
    yield "ours: a t per source", ours.interval()


def measure_intervals(simulations: int) -> None:
    for seeds, rows, size, of_seed, gain in (
        *((seeds, 300, 1, of_seed, 0.0) for seeds in (3, 5) for of_seed in (0.0, 0.02, 0.1)),
        *((seeds, 1000, 1, of_seed, 0.0) for seeds in (3, 5) for of_seed in (0.02, 0.1)),
        (5, 56, 1, 0.05, 0.0), (5, 600, 6, 0.05, 0.0), (10, 300, 1, 0.05, 0.0), (5, 300, 1, 0.05, 0.3),
    ):  # fmt: skip
        world = World(
            {"a": 0.0, "b": gain}, seeds=seeds, rows=rows, group_size=size, of_seed=of_seed,
            of_group=float(size > 1),
        )  # fmt: skip
        truth = world.accuracy("b") - world.accuracy("a")
        rng, missed, width = np.random.default_rng(0), Counter[str](), Counter[str]()
        for _ in range(simulations):
            right = world.right(rng)
            table = (100.0 * (right[1].astype(int) - right[0])).reshape(seeds, -1, size).mean(axis=2)
            for name, (low, high) in intervals(table, rng):
                missed[name] += not low <= truth <= high
                width[name] += high - low
            discordant = [[0, (right[1] & ~right[0]).sum()], [(right[0] & ~right[1]).sum(), 0]]
            missed["McNemar, pooled"] += mcnemar(discordant, exact=False, correction=False).pvalue <= 0.05
        print(
            f"\n{seeds} seeds (sd {world.seed_points('a'):.1f} points), {rows} rows in groups of {size}, "
            f"true effect {truth:.1f}: percent missed (McNemar: rejected), mean width in points"
        )
        for name, times in missed.items():
            print(f"  {name:22}{100 * times / simulations:6.1f}{width[name] / simulations:8.2f}", flush=True)


def measure_metrics(simulations: int) -> None:
    print("\nNo effect, other metrics: percent rejected at 5 %")
    for metric in ("macro_f1", "matthews", "f1a"):
        for rows, share in ((56, 0.5), (300, 0.5), (300, 0.1), (1000, 0.3)):
            world, rng = World(rows=rows, share=share), np.random.default_rng(1)
            rejected = [effect(world.runs(rng, metric), "b", "a").p <= 0.05 for _ in range(simulations)]
            print(
                f"  {metric:10}{rows:5} rows, {share:.0%} positive:{100 * np.mean(rejected):5.1f}", flush=True
            )


def measure_means(simulations: int) -> None:
    print(
        "\nNo effect, mean over 4 tasks; six arms against one, by Holm and plainly: percent with a rejection"
    )
    for seeds in (3, 5):
        worlds = [World(seeds=seeds, rows=rows) for rows in (100, 300, 300, 1000)]
        family = World({arm: 0.0 for arm in "abcdefg"}, seeds=seeds)
        rng, rejected = np.random.default_rng(2), Counter[str]()
        for _ in range(simulations):
            rejected["mean"] += mean_estimate([effect(w.runs(rng), "b", "a") for w in worlds]).p <= 0.05
            runs = family.runs(rng)
            p_values = {arm: effect(runs, arm, "a").p for arm in "bcdefg"}
            rejected["Holm"] += min(holm(p_values).values()) <= 0.05
            rejected["plain"] += min(p_values.values()) <= 0.05
        shown = ", ".join(f"{name} {100 * times / simulations:.1f}" for name, times in rejected.items())
        print(f"  {seeds} seeds: {shown}", flush=True)


def measure_power(simulations: int) -> None:
    print("\nPower as planned from the true components, and as found")
    for seeds, rows, gain in (
        (5, 300, 0.3),
        (5, 1000, 0.2),
        (5, 3000, 0.1),
        (3, 1000, 0.2),
        (10, 1000, 0.15),
    ):
        world, rng = (
            World({"a": 0.0, "b": gain}, seeds=seeds, rows=rows, of_seed=0.02),
            np.random.default_rng(3),
        )
        truth = world.accuracy("b") - world.accuracy("a")
        pilot = components(replace(world, seeds=100, rows=10_000).runs(rng), "b", "a")
        design = [replace(pilot, groups=rows)]
        found = np.mean([effect(world.runs(rng), "b", "a").p <= 0.05 for _ in range(simulations)])
        print(
            f"  {seeds} seeds, {rows} rows, effect {truth:.1f}: planned {power(design, truth, seeds):.0%}, "
            f"found {found:.0%}; expected interval {planned(design, truth, seeds)}",
            flush=True,
        )


def measure_verdicts(simulations: int) -> None:
    print("\nShare of the gap, 50 % in truth: percent of simulations without a share, of shares that miss it")
    for seeds, rows, gap in ((5, 300, 0.8), (5, 3000, 0.4), (3, 1000, 0.4), (5, 1000, 0.2)):
        world, rng, counts = (
            World({"ce": 0.0, "kl": 0.0, "full": gap}, seeds=seeds, rows=rows),
            np.random.default_rng(4),
            Counter[str](),
        )
        ends = world.accuracy("ce"), world.accuracy("full")
        world = replace(world, gains=world.gains | {"kl": gain_of(sum(ends) / 2, world, "kl")})
        for _ in range(simulations):
            share = gap_closed([world.runs(rng)], "kl")
            counts["none"] += share.percent is None
            counts["missed"] += share.percent is not None and not share.low <= 50 <= share.high
        print(
            f"  {seeds} seeds, {rows} rows, gap {ends[1] - ends[0]:.1f} points: "
            f"{counts['none'] / simulations:.1%}, {counts['missed'] / (simulations - counts['none']):.1%}",
            flush=True,
        )
    print("\nStudents 1 point below their teacher: percent said to reach it; and of students as good as it")
    for seeds, rows in ((3, 1000), (5, 1000), (5, 3000)):
        rng, rates = np.random.default_rng(5), []
        for below in (1.0, 0.0):
            world = World(
                {"head": -0.5, "kl": 0.0, "teacher": 0.0}, ("teacher",), seeds=seeds, rows=rows, of_seed=0.02
            )
            gain = gain_of(world.accuracy("teacher") - below, world, "kl")
            world = replace(world, gains=world.gains | {"kl": gain})
            verdicts = [non_inferiority(world.runs(rng), "kl").verdict for _ in range(simulations)]
            rates.append(100 * np.mean([verdict == "reaches" for verdict in verdicts]))
        print(f"  {seeds} seeds, {rows} rows: {rates[0]:.1f}, {rates[1]:.1f}", flush=True)


MEASURES = {
    "intervals": measure_intervals, "metrics": measure_metrics, "means": measure_means,
    "power": measure_power, "verdicts": measure_verdicts,
}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--only", choices=MEASURES, help="default: all")
    arguments = parser.parse_args()
    for name, run in MEASURES.items():
        if arguments.only in (None, name):
            run(arguments.simulations)
