"""The paragraph: each sentence appears where its case was planted, and nowhere else."""

import re

import numpy as np
import pytest
from test_analyse import Split, analyse, classes, planted

from kdcache.analysis.describe import describe_analysis

NOTHING = "No problem was found with these targets."


def sentences(text: str) -> str:
    """What follows the summary."""
    return text.split(" of log C. ", 1)[1]


def at_random(split: Split, right: float, seed: int = 0, confidence: float = 0.8) -> Split:
    """The same labels under a two-class teacher that is right on this share of them."""
    labels = split[0]
    hit = np.random.default_rng(seed).random(len(labels)) < right
    said = np.where(hit, labels, 1 - labels)
    return labels, np.log(confidence / (1 - confidence)) * np.eye(2)[said]


SOUND = classes(1000, 2, 1.0)  # an accuracy of 75%, calibrated


def test_sound_cache_is_called_sound(tmp_path):
    text = describe_analysis(analyse(tmp_path, 2, train=SOUND, tune=classes(300, 2, 1.0, seed=1)))
    assert text == (
        "The teacher's accuracy is 74.9% on 1000 training rows (out-of-fold); the mean entropy is 0.49 nats, "
        f"70.6% of log C. {NOTHING}"
    )


@pytest.mark.parametrize(
    ("folds", "kind", "cure"),
    [
        (0, "", "Raise the temperature, or cross-fit for arms with prompts (train_teacher.folds)."),
        (2, "", "Raise the temperature."),
        (0, "external",
         "Import logits of a teacher that was not trained on these rows, or raise the temperature."),
    ],
)  # fmt: skip
def test_little_beyond_the_labels(tmp_path, folds, kind, cure):
    labels, logits = classes(1000, 2, 5.0)
    train = labels, 0.5 * logits
    text = sentences(describe_analysis(analyse(tmp_path, folds, kind=kind, train=train, tune=train)))
    assert text.startswith(f"The logits say little more than the labels. {cure}")


def test_an_overconfident_teacher_is_not_taken_for_one_of_little_entropy(tmp_path):
    split = at_random(SOUND, 0.8, confidence=0.999)
    text = sentences(describe_analysis(analyse(tmp_path, 2, train=split, tune=split)))
    assert "little more" not in text
    assert text.startswith("The teacher is overconfident: calibrated at temperature 5.")


def test_memorised_training_rows(tmp_path):
    train, tune = at_random(SOUND, 0.94, confidence=0.94), at_random(SOUND, 0.75, 1, 0.75)
    analysis = analyse(tmp_path / "a", train=train, tune=tune)
    assert sentences(describe_analysis(analysis)) == (
        "The teacher has memorised its training rows: its accuracy on tune is only 73.0%. "
        "Cross-fitting (train_teacher.folds) may help arms with prompts."
    )
    outside = analyse(tmp_path / "b", kind="external", train=train, tune=tune)
    assert sentences(describe_analysis(outside)) == (
        "The teacher has memorised its training rows: its accuracy on tune is only 73.0%. "
        "Import logits of a teacher that was not trained on these rows."
    )
    labels, logits = classes(2000, 2, 1.0, seed=3)
    unseen = np.full_like(labels, -1), logits
    text = describe_analysis(analyse(tmp_path / "f", train=train, tune=tune, unlabelled=unseen))
    assert "memorised" in text
    assert "Cross-fit" not in text, "students learn mostly from rows that no teacher has seen"
    # No sign of it: another accuracy on tune if train is cross-fitted, a small gap, a gap on few rows.
    assert "memorised" not in describe_analysis(analyse(tmp_path / "c", 2, train=train, tune=tune))
    near = at_random(SOUND, 0.88, 1, 0.88)
    assert "memorised" not in describe_analysis(analyse(tmp_path / "d", train=train, tune=near))
    few = np.array([0, 1, 0, 1, 0]), np.eye(2)[[0, 1, 0, 1, 1]]  # 80%, or 96%
    assert "memorised" not in describe_analysis(analyse(tmp_path / "e", train=train, tune=few))


def test_teacher_at_the_majority(tmp_path):
    split = at_random(SOUND, 0.52, confidence=0.52)
    text = sentences(describe_analysis(analyse(tmp_path, 2, train=split, tune=split)))
    assert text.startswith("On train the teacher does not clearly beat the majority class: 49.0% (95% CI ")
    assert text.endswith(") against 50.2%. There may be nothing to distil.")


@pytest.mark.parametrize(
    ("probe", "whose"),
    [
        ({"teacher": 0.769, "backbone": 0.76}, None),
        ({"teacher": 0.79, "backbone": 0.76}, "its own model before fine-tuning, 79.0%"),
        ({"teacher": 0.76, "backbone": 0.80}, "the students' frozen backbone, 80.0%"),
        ({"backbone": 0.80}, "the students' frozen backbone, 80.0%"),
        (None, None),
    ],
)
@pytest.mark.parametrize("all_rows", [None, 0.78])
def test_teacher_that_no_probe_is_below(tmp_path, probe, whose, all_rows):
    """The better of the fold teachers (77.0% on tune) and the one on all rows counts."""
    crossed = 0 if all_rows is None else 2
    tune = classes(600, 2, 1.0, seed=1)
    analysis = analyse(tmp_path, crossed, {"tune": all_rows or 0}, probe=probe, train=SOUND, tune=tune)
    text = describe_analysis(analysis)
    assert ("nothing to distil" in text) == ("students" in (whose or ""))
    assert ("fine-tuning may have added" in text) == ("its own" in (whose or ""))
    if whose:
        assert f"On tune the teacher's accuracy, {'77.0' if all_rows is None else '78.0'}%" in text
        assert whose in text


@pytest.mark.parametrize(
    ("probe", "verdict"),
    [
        (0.70, None), (0.75, "is not clearly above"), (0.77, "is not above"), (0.80, "is not above"),
        (0.85, "is below"),
    ],
)  # fmt: skip
def test_the_verdict_on_a_teacher_has_a_band(tmp_path, probe, verdict):
    """The teacher is right on 77.0% of 600 rows of tune: Wilson's interval is 73.5 to 80.2."""
    tune = classes(600, 2, 1.0, seed=1)
    text = describe_analysis(analyse(tmp_path, probe={"backbone": probe}, train=SOUND, tune=tune))
    told = [words for words in ("is not clearly above", "is not above", "is below") if words in text]
    assert told == [verdict] * (verdict is not None)
    assert ("there is nothing" in text) == (verdict == "is below")
    assert ("little to distil" in text) == (verdict == "is not clearly above")


def test_lost_class(tmp_path):
    labels, logits = classes(900, 3, 4.0)
    logits[:, 2] -= 200  # never predicted
    text = sentences(describe_analysis(analyse(tmp_path, 2, train=(labels, logits))))
    assert text.startswith("On train the teacher is worse than guessing (33.3%) at class2 (0.0% of 300), ")
    assert "class1" not in text


def test_folds_that_cost_too_much(tmp_path):
    tune = classes(600, 2, 1.0, seed=1)
    costly = analyse(tmp_path / "a", 2, {"tune": 0.9}, train=SOUND, tune=tune)
    assert sentences(describe_analysis(costly)) == (
        "On tune the 2 fold teachers together reach 77.0%, the teacher trained on all rows 90.0%. "
        "With more folds (train_teacher.folds) each of them is trained on more rows."
    )
    few = np.zeros(30, int), np.eye(2)[(np.arange(30) >= 24).astype(int)]  # 80% ± 7
    for k, (split, whole) in enumerate(((tune, 0.79), (tune, 0.7), (few, 0.9))):
        found = analyse(tmp_path / str(k), 2, {"tune": whole}, train=SOUND, tune=split)
        assert sentences(describe_analysis(found)) == NOTHING


def test_fold_that_failed(tmp_path):
    labels, logits = classes(1200, 2, 1.0)
    noise = 0.01 * np.random.default_rng(0).normal(size=(1200, 2))
    broken = np.where(np.arange(1200)[:, None] % 3 == 1, noise, logits)
    text = sentences(describe_analysis(analyse(tmp_path / "a", 3, train=(labels, broken))))
    assert text.startswith("The teacher of fold 1 has an accuracy of ")
    assert text.endswith("It failed to train: try another train_teacher.seed or a lower lr.")
    assert sentences(describe_analysis(analyse(tmp_path / "b", 3, train=(labels, logits)))) == NOTHING


@pytest.mark.parametrize(
    ("k", "start"),
    [(3.0, "The teacher is overconfident: calibrated at temperature 3.08 (95% CI "),
     (0.3, "The teacher is underconfident: calibrated at temperature 0.31 (95% CI "),
     (1.1, NOTHING)],
)  # fmt: skip
def test_logits_of_another_temperature(tmp_path, k, start):
    labels, logits = SOUND
    assert sentences(describe_analysis(analyse(tmp_path, 2, train=(labels, k * logits)))).startswith(start)


def test_few_rows_do_not_tell_a_temperature(tmp_path):
    labels, logits = classes(24, 2, 1.0, seed=3)
    analysis = analyse(tmp_path, train=SOUND, tune=(labels, 1.5 * logits))
    found = analysis.temperatures["tune"]
    assert found.low < 1 < 1.2 < found.value
    assert "calibrated" not in describe_analysis(analysis)


def test_label_noise(tmp_path):
    text = sentences(describe_analysis(analyse(tmp_path / "a", 2, train=planted(0.05, 4, 5.0)[1])))
    assert re.search(
        r"Of its 1\d\d mistakes on train, 1\d\d \([45]\.\d% of the rows\) may be wrong labels", text
    )
    clean = classes(3000, 4, 5.0)
    assert "wrong labels" not in describe_analysis(analyse(tmp_path / "b", 2, train=clean))
    weak = planted(0.05, 4, 1.5)[1]
    assert "wrong labels" not in describe_analysis(analyse(tmp_path / "c", 2, train=weak))
    # One that trained on these rows would not know.
    assert "wrong labels" not in describe_analysis(analyse(tmp_path / "d", train=planted(0.05, 4, 5.0)[1]))


def test_labels_may_be_missing(tmp_path):
    nobody = np.full(1000, -1), SOUND[1]
    text = describe_analysis(analyse(tmp_path / "a", train=nobody))
    assert text == "Train has no labels; the mean entropy is 0.49 nats, 70.6% of log C."
    one = describe_analysis(analyse(tmp_path / "c", train=nobody, tune=SOUND))
    assert one == f"{text} {NOTHING}", "tune could have told of a problem"
    text = describe_analysis(analyse(tmp_path / "b", validation=SOUND))
    assert text == "This cache has no train split, so it can score students but not train them."


def test_validation_decides_nothing(tmp_path):
    """Whatever validation holds, the paragraph is the same."""
    texts = {
        describe_analysis(analyse(tmp_path / str(k), 2, {"validation": 0.99}, train=SOUND, validation=split))
        for k, split in enumerate((SOUND, at_random(SOUND, 0.3, confidence=0.9999), planted(0.3, 2, 4)[1]))
    }
    assert len(texts) == 1
