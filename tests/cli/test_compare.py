"""``kdcache compare``: the effect of the joined predictions, whatever folders the two arms lie in."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import fails, run

from kdcache.stats.estimates import decimal, effect, mean_estimate
from kdcache.stats.runs import read_runs

ROWS, SEEDS = 60, (0, 1, 2)


@pytest.fixture
def studies(tmp_path, monkeypatch) -> pd.DataFrame:
    """Arms ce and kl, a teacher; ``one`` has them all, ``two`` another kl; two tasks, groups of two rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    rng = np.random.default_rng(0)

    def predictions(task: str, **right: float) -> pd.DataFrame:
        labels = np.random.default_rng(len(task)).integers(2, size=ROWS)
        runs = [(arm, seed) for arm in right for seed in (SEEDS if arm != "teacher" else (0,))]
        return pd.concat(
            pd.DataFrame(
                {
                    "example_id": [f"{task}-{k}" for k in range(ROWS)],
                    "label": labels,
                    "group": [str(k // 2) for k in range(ROWS)],
                    "logits": list(np.eye(2)[np.where(rng.random(ROWS) < right[arm], labels, 1 - labels)]),
                    "arm": arm,
                    "seed": seed,
                }
            )
            for arm, seed in runs
        )

    frames = {}
    for folder, arms in (("one", {"ce": 0.5, "kl": 0.7, "teacher": 0.8}), ("two", {"kl": 0.9})):
        Path(folder).mkdir()
        for task in ("rte", "cola"):
            frames[folder, task] = predictions(task, **arms)
            # in another order: rows are joined by id
            frames[folder, task].sample(frac=1, random_state=1).to_parquet(f"{folder}/{task}.parquet")
    return frames


def expected(frames, arm, over, task):
    ours, theirs = (frames[folder, task].query("arm == @name") for folder, name in (arm, over))
    both = pd.concat([ours.assign(arm="a"), theirs.assign(arm="teacher" if over[1] == "teacher" else "b")])
    rows = ours[["example_id", "group"]].drop_duplicates("example_id")
    return effect(read_runs(both, "accuracy", rows), "a", "teacher" if over[1] == "teacher" else "b")


@pytest.mark.parametrize(
    ("arm", "over"),
    [
        (("one", "kl"), ("one", "ce")),
        (("two", "kl"), ("one", "kl")),
        (("two", "kl"), ("one", "ce")),
        (("two", "kl"), ("one", "teacher")),
    ],
)
def test_effects_are_those_of_the_joined_predictions(studies, arm, over):
    code, out, _ = run("compare", ":".join(arm), ":".join(over))
    assert code == 0
    effects = [expected(studies, arm, over, task) for task in ("cola", "rte")]
    shown = {
        cells[0]: cells[1:] for cells in re.findall(r"│ (\w+) +│ +(.+?) │ +(.+?) │ +(.+?) │ +(\d) ", out)
    }
    for name, one in zip(("cola", "rte", "mean"), [*effects, mean_estimate(effects)], strict=True):
        assert shown[name] == (one.cell, decimal(one.interval(0.90)[0], "+"), f"{one.p:.2g}", "3")
        assert one.points > 0


def test_one_task_has_no_mean(studies):
    code, out, _ = run("compare", "two:kl", "one:kl", "--task", "rte", "--metric", "macro_f1")
    assert code == 0
    assert "points of macro_f1" in out
    assert "cola" not in out
    assert "mean" not in out


def test_what_cannot_be_compared_is_told_in_one_line(studies):
    assert re.search(r"two: .*cola.*'kll'.* kl\b", fails("compare", "two:kll", "one:ce"))
    assert re.search(r"--task rt: .* rte\b", fails("compare", "two:kl", "one:ce", "--task", "rt"))
    assert "no common task: none and cola, rte" in fails("compare", "kl", "one:ce")
    assert fails("compare", "tow:kl", "one:ce").startswith("tow: There is no such folder")
    assert "got no arm" in fails("compare", "two:", "one:ce")
    other = studies["two", "rte"].copy()
    other.loc[other["example_id"] == "rte-3", "label"] ^= 1
    other.to_parquet("two/rte.parquet")
    assert "different labels on 1 rows" in fails("compare", "two:kl", "one:kl")
    studies["two", "rte"].query("example_id != 'rte-3'").to_parquet("two/rte.parquet")
    assert "must predict the same examples" in fails("compare", "two:kl", "one:kl")
    Path("predictions").mkdir()
    assert "Both arms are predictions:kl." in fails("compare", "kl", "predictions:kl")


def test_other_groups_of_rows_are_refused(studies):
    rows = studies["two", "rte"].assign(group=lambda f: f["example_id"])
    rows.to_parquet("two/rte.parquet")
    error = fails("compare", "two:kl", "one:ce", "--task", "rte")
    assert f"rte: two:kl and one:ce have different groups on {ROWS} rows" in error
