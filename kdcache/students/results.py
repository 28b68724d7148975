"""Results of single students → what metrics/<task>.json and curves/<task>.csv hold; pure functions."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

Result = Mapping[str, Any]


def summarise_arms(results: Sequence[Result]) -> dict[str, Any]:
    """Put each arm's students together.

    Args:
        results: of single students, as ``students.distill`` writes them beside each.

    Returns:
        arm → method, objective, targets (None without a teacher), trained parameters, counts added over
        seeds, and per metric the mean, the standard deviation and the value of each seed, on validation and
        on each diagnostic split.
    """
    arms = {}
    for name in dict.fromkeys(result["arm"] for result in results):
        students = [result for result in results if result["arm"] == name]
        first = students[0]
        arms[name] = {
            "method": first["method"],
            "objective": first["objective"],
            "targets": first["targets"],
            "trained_parameters": first["prompt_parameters"] + first["head_parameters"],
            **{key: sum(s[key] for s in students) for key in ("probe_steps", "steps", "examples")},
            "validation": over_seeds({s["seed"]: s["validation"] for s in students}),
            "diagnostics": {
                split: over_seeds({s["seed"]: s["diagnostics"][split] for s in students})
                for split in first["diagnostics"]
            },
        }
    return arms


def mean_curves(results: Sequence[Result]) -> pd.DataFrame:
    """One row per arm and epoch: losses and tune scores, means over seeds."""
    rows = [{"arm": result["arm"], **entry} for result in results for entry in result["history"]]
    return pd.DataFrame(rows).groupby(["arm", "epoch"], sort=False).mean().reset_index()


def over_seeds(by_seed: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Scores of one student or teacher per seed → metric → mean, sd, seeds; ``rows`` is no score."""
    names = [name for name in next(iter(by_seed.values())) if name != "rows"]
    return {name: _spread({seed: scores[name] for seed, scores in by_seed.items()}) for name in names}


def _spread(by_seed: Mapping[int, float]) -> dict[str, Any]:
    values = list(by_seed.values())
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "seeds": {str(seed): value for seed, value in by_seed.items()},
    }
