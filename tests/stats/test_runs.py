"""Every metric as a function of sums over groups is the metric itself; runs are matched by id."""

import numpy as np
import pandas as pd
import pytest

from kdcache.data.metrics import METRICS, compute_metrics
from kdcache.errors import DataError
from kdcache.stats.runs import TALLIES, read_runs, tally_runs

WORDS = ["red house", "house", "blue"]


def rows_of(rng: np.random.Generator, num_labels: int) -> tuple[np.ndarray, np.ndarray, dict]:
    """60 rows in 20 units of 3."""
    columns = {
        "unit": [str(row // 3) for row in range(60)],
        "candidate": rng.choice(WORDS, 60).tolist(),
        "answers": [tuple(rng.choice(WORDS, 2)) for _ in range(60)],
    }
    return rng.integers(num_labels, size=60), rng.standard_normal((60, num_labels)), columns


def test_every_metric_can_be_tallied():
    assert set(TALLIES) == set(METRICS)


@pytest.mark.parametrize(
    ("metric", "num_labels"), [*((metric, 2) for metric in METRICS), ("macro_f1", 4), ("matthews", 4)]
)
def test_sums_give_the_metric_of_rows_left_out_and_drawn_again(metric, num_labels):
    rng = np.random.default_rng(0)
    labels, logits, columns = rows_of(rng, num_labels)
    if num_labels > 2:  # a class that is neither there nor predicted
        labels[labels == 3], logits[:, 3] = 0, -9.0
    groups = [str(row // 6) for row in range(60)]
    runs = tally_runs(metric, labels, {"kl": {0: logits}}, groups, columns)
    for counts in (np.ones(10, int), *rng.multinomial(10, np.full(10, 0.1), size=5)):
        drawn = [(row, copy) for row in range(60) for copy in range(counts[row // 6])]
        rows = [row for row, _ in drawn]
        again = {name: [values[row] for row in rows] for name, values in columns.items()}
        again["unit"] = [f"{columns['unit'][row]}-{copy}" for row, copy in drawn]
        expected = compute_metrics([metric], labels[rows], logits[rows], again)[metric]
        sums = counts @ runs.tallies["kl"][0]
        assert TALLIES[metric].value(sums) == pytest.approx(expected, abs=1e-12)


def frame(runs: dict[tuple[str, int], list[int]], labels: list[int]) -> pd.DataFrame:
    """Predictions of two classes by run, of the examples 0, 1, ..."""
    return pd.DataFrame([
        {"example_id": str(i), "label": label, "arm": arm, "seed": seed, "logits": np.eye(2)[prediction]}
        for (arm, seed), predictions in runs.items()
        for i, (label, prediction) in enumerate(zip(labels, predictions, strict=True))
    ])  # fmt: skip


def test_runs_are_matched_by_id_and_unlabelled_rows_do_not_count():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(2, size=30), rng.choice(list("xyz"), 30)
    predicted = {("kl", 3): rng.integers(2, size=30).tolist(), ("ce", 3): rng.integers(2, size=30).tolist()}
    given = np.where(np.arange(30) % 5, labels, -1)
    mixed = frame(predicted, given.tolist()).sample(frac=1, random_state=0)
    beside = pd.DataFrame({"example_id": [str(i) for i in range(30)], "group": groups})
    runs = read_runs(mixed, "accuracy", beside.sample(frac=1, random_state=1))
    for (arm, seed), predictions in predicted.items():
        right = (given == predictions) & (given >= 0)
        expected = [[right[groups == g].sum(), (given[groups == g] >= 0).sum()] for g in "xyz"]
        assert sorted(runs.tallies[arm][seed].tolist()) == sorted(expected)


def test_columns_beside_reach_the_metric():
    predictions = frame({("kl", 0): [0, 1, 0, 1]}, labels=[0, 1, 0, 0])
    beside = pd.DataFrame({"example_id": list("0123"), "group": list("aabb"), "unit": list("ppqq")})
    sums = read_runs(predictions, "exact_match", beside).tallies["kl"][0]
    assert sums.tolist() == [[1.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: f.drop(index=[5]),
            "ce-0 and kl-0 .* 1 differ",
        ),
        (
            lambda f: pd.concat([f, f.tail(1)]),
            "ce-0 and kl-0 .* 1 differ",
        ),
        (
            lambda f: f.assign(label=-1),
            "at least 2 groups of labelled rows, got 0",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(change, message):
    predictions = frame({("kl", 0): [0, 1, 1], ("ce", 0): [0, 0, 0]}, labels=[0, 1, 1])
    with pytest.raises(DataError, match=message):
        read_runs(change(predictions), "accuracy")


def test_a_split_other_than_the_predicted_one_is_refused():
    predictions = frame({("kl", 0): [0, 1]}, labels=[0, 1])
    with pytest.raises(DataError, match="example '1'"):
        read_runs(predictions, "accuracy", pd.DataFrame({"example_id": ["0"], "group": ["x"]}))


def test_unknown_metric_is_named_with_the_nearest():
    with pytest.raises(DataError, match=r"acuracy.*accuracy"):
        tally_runs("acuracy", np.zeros(2, int), {"kl": {0: np.eye(2)}})


def test_arms_meet_over_the_seeds_they_share():
    outputs = {seed: np.eye(2)[[seed % 2, 0]] for seed in range(5)}
    arms = {
        "ce": {0: outputs[0], 1: outputs[1], 2: outputs[2]},
        "kl": {2: outputs[2], 1: outputs[1]},
        "sp": {3: outputs[3], 4: outputs[4]},
        "teacher": {0: outputs[1]},
    }
    runs = tally_runs("accuracy", np.zeros(2, int), arms)
    paired = runs.paired(["ce", "kl", "teacher"])
    assert paired["ce"] == [runs.tallies["ce"][1], runs.tallies["ce"][2]]
    assert paired["kl"] == [runs.tallies["kl"][1], runs.tallies["kl"][2]]
    assert paired["teacher"] == [runs.tallies["teacher"][0]] * 2
    with pytest.raises(DataError, match="ce and sp share no seed"):
        runs.paired(["ce", "sp"])
    with pytest.raises(DataError, match=r"'cee'.*ce"):
        runs.paired(["cee"])


def test_a_member_is_paired_with_the_student_of_its_number():
    """Two rows of label 0; each run's tally tells which run it is. Seeds come in any order."""
    said = [np.eye(2)[[a, b]] for a, b in ((0, 0), (0, 1), (1, 1))]  # right on 2, 1 and 0 rows
    arms = {
        "kl": {2: said[2], 0: said[0], 1: said[1]},
        "teacher_member": {1: said[1], 2: said[0], 0: said[2]},
    }
    runs = tally_runs("accuracy", np.zeros(2, int), arms)
    paired = runs.paired(["kl", "teacher_member"])
    assert [tally[:, 0].sum() for tally in paired["kl"]] == [2, 1, 0]
    assert [tally[:, 0].sum() for tally in paired["teacher_member"]] == [0, 1, 2]
    arms["teacher_member"] = {1: said[1], 2: said[0]}  # fewer members than students
    paired = tally_runs("accuracy", np.zeros(2, int), arms).paired(["kl", "teacher_member"])
    assert [tally[:, 0].sum() for tally in paired["kl"]] == [1, 0]
    assert [tally[:, 0].sum() for tally in paired["teacher_member"]] == [1, 2]
