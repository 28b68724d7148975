"""Checks of a task: each problem is described once, and nothing is where nothing is wrong."""

from dataclasses import replace

from kdcache.data.check import find_problems, label_counts, length_histogram, shown_examples
from kdcache.data.task import Example, Task

TASK = Task("mine", ("no", "yes", "maybe"), "mine/1", ("accuracy",))


def rows(split: str, *labels: int, start: int = 0, text: str = "text") -> list[Example]:
    return [
        Example(f"{split}-{start + i}", label, "", f"{text} {split} {start + i}")
        for i, label in enumerate(labels)
    ]


def good() -> dict[str, list[Example]]:
    return {"train": rows("train", *[0, 1, 2] * 20), "validation": rows("validation", *[0, 1, 2] * 300)}


def test_nothing_is_found_where_nothing_is_wrong():
    assert find_problems(TASK, good(), [10] * 60, 16) == []


def test_each_problem_is_one_sentence():
    cases = {
        "No training row has the label 'maybe': it cannot be learned.": {
            "train": rows("train", *[0, 1] * 20)
        },
        "Fewer than 10 training rows have the label 'maybe'.": {"train": rows("train", *[0, 1] * 20, 2)},
        "No validation row has the label 'no', 'maybe': no score covers it.": {
            "validation": rows("validation", *[1] * 900)
        },
        "89% of the training rows have the label 'no': accuracy says little. Set metrics = [\"macro_f1\"].": {
            "train": rows("train", *[0] * 160, *[1, 2] * 10)
        },
        "2 of 62 training rows (3.2%) repeat the text of another.": {
            "train": good()["train"] + [good()["train"][0]] * 2
        },
        "3 of 903 rows of validation (0.3%) have the text of a training row, which inflates scores.": {
            "validation": good()["validation"] + good()["train"][:3]
        },
        "validation has 300 rows: the standard error of an accuracy is up to 2.9 points, so smaller "
        "differences will not show.": {"validation": rows("validation", *[0, 1, 2] * 100)},
    }
    for sentence, change in cases.items():
        assert find_problems(TASK, good() | change) == [sentence]


def test_rows_of_one_text_and_two_labels_are_found():
    again = good()["train"] + [Example("train-x", 1, "", good()["train"][0].text)]
    assert find_problems(TASK, good() | {"train": again})[1] == (
        "Texts of train that occur with different labels: 1."
    )


def test_labels_that_look_alike_are_named_with_their_counts():
    for names in (
        ("yes", "yes ", "no"), ("Yes", "yes", "no"), ("café", "cafe\u0301", "no"), ("1", "01", "2"),
        ("1", "1.0", "2"), ("a\u200bb", "ab", "no"), ("ﬁne", "fine", "no"), ("a  b", "a b", "no"),
    ):  # fmt: skip
        task = Task("mine", names, "mine/1", ("accuracy",))
        (problem,) = find_problems(task, good())
        assert f"{names[0]!r} (320 rows), {names[1]!r} (320 rows)" in problem
    for names in (
        ("1", "10", "2"),
        ("-1", "1", "0"),
        ("20230101", "20230102", "x"),
        ("12e3456789", "12e3456788", "x"),
        ("1" * 40, "1" * 39 + "2", "x"),
        ("a", "b", "ab"),
        ("é", "e", "x"),
    ):
        assert find_problems(Task("mine", names, "mine/1", ("accuracy",)), good()) == []


def test_long_rows_are_counted():
    (problem,) = find_problems(TASK, good(), [10] * 57 + [20] * 3, 16)
    assert problem == (
        "3 of 60 training rows (5.0%) are longer than train_teacher.max_length = 16 tokens "
        "and lose their end."
    )


def test_labels_are_counted_by_split_the_largest_first():
    splits = {
        "train": rows("train", 1, 1, 0, 2, 2, 2), "test": rows("test", -1, -1), "validation": rows("v", 0),
    }  # fmt: skip
    assert label_counts(TASK, splits) == {
        "maybe": {"train": 3, "validation": 0},
        "yes": {"train": 2, "validation": 0},
        "no": {"train": 1, "validation": 1},
    }


def test_histogram_counts_every_row_once():
    assert length_histogram([8, 9, 600]) == {
        "1-8": 1, "9-16": 1, "17-32": 0, "33-64": 0, "65-128": 0, "129-256": 0, "257-512": 0,
        "513 and more": 1,
    }  # fmt: skip


def test_examples_shown_are_of_different_labels_first():
    train = rows("train", 0, 0, 0, 1, 2)
    assert [e.label for e in shown_examples(train)] == [0, 1, 2]
    shown = shown_examples(rows("train", 0, 0, 0, 1))
    assert [e.example_id for e in shown] == ["train-0", "train-3", "train-1"]


def test_rows_that_a_stray_quote_swallowed_are_told_by_lines_against_rows():
    splits = good()
    first = splits["train"][0]
    swallowed = replace(first, text='he said 5"\nno\tsome text\nyes\tother text\nan end')
    (found,) = find_problems(TASK, splits | {"train": [swallowed, *splits["train"][1:]]})
    assert "60 rows from 62 lines" in found
    innocent = replace(first, text="Dear all,\nno, I am not coming.\nyes\nBest, A")
    assert find_problems(TASK, splits | {"train": [innocent, *splits["train"][1:]]})[:1] != [found]
    choices = replace(first, text_pair="yes", choices=("no", "yes"))
    assert find_problems(TASK, splits | {"train": [choices, *splits["train"][1:]]}) == []
