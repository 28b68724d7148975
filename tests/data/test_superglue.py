"""SuperGLUE: what the model reads is pinned, and every defect of a row is one line."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from kdcache.data.examples import read_examples
from kdcache.data.metrics import METRICS
from kdcache.data.splits import METRIC_COLUMNS, build_table, read_split, sequences, write_split
from kdcache.data.superglue import SUPERGLUE
from kdcache.data.superglue.expand import EXPANDERS
from kdcache.data.superglue.score import submission_names, superglue_metrics, superglue_score
from kdcache.data.task import Example
from kdcache.data.taskfile import read_task_file
from kdcache.data.taskfile_schema import Diagnostic, TaskFile
from kdcache.errors import DataError

FIXTURES = Path(__file__).parents[1] / "fixtures"
OFFICIAL = FIXTURES / "superglue"
SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "superglue"

# split → count of each class, −1 first where labels are withheld.
REAL = {
    "boolq": {"train": {0: 376, 1: 624}, "validation": {0: 1237, 1: 2033}},
    "cb": {
        "train": {0: 115, 1: 119, 2: 16},
        "validation": {0: 23, 1: 28, 2: 5},
        "test": {-1: 250},
    },
    "copa": {"train": {0: 195, 1: 205}, "validation": {0: 55, 1: 45}, "test": {-1: 500}},
    "multirc": {"train": {0: 15218, 1: 12025}, "validation": {0: 2773, 1: 2075}, "test": {-1: 9693}},
    "record": {"train": {0: 353, 1: 44}, "validation": {0: 323, 1: 46}},
    "rte": {
        "train": {0: 1249, 1: 1241},
        "validation": {0: 146, 1: 131},
        "test": {-1: 3000},
        "axb": {0: 460, 1: 644},
        "axg": {0: 178, 1: 178},
    },
    "wic": {"train": {0: 2714, 1: 2714}, "validation": {0: 319, 1: 319}, "test": {-1: 1400}},
    "wsc": {"train": {0: 295, 1: 259}, "validation": {0: 66, 1: 38}, "test": {-1: 146}},
}
FIXTURE_ROWS = {
    "boolq": {"train": 6, "validation": 2},
    "cb": {"train": 6, "validation": 3, "test": 2},
    "copa": {"train": 6, "validation": 2, "test": 1},
    "multirc": {"train": 10, "validation": 2, "test": 2},
    "record": {"train": 15, "validation": 5},
    "rte": {"train": 6, "validation": 2, "test": 1, "axb": 4, "axg": 4},
    "wic": {"train": 6, "validation": 2, "test": 1},
    "wsc": {"train": 6, "validation": 2, "test": 1},
}
FOLDERS = submission_names()  # the official folders have the names of the submission files


def read_official(name: str, folder: Path = OFFICIAL) -> dict[str, list[Example]]:
    return read_examples(name, read_task_file(SUPERGLUE[name]), folder)[1]


@cache
def real(name: str) -> dict[str, list[Example]]:
    if not SHARED.is_dir():
        pytest.skip("the real SuperGLUE files are not beside this project")
    return read_official(name, SHARED)


@pytest.mark.parametrize("name", SUPERGLUE)
def test_only_rows_of_test_have_no_label(name):
    official = read_official(name)
    assert {split: len(rows) for split, rows in official.items()} == FIXTURE_ROWS[name]
    labels = {split: {row.label for row in rows} for split, rows in official.items()}
    assert labels.pop("test", {-1}) == {-1}
    assert all(min(found) >= 0 for found in labels.values())


@pytest.mark.parametrize("name", SUPERGLUE)
def test_rendered_examples_are_pinned(name):
    expected = json.loads((FIXTURES / "rendered.json").read_text(encoding="utf-8"))[name]
    rows = {row.example_id: row for part in read_official(name).values() for row in part}
    assert len(expected) == 5
    for example_id, label, text, *seconds in expected:
        row = rows[example_id]
        assert (row.label, row.text, list(row.choices or (row.text_pair,))) == (label, text, seconds)


@pytest.mark.parametrize("name", SUPERGLUE)
def test_real_superglue_has_its_rows_and_labels(name):
    splits = real(name)
    assert {split: dict(Counter(row.label for row in rows)) for split, rows in splits.items()} == REAL[name]


def test_spans_of_the_real_wic_hold_the_target_word_in_some_form():
    marked = [(row.text.split("*")[1].lower(), row.group) for row in real("wic")["train"]]
    assert sum(form[:2] == word[:2] for form, word in marked) > 0.95 * len(marked)


def test_gender_pairs_of_the_real_file_differ_in_one_word():
    pairs: dict[str, list] = {}
    for row in real("rte")["axg"]:
        pairs.setdefault(row.unit, []).append(row)
    for one, other in pairs.values():
        assert (one.text_pair, one.label) == (other.text_pair, other.label)
        words = zip(one.text.split(), other.text.split(), strict=True)
        assert 0 < sum(a != b for a, b in words) <= 2


def test_units_are_questions_queries_and_gender_pairs():
    for name, split, sizes in (
        ("multirc", "train", [2, 3, 2, 3]),
        ("record", "train", [6, 6, 3]),
        ("rte", "axg", [2, 2]),
    ):
        assert list(Counter(row.unit for row in read_official(name)[split]).values()) == sizes
    first, *_ = read_official("record")["train"]
    assert (first.candidate, first.answers) == ("Brandt", ("Per Lie",))


@pytest.mark.parametrize("name", SUPERGLUE)
def test_prepared_split_gives_the_sequences_back(name, tmp_path):
    task, splits = read_examples(name, read_task_file(SUPERGLUE[name]), OFFICIAL)
    for split, rows in splits.items():
        write_split([build_table(rows, task)], tmp_path / f"{split}.parquet")
        table = read_split(tmp_path, split, task)
        texts, seconds = sequences(table, task)
        n = task.num_choices
        assert len(texts) == len(seconds) == n * len(rows)
        for i, row in enumerate(rows):
            assert texts[n * i : n * (i + 1)] == [row.text] * n
            assert tuple(seconds[n * i : n * (i + 1)]) == (row.choices or (row.text_pair,))
        assert len({*table["content_hash"].to_pylist()}) == len(
            {(row.text, row.text_pair, row.choices) for row in rows}
        )
        assert set(table.schema.names) & set(METRIC_COLUMNS) == set(task.columns)


def test_task_files_are_short_and_name_metrics_and_expanders_that_exist():
    for path in SUPERGLUE.values():
        assert len(path.read_text().splitlines()) <= 27
        file = read_task_file(path)
        for part in (file, *file.diagnostics.values()):
            assert set(part.metrics) <= set(METRICS)
    for schema in (TaskFile, Diagnostic):
        (named, _) = schema.__annotations__["expand"].__args__
        assert set(named.__args__) == set(EXPANDERS)


def test_span_is_the_occurrence_nearest_to_its_index(tmp_path, write_jsonl):
    text = "He saw him , and it was him who ran to him ."
    for index, marked in ((1, "He saw *him* , and it was him"), (7, "was *him* who"), (11, "to *him* .")):
        target = {"span1_index": index, "span1_text": "him", "span2_index": 0, "span2_text": "He"}
        line = {"idx": 0, "text": text, "label": True, "target": target}
        for split in ("train", "val"):
            write_jsonl(tmp_path / "WSC" / f"{split}.jsonl", [line])
        (row,) = read_official("wsc", tmp_path)["train"]
        assert marked in row.text.replace("#", "")
        assert row.text.startswith("#He# ")


def test_a_passage_is_held_once_however_many_candidates_it_has():
    rows = read_official("record")["train"]
    by_unit = [row for row in rows if row.unit == rows[0].unit]
    assert len(by_unit) > 1
    assert all(row.text is by_unit[0].text for row in by_unit)


WIC = {
    "word": "bank", "sentence1": "The bank lent us money.", "sentence2": "We sat on the bank.",
    "idx": 0, "label": False, "start1": 4, "end1": 8, "start2": 14, "end2": 18,
}  # fmt: skip
CB = {"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment", "idx": 0}
COPA = {"idx": 0, "premise": "a", "choice1": "b", "choice2": "c", "question": "cause", "label": 0}
MULTIRC = {"idx": 0, "passage": {"text": "a", "questions": [
    {"idx": 0, "question": "b", "answers": [{"idx": 0, "text": "c", "label": 1}]}]}}  # fmt: skip
RECORD = {
    "idx": 0, "passage": {"text": "Per ran.", "entities": [{"start": 0, "end": 2}]},
    "qas": [{"idx": 1, "query": "@placeholder ran.", "answers": [{"text": "Per"}]}],
}  # fmt: skip
WSC = {"idx": 0, "text": "He ran.", "label": True, "target": {
    "span1_index": 0, "span1_text": "He", "span2_index": 9, "span2_text": "ran"}}  # fmt: skip


def without(row: dict, key: str) -> dict:
    return {k: v for k, v in row.items() if k != key}


BAD = [
    ("wic", '{"word": "ba', r"the line must be a JSON object, got '{\"word\": \"ba' \(Unterm"),
    ("wic", WIC | {"label": "maybe"}, r"label must be one of the 2 labels .* got 'maybe'"),
    ("wic", WIC | {"label": 1}, r"label must be one of the 2 labels .*, got 1\."),
    ("wic", WIC | {"label": None}, r"label must be one of the 2 labels .*, got None"),
    ("wic", without(WIC, "label"), r"the column 'label' must be there"),
    ("wic", WIC | {"idx": "x"}, r"idx must be a whole number, got 'x'"),
    ("wic", WIC | {"sentence1": "  "}, r"sentence1 must not be empty, got '  '"),
    ("wic", without(WIC, "end1"), r"the column 'end1' must be there"),
    ("wic", WIC | {"end1": 8.0}, r"end1 must be a whole number, got 8.0"),
    ("wic", WIC | {"end2": 99}, r"start2, end2 must be a span of sentence2 \(19 .* got 14, 99"),
    ("cb", CB | {"label": "entailmnt"}, r"label must be .* got 'entailmnt'. Did you mean entailment\?"),
    ("copa", COPA | {"choice2": None}, r"choice2 must be text, got None"),
    ("copa", COPA | {"premise": " "}, r"premise must not be empty, got ' '"),
    ("copa", COPA | {"label": 2}, r"label must be one of the 2 labels .*, got 2. Known: 0, 1"),
    ("multirc", {"idx": 0, "passage": {"text": "a"}}, r"the row must be one of multirc, got .*'questions'"),
    ("multirc", json.loads(json.dumps(MULTIRC).replace('"b"', '""')), r"question must not be empty, got ''"),
    ("record", {"idx": 0, "qas": []}, r"the row must be one of record, got .*'passage'"),
    ("record", RECORD | {"qas": [RECORD["qas"][0] | {"answers": []}]},
     r"label must be one of the 2 labels .*, got None"),
    ("record", RECORD | {"passage": {"text": "Per ran.", "entities": []}}, r".*no entity to choose from"),
    ("wsc", without(WSC, "target"), r"the row must be one of wsc, got .*'span1_index'"),
    ("wsc", WSC, r"the row must be one of wsc, got .*the text has 2 words, no word 9"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "message"), BAD)
def test_bad_row_names_file_line_and_value(name, row, message, tmp_path, write_jsonl):
    write_jsonl(tmp_path / FOLDERS[name] / "val.jsonl", [row])
    write_jsonl(tmp_path / FOLDERS[name] / "train.jsonl", ["", row])
    with pytest.raises(DataError, match=rf"/train.jsonl:2: {message}") as caught:
        read_official(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_an_id_twice_names_both_places(tmp_path, write_jsonl):
    for split in ("train", "val"):
        write_jsonl(tmp_path / "CB" / f"{split}.jsonl", [CB, CB | {"idx": 1}, CB])
    with pytest.raises(
        DataError, match=r"train.jsonl:3: idx must be unique, got '0' again \(first at .*:1\)"
    ):
        read_official("cb", tmp_path)


def test_only_train_and_validation_must_be_there(tmp_path, write_jsonl):
    with pytest.raises(DataError, match=r"CB/train.jsonl: the train split of cb must be a file there"):
        read_official("cb", tmp_path)
    for name in ("train", "val"):
        write_jsonl(tmp_path / "CB" / f"{name}.jsonl", [CB])
    assert set(read_official("cb", tmp_path)) == {"train", "validation"}
    write_jsonl(tmp_path / "CB" / "test.jsonl", [without(CB, "label")])
    (row,) = read_official("cb", tmp_path)["test"]
    assert (row.example_id, row.label) == ("test-0", -1)


def test_score_weighs_tasks_and_not_metrics():
    scores = {task: dict.fromkeys(names, 0.0) for task, names in superglue_metrics().items()}
    assert len(scores) == 8
    scores["cb"] = {"accuracy": 0.8, "macro_f1": 0.4, "rows": 56}
    scores["wic"] = {"accuracy": 1.0}
    scores["axb"] = {"matthews": 1.0}  # diagnostics do not count
    assert superglue_score(scores) == pytest.approx((0.6 + 1.0) / 8)
    del scores["cb"]["macro_f1"], scores["wsc"]
    with pytest.raises(DataError, match=r"must have its metrics, got no cb macro_f1, wsc accuracy"):
        superglue_score(scores)
