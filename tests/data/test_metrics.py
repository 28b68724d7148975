"""The official metrics, on examples worked by hand and at their edges."""

import subprocess
import sys

import numpy as np
import pytest

from kdcache.data.metrics import (
    METRICS,
    accuracy_interval,
    choose,
    compute_metrics,
    majority_metrics,
    normalise_answer,
    token_f1,
)


def logits_of(predictions: list[int], num_labels: int = 2) -> np.ndarray:
    return np.eye(num_labels)[predictions]


def score(name: str, labels: list[int], predictions: list[int], num_labels: int = 2, **columns) -> float:
    logits = logits_of(predictions, num_labels)
    return compute_metrics([name], np.array(labels), logits, columns)[name]


def test_macro_f1_is_the_plain_mean_over_classes():
    # entailment 2/2 found, one of them wrongly too: F1 = 4/5; contradiction 1 of 2: 2/3; neutral never: 0
    labels, predictions = [0, 0, 1, 1, 2], [0, 0, 1, 0, 1]
    expected = (2 * 2 / 5 + 2 * 1 / 4 + 0) / 3
    assert score("macro_f1", labels, predictions, 3) == pytest.approx(expected)
    assert score("accuracy", labels, predictions, 3) == pytest.approx(3 / 5)


def test_multirc_f1a_is_over_all_answers_and_exact_match_over_questions():
    units = ["p0-q0"] * 3 + ["p0-q1"] * 2 + ["p1-q0"]
    labels, predictions = [1, 0, 1, 0, 1, 0], [1, 0, 1, 1, 1, 0]
    # true positives 3, false positives 1, false negatives 0: 6 / 7; questions 0 and 2 are wholly right
    assert score("f1a", labels, predictions, unit=units) == pytest.approx(6 / 7)
    assert score("exact_match", labels, predictions, unit=units) == pytest.approx(2 / 3)
    assert score("f1a", [0, 0], [0, 0], unit=["a", "a"]) == 0.0  # no answer is right, none was named
    assert score("exact_match", [0, 0], [0, 0], unit=["a", "a"]) == 1.0


def test_rows_of_a_question_need_not_stand_together():
    units, labels, predictions = ["a", "b", "a", "b"], [1, 1, 0, 0], [1, 0, 0, 0]
    assert score("exact_match", labels, predictions, unit=units) == 0.5


def test_matthews_follows_its_formula_and_is_zero_for_a_constant():
    # tp 3, tn 2, fp 1, fn 2
    labels, predictions = [1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 1]
    assert score("matthews", labels, predictions) == pytest.approx((3 * 2 - 1 * 2) / (4 * 5 * 3 * 4) ** 0.5)
    assert score("matthews", [0, 1, 1], [1, 1, 1]) == 0.0
    assert score("matthews", [0, 1], [1, 0]) == -1.0


def test_gender_parity_asks_for_equal_not_for_right_predictions():
    units = ["a", "a", "b", "b", "c", "c"]
    labels, predictions = [0, 0, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]
    assert score("gender_parity", labels, predictions, unit=units) == pytest.approx(2 / 3)
    assert score("accuracy", labels, predictions, unit=units) == pytest.approx(3 / 6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The U.S. Congress", "us congress"),
        ("  a  man,   an apple ", "man apple"),
        ("Theatre", "theatre"),  # no article inside a word
        ("the", ""),
        ("Jose Mourinho's", "jose mourinhos"),
    ],
)
def test_answers_are_normalised_as_squad_does(text, expected):
    assert normalise_answer(text) == expected


def test_token_f1_counts_repeated_words_once_each():
    assert token_f1("new new york", "new york") == pytest.approx(2 * 2 / 5)
    assert token_f1("York New", "new york") == 1.0  # a bag of words
    assert token_f1("the", "a") == 0.0
    assert token_f1("Paris", "London") == 0.0


RECORD = {
    "unit": ["q0"] * 3 + ["q1"] * 2,
    "candidate": ["Ada", "Ada Lund", "Riga", "Oslo", "The Oslo"],
    "answers": [("Ada Lund", "Lund", "Ada Lund")] * 3 + [("Oslo",)] * 2,
}


def record(logits: np.ndarray, **columns) -> dict[str, float]:
    names = ["answer_f1", "answer_exact_match"]
    return compute_metrics(names, np.array([0, 1, 0, 1, 0]), logits, RECORD | columns)


def test_record_scores_the_best_answer_of_the_chosen_candidate():
    # q0 picks "Ada": F1 with "Ada Lund" 2/3, no exact match; q1 picks "The Oslo", equal once normalised.
    logits = np.array([[0.0, 5.0], [0.0, 4.0], [0.0, -1.0], [0.0, 0.0], [0.0, 1.0]])
    assert record(logits) == {
        "answer_f1": pytest.approx((2 / 3 + 1) / 2), "answer_exact_match": 0.5, "rows": 5,
    }  # fmt: skip


def test_record_chooses_by_margin_even_where_no_candidate_is_called_right():
    logits = np.array([[9.0, 5.0], [3.0, 2.0], [8.0, 0.0], [1.0, 0.0], [9.0, 0.0]])
    assert record(logits)["answer_exact_match"] == 1.0


def test_of_equal_candidates_the_first_is_chosen():
    assert choose(np.zeros((4, 2)), [[2, 3], [1, 0]]) == [2, 1]


def test_unlabelled_rows_and_their_units_do_not_count():
    labels, logits = np.array([-1, -1, 1, 0]), logits_of([0, 0, 1, 0])
    columns = {"unit": ["a", "a", "b", "b"]}
    assert compute_metrics(["f1a", "exact_match"], labels, logits, columns) == {
        "f1a": 1.0, "exact_match": 1.0, "rows": 2,
    }  # fmt: skip
    assert compute_metrics(["accuracy"], np.array([-1, -1]), logits_of([0, 1])) == {}


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_is_one_for_a_perfect_prediction(name):
    columns = {"unit": ["a", "a", "b", "b"], "candidate": list("xyxy"), "answers": [("x",)] * 4}
    labels = [1, 1, 0, 0] if name == "gender_parity" else [1, 0, 1, 0]
    assert score(name, labels, labels, **columns) == 1.0


def test_majority_is_scored_with_the_same_columns():
    labels = np.array([0, 0, 1, -1])
    scores = majority_metrics(["accuracy", "exact_match"], labels, 2, {"unit": ["a", "b", "b", "c"]})
    assert scores == {"accuracy": pytest.approx(2 / 3), "exact_match": 0.5, "rows": 3}


def test_importing_metrics_needs_neither_scikit_learn_nor_scipy():
    code = "import sys, kdcache.data.metrics; assert not {'sklearn', 'scipy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_interval_covers_what_it_must():
    low, high = accuracy_interval(1.0, 20)
    assert (round(low, 3), high) == (0.839, 1.0)
