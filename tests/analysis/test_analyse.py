"""Analysis of caches whose answer is planted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from kdcache.analysis.analyse import CacheAnalysis, analyse_cache, analyse_split, suspect_labels
from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.manifest import read_manifest
from kdcache.cache.writer import write_cache
from kdcache.data.metrics import compute_metrics
from kdcache.errors import CacheMissing, ShapeError
from kdcache.report.figures import draw_cache

Split = tuple[np.ndarray, np.ndarray]  # labels, logits


def rows_of(split: str, labels: np.ndarray, logits: np.ndarray, fold: np.ndarray | int = -1) -> CacheRows:
    ids = [f"{split}-{i}" for i in range(len(labels))]
    folds = np.broadcast_to(np.int8(fold) if isinstance(fold, int) else fold.astype(np.int8), len(labels))
    return CacheRows(ids, ids, labels, folds.copy(), logits.astype(np.float32), np.empty((len(ids), 0)))


def analyse(
    tmp_path: Path,
    num_folds: int = 0,
    all_rows: dict[str, float] | None = None,
    kind: str = "",
    probe: dict[str, float] | None = None,
    **splits: Split,
) -> CacheAnalysis:
    """Write a cache and analyse it; with folds, row i of train is of fold i mod k.

    ``all_rows``: split → accuracy of the teacher trained on all rows; it is wrong on the last rows.
    ``probe``: accuracies on tune of linear probes, ``teacher`` and ``backbone``.
    """
    rows, metrics = {}, {}
    for split, (labels, logits) in splits.items():
        crossed = np.arange(len(labels)) % num_folds if split == "train" and num_folds else None
        fold: Any = crossed if crossed is not None else -2 if num_folds else -1
        rows[split] = rows_of(split, labels, logits, fold)
        if num_folds:
            share = (all_rows or {}).get(split)
            wrong = np.arange(len(labels)) >= round((share or 0) * len(labels))
            said = np.where(wrong, (labels + 1) % logits.shape[1], labels)
            plain = logits if share is None else np.eye(logits.shape[1])[said]
            rows[split] = replace(rows[split], logits_plain=plain.astype(np.float32))
        metrics[split] = compute_metrics(["accuracy"], labels, logits)
    metrics = {split: scores for split, scores in metrics.items() if scores}
    names = [f"class{k}" for k in range(next(iter(splits.values()))[1].shape[1])]
    identity = {"task": "t", "kind": kind, "labels": names, "folds_sha256": ["x"] * num_folds}
    cache = tmp_path / "cache"
    facts: dict[str, Any] = {}
    if probe and "teacher" in probe:
        facts["probe"] = {"strength": 0.1, "tune": {"accuracy": probe["teacher"]}}
    write_cache(cache, tmp_path / "s" / "x", rows, identity=identity, metrics=metrics, **facts)
    if probe and "backbone" in probe:
        of = ("train", "tune")
        row = {"full": 1.0, "cut": probe["backbone"], "kept": 0.5, "majority": 0.5}
        row["data"] = {split: digest for split, digest in read_manifest(cache).data.items() if split in of}
        (tmp_path / "shrink.json").write_text(json.dumps({"probes": {"t": row}}))
    return analyse_cache(cache, tmp_path)


def classes(rows: int, num_labels: int, apart: float, seed: int = 0) -> Split:
    """Gaussian classes and the log of Bayes' posterior: the best teacher there is, and calibrated."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) // 6 % num_labels  # as many of each in every fold of 2 or 3
    means = apart * np.eye(num_labels)
    x = means[labels] + rng.normal(size=(rows, num_labels))
    return labels, log_softmax(x @ means.T, axis=1)


def planted(share: float, num_labels: int, apart: float, seed: int = 0) -> tuple[np.ndarray, Split]:
    """Which labels are wrong, and what the cache holds."""
    rng = np.random.default_rng(seed + 100)
    labels, logits = classes(3000, num_labels, apart, seed)
    wrong = rng.random(len(labels)) < share
    given = np.where(wrong, (labels + rng.integers(1, num_labels, len(labels))) % num_labels, labels)
    return wrong, (given, logits)


@pytest.mark.parametrize(
    ("share", "num_labels", "apart", "precision", "recall"),
    # Measured 0.99/0.97, 0.65/0.82, 0.88/0.92, 0.68/0.73 and 0.77/0.86.
    [(0.02, 2, 4, 0.95, 0.9), (0.02, 2, 2.5, 0.55, 0.75), (0.1, 4, 3, 0.8, 0.85), (0.1, 2, 1.7, 0.6, 0.65),
     (0.1, 77, 4, 0.7, 0.8)],
)  # fmt: skip
def test_planted_label_noise_is_found(share, num_labels, apart, precision, recall):
    wrong, (given, logits) = planted(share, num_labels, apart)
    suspects = suspect_labels(given, softmax(logits, axis=1))
    assert wrong[suspects].mean() >= precision
    assert suspects[wrong].mean() >= recall


def test_suspects_are_mistakes_and_a_class_without_rows_is_no_alternative():
    given, logits = planted(0.1, 4, 2.0)[1]
    p = softmax(logits, axis=1)
    assert (p.argmax(axis=1) != given)[suspect_labels(given, p)].all()
    p = np.array([[0.2, 0.1, 0.7], [0.3, 0.1, 0.6], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1]])
    assert not suspect_labels(np.array([0, 0, 1, 1]), p).any()


def test_suspects_are_counted_only_where_the_teacher_saw_none_of_the_rows(tmp_path):
    split = planted(0.1, 2, 4)[1]
    crossed = analyse(tmp_path / "a", 2, train=split, tune=split)
    found = crossed.splits["train"].labels
    assert 250 < found.suspects < 350
    assert sum(mistake.suspect for mistake in found.mistakes) == found.suspects
    plain = analyse(tmp_path / "b", train=split, tune=split)
    assert (plain.splits["train"].held_out, plain.splits["train"].labels.suspects) == (False, None)
    assert not any(m.suspect for m in plain.splits["train"].labels.mistakes)
    assert plain.splits["tune"].labels.suspects == crossed.splits["tune"].labels.suspects
    outside = analyse(tmp_path / "c", kind="external", train=split)
    assert (outside.splits["train"].held_out, outside.splits["train"].labels.suspects) == (None, None)
    assert list(crossed.temperatures) == ["tune", "train"]
    assert list(plain.temperatures) == ["tune"]
    assert not outside.temperatures


def test_planted_mistakes_come_the_most_confident_first():
    labels = np.zeros(6, int)
    logits = np.array([[3.0, 0], [0, 2.0], [0, 50.0], [0, 5.0], [0, 60.0], [1.0, 0]])
    found = analyse_split(list("abcdef"), labels, logits).labels
    # At 50 and 60 the confidence is 1 to the last bit; the log-odds still tell them apart.
    assert [m.example_id for m in found.mistakes] == ["e", "c", "d", "b"]
    assert (found.mistakes[0].label, found.mistakes[0].prediction) == (0, 1)
    assert found.mistakes[3].confidence == pytest.approx(1 / (1 + np.exp(-2.0)))
    # A row of three classes: sure of its prediction beats sure that the label is wrong.
    found = analyse_split(["x", "y"], np.array([2, 2]), np.array([[4.0, 3.9, -30.0], [4.0, 0.0, 3.0]])).labels
    assert [m.example_id for m in found.mistakes] == ["y", "x"]


def test_a_split_is_summed_up():
    labels = np.array([0, 0, 1, 2, -1])
    logits = np.array([[9.0, 0, 0], [0, 9.0, 0], [0, 9.0, 0], [9.0, 0, 0], [0, 0, 0]])
    found = analyse_split(list("abcde"), labels, logits)
    assert (found.rows, found.labels.accuracy.rows, found.labels.accuracy.value) == (5, 4, 0.5)
    assert found.labels.majority == 0.5
    assert {k: (share.value, share.rows) for k, share in found.labels.classes.items()} == {
        0: (0.5, 2), 1: (1.0, 1), 2: (0.0, 1),
    }  # fmt: skip
    p = softmax(logits, axis=1)
    assert found.entropy == pytest.approx(-(p * np.log(p)).sum() / 5)
    assert found.entropy_share == pytest.approx(found.entropy / np.log(3))
    assert (found.entropy_counts[0], found.entropy_counts[-1], sum(found.entropy_counts)) == (4, 1, 5)
    assert found.margins[0.5] == 9.0
    assert found.labels.nll == pytest.approx(-np.log(p[[0, 1, 2, 3], labels[:4]]).mean())
    nobody = analyse_split(["a"], np.array([-1]), np.array([[1e4, -1e4]]))
    assert (nobody.labels, nobody.entropy) == (None, 0.0)


def test_order_of_rows_changes_no_number():
    labels, logits = classes(400, 3, 1.0)
    ids = [str(i) for i in range(400)]
    logits = logits.round(1)  # ties
    order = np.random.default_rng(0).permutation(400)
    a = analyse_split(ids, labels, logits)
    b = analyse_split([ids[i] for i in order], labels[order], logits[order])
    assert b.labels.ece == pytest.approx(a.labels.ece, abs=1e-12)
    assert b.entropy == pytest.approx(a.entropy, abs=1e-12)
    assert b.margins == a.margins
    assert (b.labels.accuracy, b.labels.suspects) == (a.labels.accuracy, a.labels.suspects)
    assert {m.example_id for m in a.labels.mistakes} == {m.example_id for m in b.labels.mistakes}


def test_teachers_that_differ_are_counted_row_by_row(tmp_path):
    labels = np.zeros(100, int)
    logits = np.where(np.arange(100)[:, None] < 70, [[1.0, 0]], [[0, 1.0]])  # right on the first 70
    found = analyse(tmp_path, 2, {"train": 0.9}, train=(labels, logits)).agreement["train"]
    assert (found.all_rows, found.fold_teachers, found.same, found.rows, found.discordant) == (
        0.9,
        0.7,
        0.8,
        100,
        0.2,
    )
    drop, error = found.drop  # only the teacher trained on all rows is correct on 20 rows
    differences = np.repeat([1.0, 0.0], [20, 80])
    assert (drop, error) == pytest.approx((differences.mean(), differences.std() / 10))
    assert analyse(tmp_path / "plain", train=(labels, logits)).agreement == {}


def test_members_of_an_ensemble_are_compared_two_by_two(tmp_path):
    labels, logits = classes(300, 3, 3.0)
    members = tuple(
        (logits + np.random.default_rng(m).normal(size=logits.shape)).astype(np.float32) for m in range(3)
    )
    rows = rows_of("train", labels, np.mean(members, axis=0))
    identity = {"task": "t", "labels": ["a", "b", "c"], "folds_sha256": []}
    splits = {"train": replace(rows, members=members)}
    write_cache(tmp_path / "c", tmp_path / "s" / "x", splits, identity=identity)
    found = analyse_cache(tmp_path / "c").members["train"]
    predictions = [one.argmax(1) for one in members]
    assert found.accuracies == pytest.approx([(one == labels).mean() for one in predictions])
    assert found.ensemble == pytest.approx((rows.logits.argmax(1) == labels).mean())
    pairs = [(predictions[a] == predictions[b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert found.same == pytest.approx(np.mean(pairs))
    assert found.unanimous == pytest.approx(
        np.mean([len(set(row)) == 1 for row in np.stack(predictions, axis=1).tolist()])
    )
    assert found.unanimous < found.same < 1
    assert analyse(tmp_path / "one", train=(labels, logits)).members == {}


def test_folds_are_told_apart(tmp_path):
    labels, logits = classes(600, 3, 5.0)
    logits = np.where(np.arange(600)[:, None] % 3 == 1, logits[:, ::-1], logits)  # class 1 alone is right
    folds = analyse(tmp_path, 3, train=(labels, logits)).folds
    assert [share.rows for share in folds.values()] == [200, 200, 200]
    assert folds[1].value == pytest.approx(1 / 3, abs=0.02)
    assert min(folds[0].value, folds[2].value) > 0.95


def test_what_is_no_split_is_refused():
    with pytest.raises(ShapeError) as caught:
        analyse_split(["a"], np.array([0]), np.zeros((1, 1)))
    assert str(caught.value) == (
        "analyse_split: logits must be (rows, num_labels), at least (1, 2), of as many ids and labels, "
        "got (1, 1) of 1 ids and 1 labels."
    )
    for ids, labels, logits in (
        (["a"], [0, 1], np.zeros((2, 2))), ([], [], np.zeros((0, 2))), (["a", "b"], [0, 1], np.zeros(2)),
    ):  # fmt: skip
        with pytest.raises(ShapeError):
            analyse_split(ids, np.array(labels), logits)
    with pytest.raises(CacheMissing):
        analyse_cache("nowhere")


def test_figure_depends_on_the_numbers_alone(tmp_path):
    train, tune = classes(300, 3, 1.5), classes(40, 3, 1.5, seed=1)
    unlabelled = (np.full(50, -1), classes(50, 3, 1.5)[1])
    analysis = analyse(tmp_path, 2, train=train, tune=tune, unlabelled=unlabelled)
    draw_cache(analysis, tmp_path / "a.svg")
    draw_cache(analyse_cache(tmp_path / "cache"), tmp_path / "b.svg")
    one = (tmp_path / "a.svg").read_bytes()
    assert one == (tmp_path / "b.svg").read_bytes()
    draw_cache(replace(analysis, splits={"train": analysis.splits["tune"]}), tmp_path / "c.svg")
    assert one != (tmp_path / "c.svg").read_bytes()
