"""Rows of a data set on the hub; a folder in a layout that datasets reads stands in for the hub."""

import time
from pathlib import Path

import datasets
import pytest

from kdcache.data.hubrows import read_hub_rows
from kdcache.data.own import read_own
from kdcache.data.taskfile import Hub
from kdcache.errors import DataError

CARD = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train.parquet}
  - {split: dev, path: small/dev.parquet}
  - {split: blind, path: small/blind.parquet}
---
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"]),
         "more": datasets.Value("int64")}
    )  # fmt: skip
    for name, labels in (("train", [1, 0]), ("dev", [0, 1]), ("blind", [-1, -1])):
        rows = {"text": [f"{name} a", f"{name} b"], "label": labels, "more": [1, 2]}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(str(tmp_path / "set" / "small" / f"{name}.parquet"))
    (tmp_path / "set" / "README.md").write_text(CARD)
    return Hub(name=str(tmp_path / "set"), config="small", revision="main")


def test_class_labels_come_as_names_and_missing_ones_as_none(hub):
    rows = read_hub_rows(hub, "train", ["text"], optional=["label"])
    assert [row.values for row in rows] == [
        {"text": "train a", "label": "yes"},
        {"text": "train b", "label": "no"},
    ]
    assert rows[1].where == f"{hub.name} train row 2"
    assert [row.values["label"] for row in read_hub_rows(hub, "blind", ["text", "label"])] == [None, None]


def test_task_file_may_name_a_hub_set(hub, tmp_path: Path):
    (tmp_path / "mine.toml").write_text(
        'splits = {train = "train", validation = "dev", test = "blind"}\ntext = "text"\n'
        f'hub = {{name = "{hub.name}", config = "small", revision = "main"}}\nlabels = ["no", "yes"]\n'
    )
    _, splits = read_own(tmp_path / "mine.toml", tmp_path)
    labels = {split: [e.label for e in rows] for split, rows in splits.items()}
    assert labels == {"train": [1, 0], "validation": [0, 1], "test": [-1, -1]}


def test_what_is_not_there_is_one_line(hub):
    with pytest.raises(DataError, match=r"set dev: the column 'txt' must be there, .* Did you mean text\?"):
        read_hub_rows(hub, "dev", ["txt"])
    for wrong, split in ((hub, "nope"), (Hub(hub.name, "main", "big"), "train")):
        with pytest.raises(DataError, match=r"it must be a split of a data set within reach, got ") as caught:
            read_hub_rows(wrong, split, ["text"])
        assert "\n" not in str(caught.value)


def test_hub_out_of_reach_fails_at_once_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"^nobody/no-such-set train: it must be a split of a data set") as e:
        read_hub_rows(Hub("nobody/no-such-set", "main"), "train", ["text"])
    assert "\n" not in str(e.value)
    assert time.perf_counter() - start < 10
