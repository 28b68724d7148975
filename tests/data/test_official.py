"""Rows of the official layout: every defect names file, line and value."""

from pathlib import Path

import pytest

from kdcache.data.find import find_source
from kdcache.data.official import read_official
from kdcache.errors import DataError, ParamsError

WIC_ROW = {
    "word": "bank", "sentence1": "The bank lent us money.", "sentence2": "We sat on the bank.",
    "idx": 0, "label": False, "start1": 4, "end1": 8, "start2": 14, "end2": 18,
}  # fmt: skip
CB_ROW = {"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment", "idx": 0}


@pytest.fixture
def wic_folder(tmp_path: Path, write_jsonl):
    def make(rows: list) -> Path:
        write_jsonl(tmp_path / "WiC" / "train.jsonl", rows)
        write_jsonl(tmp_path / "WiC" / "val.jsonl", [WIC_ROW])
        return tmp_path

    return make


def test_row_is_rendered_with_marked_spans(wic_folder):
    splits = read_official(wic_folder([WIC_ROW]), find_source("wic"))
    (row,) = splits["train"]
    assert (row.example_id, row.label, row.group) == ("train-0", 0, "bank")
    assert row.text == "The *bank* lent us money."
    assert row.text_pair == "We sat on the *bank*."


def test_test_split_is_optional_and_unlabelled(tmp_path: Path, write_jsonl):
    for name in ("train", "val"):
        write_jsonl(tmp_path / "CB" / f"{name}.jsonl", [CB_ROW])
    assert set(read_official(tmp_path, find_source("cb"))) == {"train", "validation"}
    unlabelled = {key: value for key, value in CB_ROW.items() if key != "label"}
    write_jsonl(tmp_path / "CB" / "test.jsonl", [unlabelled])
    (row,) = read_official(tmp_path, find_source("cb"))["test"]
    assert (row.example_id, row.label) == ("test-0", -1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"word": "ba', r"train.jsonl:2: the line must be a JSON object, got '{\"word\": \"ba' \(Unterm"),
        ("[1]", r"train.jsonl:2: the line must be a JSON object, got '\[1\]'"),
        (
            {**WIC_ROW, "idx": 1, "label": "maybe"},
            r":2: label must be one of .* of wic, got 'maybe'",
        ),
        ({**WIC_ROW, "idx": 1, "label": 1}, r":2: label must be one of the 2 labels of wic, got 1"),
        ({k: v for k, v in WIC_ROW.items() if k != "label"}, r":2: label must be one of .* got None"),
        (WIC_ROW, r":2: idx must be unique, got 0 again \(first at .*train.jsonl:1\)"),
        ({**WIC_ROW, "idx": "1"}, r":2: idx must be a whole number, got '1'"),
        ({**WIC_ROW, "idx": 1, "sentence1": "  "}, r":2: sentence1 must not be empty, got '  '"),
        ({k: v for k, v in WIC_ROW.items() if k != "end1"}, r":2: end1 must be a whole number, got None"),
        (
            {**WIC_ROW, "idx": 1, "end2": 99},
            r":2: start2, end2 must be a span of .* \(19 .* got 14, 99",
        ),
    ],
)
def test_bad_row_names_file_line_and_value(wic_folder, row, message):
    folder = wic_folder([WIC_ROW, row])
    with pytest.raises(DataError, match=message) as caught:
        read_official(folder, find_source("wic"))
    assert "\n" not in str(caught.value)


def test_label_typo_suggests_the_nearest(tmp_path: Path, write_jsonl):
    write_jsonl(tmp_path / "CB" / "train.jsonl", [{**CB_ROW, "label": "entailmnt"}])
    with pytest.raises(DataError, match=r"got 'entailmnt'. Did you mean entailment\?"):
        read_official(tmp_path, find_source("cb"))


def test_other_encoding_is_named(wic_folder):
    folder = wic_folder([WIC_ROW])
    (folder / "WiC" / "train.jsonl").write_bytes('{"word": "café"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match="the text must be UTF-8, got byte 0xe9"):
        read_official(folder, find_source("wic"))


def test_missing_and_empty_files_are_errors(tmp_path: Path, write_jsonl):
    with pytest.raises(DataError, match=r"WiC/train.jsonl: the train split of wic must be a file there"):
        read_official(tmp_path, find_source("wic"))
    write_jsonl(tmp_path / "WiC" / "train.jsonl", [])
    with pytest.raises(DataError, match="the file must hold at least one row, got none"):
        read_official(tmp_path, find_source("wic"))


def test_unknown_task_names_the_nearest():
    with pytest.raises(ParamsError, match=r"got 'wik'. Did you mean wic\?"):
        find_source("wik")


@pytest.mark.parametrize(("name", "counts"), [("wic", (5428, 638, 1400)), ("cb", (250, 56, 250))])
def test_real_superglue_reads_whole(name, counts):
    shared = Path(__file__).parents[2].parent / "shared" / "data" / "superglue"
    if not shared.is_dir():
        pytest.skip("the real SuperGLUE files are not beside this project")
    splits = read_official(shared, find_source(name))
    assert tuple(len(splits[split]) for split in ("train", "validation", "test")) == counts
    if name == "wic":  # the marked span is the target word in some form
        marked = [(row.text.split("*")[1].lower(), row.group) for row in splits["train"]]
        assert sum(form[:2] == word[:2] for form, word in marked) > 0.95 * len(marked)
