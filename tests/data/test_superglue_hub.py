"""SuperGLUE in the hub's layout: the same examples as from the official files."""

import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdcache.data.examples import read_examples
from kdcache.data.superglue import SUPERGLUE, hub
from kdcache.data.superglue.hub import HUB_ID, hub_layout
from kdcache.data.task import Example
from kdcache.data.taskfile import read_task_file
from kdcache.errors import DataError

FIXTURES = Path(__file__).parents[1] / "fixtures"
HUB = FIXTURES / "superglue_hub"


def read_official(name: str) -> dict[str, list[Example]]:
    return read_examples(name, read_task_file(SUPERGLUE[name]), FIXTURES / "superglue")[1]


def read_hub(name: str, place: Path | str = HUB) -> dict[str, list[Example]]:
    return read_examples(name, *hub_layout(name, read_task_file(SUPERGLUE[name]), str(place)))[1]


@pytest.mark.parametrize("name", SUPERGLUE)
def test_either_layout_gives_the_same_examples_ids_and_labels(name):
    assert read_hub(name) == read_official(name)


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
    with pytest.raises(
        DataError, match=r"parquet row 6: idx must be unique, got '4' again \(first at .* 5\)"
    ):
        read_hub("cb", hub_copy)
    rewrite(path, idx=list(range(6)), label=[0, 1, 2, -1, 0, 0])
    with pytest.raises(DataError, match=r"parquet row 4: label must be one of the 3 labels .*, got -1"):
        read_hub("cb", hub_copy)
    path.write_bytes(b"not Parquet")
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet: it must be a Parquet file, got: "):
        read_hub("cb", hub_copy)
    path.unlink()
    with pytest.raises(DataError, match=r"cb/train-\*.parquet: the train split of cb must be a file there"):
        read_hub("cb", hub_copy)


def test_hub_file_with_classes_in_another_order_is_refused(hub_copy):
    path = hub_copy / "cb" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    about = table.schema.metadata[b"huggingface"].replace(b'["entailment", "contra', b'["contra')
    about = about.replace(b'"neutral"]', b'"neutral", "entailment"]')
    pq.write_table(table.replace_schema_metadata({b"huggingface": about}), path)
    with pytest.raises(DataError, match=r"the labels must be entailment, .* got contradiction, neutral, ent"):
        read_hub("cb", hub_copy)


def test_several_files_of_a_split_are_read_in_order(hub_copy):
    path = hub_copy / "cb" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    path.unlink()
    for number, part in enumerate((table.slice(0, 2), table.slice(2))):
        pq.write_table(part, path.with_name(f"train-0000{number}-of-00002.parquet"))
    assert read_hub("cb", hub_copy) == read_hub("cb")


def test_hub_out_of_reach_is_one_line_within_ten_seconds(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(DataError) as caught:
        read_hub("wic", HUB_ID)
    assert time.perf_counter() - start < 10
    message = str(caught.value)
    assert message.startswith("aps/super_glue: the data set must be cached or the hub within reach, got")
    assert "\n" not in message


def test_hub_is_asked_for_the_pinned_revision_and_one_task(monkeypatch):
    asked = []

    def snapshot(repo, **options):
        asked.append((repo, options["revision"], options["allow_patterns"]))
        return str(HUB)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert read_hub("wic", HUB_ID) == read_official("wic")
    assert asked == [(HUB_ID, hub.HUB_REVISION, "wic/*.parquet")]
    with pytest.raises(DataError, match=r"it must be aps/super_glue or a folder .* got nyu/other"):
        read_hub("wic", "nyu/other")
