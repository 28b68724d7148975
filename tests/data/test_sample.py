"""The shipped corpus is what its README says."""

import json
from collections import Counter

import pytest
from conftest import ROOT, SAMPLE
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from kdcache.data.examples import read_examples
from kdcache.data.superglue import SUPERGLUE
from kdcache.data.taskfile import read_task_file

CALLS = ROOT / "tasks" / "calls.toml"


def examples(name: str) -> dict:
    path = SUPERGLUE.get(name, CALLS)
    return read_examples(name, read_task_file(path), SAMPLE if name in SUPERGLUE else CALLS.parent)[1]


def raw_rows(folder: str, split: str) -> list[dict]:
    text = (SAMPLE / folder / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def sentences(rows: list[dict]) -> set[str]:
    """The texts of rows of WiC or CB."""
    return {value for row in rows for key, value in row.items() if key[:4] in ("sent", "prem", "hypo")}


@pytest.mark.parametrize("name", ["wic", "cb"])
def test_bag_of_words_stays_near_the_majority_class(name):
    splits = examples(name)
    texts = {split: [f"{row.text} {row.text_pair}" for row in rows] for split, rows in splits.items()}
    labels = {split: [row.label for row in rows] for split, rows in splits.items()}
    words = CountVectorizer(binary=True).fit(texts["train"])
    model = LogisticRegression(max_iter=1000).fit(words.transform(texts["train"]), labels["train"])
    accuracy = model.score(words.transform(texts["validation"]), labels["validation"])
    majority = max(Counter(labels["validation"]).values()) / len(labels["validation"])
    assert abs(accuracy - majority) <= 0.05


def test_bag_of_words_of_premise_and_choice_stays_near_a_coin():
    splits = examples("copa")
    texts, right = {}, {}
    for split, rows in splits.items():
        texts[split] = [f"{row.text} {choice}" for row in rows for choice in row.choices]
        right[split] = [row.label == k for row in rows for k in (0, 1)]
    words = CountVectorizer(binary=True).fit(texts["train"])
    model = LogisticRegression(max_iter=1000).fit(words.transform(texts["train"]), right["train"])
    margins = model.decision_function(words.transform(texts["validation"])).reshape(-1, 2)
    accuracy = (margins.argmax(axis=1) == [row.label for row in splits["validation"]]).mean()
    assert abs(accuracy - 0.5) <= 0.05


def test_copa_is_balanced_and_its_files_share_no_sentence():
    rows = {split: raw_rows("COPA", split) for split in ("train", "val")}
    assert {split: len(part) for split, part in rows.items()} == {"train": 160, "val": 100}
    for part in rows.values():
        assert len(set(Counter((row["question"], row["label"]) for row in part).values())) == 1
        right = Counter(row[f"choice{row['label'] + 1}"] for row in part)
        wrong = Counter(row[f"choice{2 - row['label']}"] for row in part)
        assert right == wrong  # every choice stands once as the right and once as the wrong one
        assert set(right.values()) == {1}
    premises = [row["premise"] for part in rows.values() for row in part]
    assert len(set(premises)) == len(premises)
    choices = {split: {row["choice1"] for row in part} for split, part in rows.items()}
    assert not choices["train"] & choices["val"]


def test_wic_has_its_words_senses_and_sentences():
    rows = {split: raw_rows("WiC", split) for split in ("train", "unlabelled", "val")}
    words = {split: {row["word"] for row in part} for split, part in rows.items()}
    assert {split: len(part) for split, part in words.items()} == {"train": 44, "unlabelled": 104, "val": 40}
    assert words["train"] < words["unlabelled"]
    assert not words["unlabelled"] & words["val"]
    assert len(sentences(rows["val"])) == 40 * 2 * 4
    assert not sentences(rows["unlabelled"]) & sentences(rows["val"])
    assert set(Counter(row["word"] for row in rows["unlabelled"]).values()) == {3}
    for split in ("train", "val"):  # every sentence is in as many true as false pairs
        balance = Counter()
        for row in rows[split]:
            for i in (1, 2):
                balance[row[f"sentence{i}"]] += 1 if row["label"] else -1
        assert set(balance.values()) == {0}


def test_cb_is_balanced_over_each_premise():
    rows = {split: raw_rows("CB", split) for split in ("train", "val")}
    assert not sentences(rows["train"] + raw_rows("CB", "unlabelled")) & sentences(rows["val"])
    for part in rows.values():
        labels: dict[str, list[str]] = {}
        for row in part:
            labels.setdefault(row["premise"], []).append(row["label"])
        assert all(sorted(v) == ["contradiction", "entailment", "neutral"] for v in labels.values())


@pytest.mark.parametrize(
    ("folder", "keys"), [("WiC", ("sentence1", "sentence2")), ("CB", ("premise", "hypothesis"))]
)
def test_rows_without_a_label_are_no_labelled_rows(folder, keys):
    pairs = {
        split: {frozenset(row[key] for key in keys) for row in raw_rows(folder, split)}
        for split in ("train", "unlabelled", "val")
    }
    assert not pairs["unlabelled"] & (pairs["train"] | pairs["val"])
    assert not any("label" in row for row in raw_rows(folder, "unlabelled"))


def test_calls_have_few_labels_and_share_no_frame_across_splits():
    rows = {split: raw_rows("Calls", split) for split in ("train", "tune", "unlabelled", "val")}
    for split, per_office in (("train", 8), ("tune", 8), ("val", 30)):
        assert set(Counter(row["office"] for row in rows[split]).values()) == {per_office}
    assert len({row["office"] for row in rows["val"]}) == 10
    assert len(rows["unlabelled"]) == 1000
    assert not any("office" in row for row in rows["unlabelled"])
    frames = {split: {row["frame"] for row in part} for split, part in rows.items()}
    texts = [row["text"] for part in rows.values() for row in part]
    assert len(set(texts)) == len(texts)
    assert sum(map(len, frames.values())) == len(set().union(*frames.values()))
    assert len(frames["val"]) == len(rows["val"])  # each row is a draw of its own
    assert set(examples("calls")) == {"train", "tune", "validation", "unlabelled"}
