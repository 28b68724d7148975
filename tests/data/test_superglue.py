"""All of SuperGLUE: either layout gives the same examples, and what the model reads is pinned."""

import json
import shutil
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdcache.data import hub
from kdcache.data.hub import HUB_ID, read_hub
from kdcache.data.metrics import METRICS, SUPERGLUE_METRICS
from kdcache.data.official import read_official
from kdcache.data.splits import METRIC_COLUMNS, build_table, read_split, sequences, write_split
from kdcache.data.superglue import SUPERGLUE
from kdcache.errors import DataError

FIXTURES = Path(__file__).parents[1] / "fixtures"
OFFICIAL, HUB = FIXTURES / "superglue", FIXTURES / "superglue_hub"
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


@pytest.mark.parametrize("name", SUPERGLUE)
def test_either_layout_gives_the_same_examples_ids_and_labels(name):
    official, from_hub = read_official(OFFICIAL, SUPERGLUE[name]), read_hub(str(HUB), SUPERGLUE[name])
    assert from_hub == official
    assert {split: len(rows) for split, rows in official.items()} == FIXTURE_ROWS[name]
    labels = {split: {row.label for row in rows} for split, rows in official.items()}
    assert labels.pop("test", {-1}) == {-1}
    assert all(min(found) >= 0 for found in labels.values())


@pytest.mark.parametrize("name", SUPERGLUE)
def test_rendered_examples_are_pinned(name):
    expected = json.loads((FIXTURES / "rendered.json").read_text(encoding="utf-8"))[name]
    rows = {row.example_id: row for part in read_official(OFFICIAL, SUPERGLUE[name]).values() for row in part}
    assert len(expected) == 5
    for example_id, label, text, *seconds in expected:
        row = rows[example_id]
        assert (row.label, row.text, list(row.choices or (row.text_pair,))) == (label, text, seconds)


@pytest.mark.parametrize("name", SUPERGLUE)
def test_real_superglue_has_its_rows_and_labels(name):
    if not SHARED.is_dir():
        pytest.skip("the real SuperGLUE files are not beside this project")
    splits = read_official(SHARED, SUPERGLUE[name])
    assert {split: dict(Counter(row.label for row in rows)) for split, rows in splits.items()} == REAL[name]


def test_units_are_questions_queries_and_gender_pairs():
    for name, split, sizes in (
        ("multirc", "train", [2, 3, 2, 3]),
        ("record", "train", [6, 6, 3]),
        ("rte", "axg", [2, 2]),
    ):
        rows = read_official(OFFICIAL, SUPERGLUE[name])[split]
        assert list(Counter(row.unit for row in rows).values()) == sizes
    first, *_ = read_official(OFFICIAL, SUPERGLUE["record"])["train"]
    assert (first.candidate, first.answers) == ("Brandt", ("Per Lie",))


def test_gender_pairs_of_the_real_file_differ_in_one_word():
    if not SHARED.is_dir():
        pytest.skip("the real SuperGLUE files are not beside this project")
    rows = read_official(SHARED, SUPERGLUE["rte"])["axg"]
    pairs: dict[str, list] = {}
    for row in rows:
        pairs.setdefault(row.unit, []).append(row)
    for one, other in pairs.values():
        assert (one.text_pair, one.label) == (other.text_pair, other.label)
        words = zip(one.text.split(), other.text.split(), strict=True)
        assert 0 < sum(a != b for a, b in words) <= 2


@pytest.mark.parametrize("name", SUPERGLUE)
def test_prepared_split_gives_the_sequences_back(name, tmp_path):
    source = SUPERGLUE[name]
    for split, rows in read_official(OFFICIAL, source).items():
        write_split(build_table(rows, source.task), tmp_path / f"{split}.parquet")
        table = read_split(tmp_path, split, source.task)
        texts, seconds = sequences(table, source.task)
        n = source.task.num_choices
        assert len(texts) == len(seconds) == n * len(rows)
        for i, row in enumerate(rows):
            assert texts[n * i : n * (i + 1)] == [row.text] * n
            assert tuple(seconds[n * i : n * (i + 1)]) == (row.choices or (row.text_pair,))
        assert len({*table["content_hash"].to_pylist()}) == len(
            {(row.text, row.text_pair, row.choices) for row in rows}
        )
        assert set(table.schema.names) & set(METRIC_COLUMNS) == set(source.task.columns)


def test_tables_of_tasks_and_metrics_agree():
    assert {name: source.task.metrics for name, source in SUPERGLUE.items()} == SUPERGLUE_METRICS
    for source in SUPERGLUE.values():
        for metrics in (source.task.metrics, *source.task.diagnostics.values()):
            assert set(metrics) <= set(METRICS)
        assert {extra.split for extra in source.diagnostics} == set(source.task.diagnostics)


def test_span_is_the_occurrence_nearest_to_its_index(tmp_path, write_jsonl):
    text = "He saw him , and it was him who ran to him ."
    for index, marked in ((1, "He saw *him* , and it was him"), (7, "was *him* who"), (11, "to *him* .")):
        target = {"span1_index": index, "span1_text": "him", "span2_index": 0, "span2_text": "He"}
        line = {"idx": 0, "text": text, "label": True, "target": target}
        for split in ("train", "val"):
            write_jsonl(tmp_path / "WSC" / f"{split}.jsonl", [line])
        (row,) = read_official(tmp_path, SUPERGLUE["wsc"])["train"]
        assert marked in row.text.replace("#", "")
        assert row.text.startswith("#He# ")


def test_a_passage_is_held_once_however_many_candidates_it_has():
    rows = read_official(OFFICIAL, SUPERGLUE["record"])["train"]
    by_unit = [row for row in rows if row.unit == rows[0].unit]
    assert len(by_unit) > 1
    assert all(row.text is by_unit[0].text for row in by_unit)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("multirc", {"idx": 0, "passage": {"text": "a"}}, r"nested as in the official MultiRC.*'questions'"),
        ("record", {"idx": 0, "qas": []}, r"nested as in the official ReCoRD.*'passage'"),
        ("wsc", {"idx": 0, "text": "a b", "label": True}, r"nested as in the official WSC.*'target'"),
        (
            "wsc",
            {"idx": 0, "text": "He ran.", "label": True, "target": {
                "span1_index": 0, "span1_text": "He", "span2_index": 9, "span2_text": "ran"}},
            r"the row must be one of wsc, got .*the text has 2 words, no word 9",
        ),
        (
            "record",
            {"idx": 0, "passage": {"text": "Per ran.", "entities": [{"start": 0, "end": 2}]},
             "qas": [{"idx": 1, "query": "@placeholder ran.", "answers": []}]},
            r"the answer must be there in train, got none",
        ),
        (
            "record",
            {"idx": 0, "passage": {"text": "Per ran.", "entities": []},
             "qas": [{"idx": 1, "query": "@placeholder ran.", "answers": [{"text": "Per"}]}]},
            r"the row must be one of record, got .*no entity to choose from",
        ),
        ("copa", {"idx": 0, "premise": "a", "choice1": "b", "question": "cause", "label": 0},
         r"choice2 must be text, got None"),
        ("copa", {"idx": 0, "premise": "a", "choice1": "b", "choice2": "c", "question": "cause", "label": 2},
         r"label must be one of the 2 labels of copa, got 2. Known: choice1, choice2."),
    ],
)  # fmt: skip
def test_bad_nested_line_names_file_line_and_field(name, line, message, tmp_path, write_jsonl):
    write_jsonl(tmp_path / SUPERGLUE[name].folder / "train.jsonl", [line])
    with pytest.raises(DataError, match=rf"train.jsonl:1: .*{message}") as caught:
        read_official(tmp_path, SUPERGLUE[name])
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub_copy(tmp_path):
    shutil.copytree(HUB / "cb", tmp_path / "cb")
    return tmp_path


def rewrite(path: Path, **columns) -> None:
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, path)


def test_hub_folder_without_a_split_or_with_bad_rows_is_refused(hub_copy):
    path = hub_copy / "cb" / "train-00000-of-00001.parquet"
    rewrite(path, idx=[0, 1, 2, 3, 4, 4])
    with pytest.raises(DataError, match=r"parquet:6: idx must be unique, got 4 again \(first at .*:5\)"):
        read_hub(str(hub_copy), SUPERGLUE["cb"])
    rewrite(path, idx=list(range(6)), label=[0, 1, 2, -1, 0, 0])
    with pytest.raises(DataError, match=r"parquet:4: label must be a class of cb, 0 to 2, got -1"):
        read_hub(str(hub_copy), SUPERGLUE["cb"])
    path.write_bytes(b"not Parquet")
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet: it must be a Parquet file, got: "):
        read_hub(str(hub_copy), SUPERGLUE["cb"])
    path.unlink()
    with pytest.raises(DataError, match=r"the train split of cb must be a file cb/train-\*.parquet there"):
        read_hub(str(hub_copy), SUPERGLUE["cb"])


def test_hub_file_with_classes_in_another_order_is_refused(hub_copy):
    path = hub_copy / "cb" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    about = table.schema.metadata[b"huggingface"].replace(b'["entailment", "contra', b'["contra')
    about = about.replace(b'"neutral"]', b'"neutral", "entailment"]')
    pq.write_table(table.replace_schema_metadata({b"huggingface": about}), path)
    with pytest.raises(DataError, match=r"the labels must be entailment, .* got contradiction, neutral, ent"):
        read_hub(str(hub_copy), SUPERGLUE["cb"])


def test_hub_out_of_reach_is_one_line_within_ten_seconds(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(DataError) as caught:
        read_hub(HUB_ID, SUPERGLUE["wic"])
    assert time.perf_counter() - start < 10
    message = str(caught.value)
    assert message.startswith("aps/super_glue: the data set must be cached or the hub within reach, got")
    assert message.endswith("Name a folder with prepare.path, or go online once.")
    assert "\n" not in message


def test_hub_is_asked_for_the_pinned_revision_and_one_task(monkeypatch):
    asked = {}

    def snapshot(repo, **options):
        asked[repo] = options
        return str(HUB)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert read_hub(HUB_ID, SUPERGLUE["wic"]) == read_official(OFFICIAL, SUPERGLUE["wic"])
    assert asked[HUB_ID]["revision"] == hub.HUB_REVISION
    assert asked[HUB_ID]["allow_patterns"] == "wic/*.parquet"
    with pytest.raises(DataError, match=r"it must be aps/super_glue or a folder .* got nyu/other. Own data"):
        read_hub("nyu/other", SUPERGLUE["wic"])
