"""A new user's CSV: checked, then an inspected cache with one task file and one command."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import run
from six_tasks import write_powered

TASK_FILE = 'splits = {train = "train.csv", validation = "test.csv"}\ntext = "text"\nlabel = "category"\n'


@pytest.fixture
def csv_project(project):
    """A project with a task file of the user's own and its CSV files, not in params.yaml's tasks."""

    def make(task_file: str = TASK_FILE) -> Path:
        folder = project()
        write_powered(folder / "rows")
        (folder / "tasks").mkdir()
        (folder / "rows" / "banking77").rename(folder / "own")
        (folder / "own" / "mine.toml").write_text(task_file)
        return folder

    return make


def test_csv_becomes_an_inspected_cache_with_one_command(csv_project):
    folder = csv_project()
    code, out, _ = run("run", "--task", "own/mine.toml", "--set", "prepare.max_rows={train: 40}")
    assert code == 0
    task = json.loads((folder / "data" / "mine" / "task.json").read_text())
    assert task["labels"] == ["card_arrival", "exchange_rate", "lost_card", "top_up"]
    rows = {split: pq.read_table(folder / "cache" / "mine" / f"{split}.parquet").num_rows
            for split in ("train", "tune", "validation")}  # fmt: skip
    assert rows == {"train": 30, "tune": 10, "validation": 24}
    assert "cache/mine, format 1" in out
    assert "accuracy" in out
    record = json.loads((folder / "models" / "backbone" / "shrink.json").read_text())
    assert f"of the students' backbone {100 * record['probes']['mine']['cut']:.1f}" in out
    code, out, _ = run("distill", "--task", "own/mine.toml", "--arm", "head")
    assert code == 0
    told = out.strip().splitlines()[-1].removeprefix("Next: kdcache ")
    assert run(*told.split())[0] == 0, told


def test_to_stops_where_told(csv_project):
    folder = csv_project()
    assert run("run", "--task", "own/mine.toml", "--to", "prepare")[0] == 0
    assert (folder / "data" / "mine").is_dir()
    assert not (folder / "models").exists()


def test_own_task_of_the_project_goes_by_name(csv_project):
    folder = csv_project()
    (folder / "own").rename(folder / "tasks2")
    code, out, _ = run(
        "prepare", "--task", "mine", "--set", "paths.tasks=tasks2", "--set", "tasks=[mine, cb]"
    )
    assert (code, out.splitlines()[-1][:5]) == (0, "mine:")
    code, out, _ = run("tasks", "--set", "paths.tasks=tasks2", "--set", "tasks=[mine, cb]")
    assert code == 0
    assert "tasks2/mine.toml" in out
    assert "those of train" in out
    assert "entailment" in out
    assert out.splitlines()[-1] == "tasks in params.yaml: mine, cb"


def test_files_of_task_files_may_lie_elsewhere(csv_project):
    folder = csv_project()
    (folder / "own" / "mine.toml").rename(folder / "tasks" / "mine.toml")
    arguments = ["prepare", "--task", "tasks/mine.toml", "--set", "prepare.source=files"]
    code, _, error = run(*arguments, "--set", "prepare.path=own")
    assert (code, "dvc repro" in error) == (0, False)
    shutil.copy("own/train.csv", "elsewhere.csv")
    task = Path("tasks/mine.toml")
    task.write_text(task.read_text().replace("train.csv", "../elsewhere.csv"))
    code, _, error = run(*arguments, "--set", "prepare.path=own")
    assert (code, "../elsewhere.csv" in error) == (0, True), "dvc repro does not see it change"
    code, _, error = run("prepare", "--task", "cb", "--set", "prepare.source=files")
    assert code == 1
    assert error.strip() == (
        "prepare.source: it must be superglue or hub for a task without a task file, got files for "
        "cb. Write tasks/cb.toml, or change the source."
    )


TYPO = TASK_FILE.replace("label", "lable")
BAD = {  # what is changed → what the one line must say
    "unknown label": ({"test.csv": "text,category\nx,topup\n"},
                      "own/test.csv:2: category must be one of the 4 labels of train, got 'topup'. "
                      "Did you mean top_up?"),
    "missing column": ({"train.csv": "text,label\nx,a\n"},
                       "own/train.csv: the column 'category' must be there, got none of that name."),
    "empty text": ({"train.csv": "text,category\nx,a\n,b\n"},
                   "own/train.csv:3: text must not be empty, got ''"),
    "duplicate id": ({"mine.toml": TASK_FILE + 'id = "text"\n', "train.csv": "text,category\nx,a\nx,b\n"},
                     "own/train.csv:3: text must be unique, got 'x' again (first at own/train.csv:2)"),
    "null": ({"mine.toml": TASK_FILE.replace("train.csv", "t.jsonl"),
              "t.jsonl": '{"text": null, "category": "a"}\n{"text": "x", "category": "b"}\n'},
             "own/t.jsonl:1: text must be text, got None."),
    "NaN": ({"mine.toml": TASK_FILE.replace("train.csv", "t.jsonl"),
             "t.jsonl": '{"text": "x", "category": "b"}\n{"text": "y", "category": NaN}\n'},
            "own/t.jsonl:2: category must be a label (text, a whole number, true or false), got nan."),
    "wrong encoding": ({"train.csv": "text,category\ncafé,a\n".encode("latin-1")},
                       "own/train.csv:2: the text must be utf-8, got byte 0xe9."),
    "10 MB line": ({"train.csv": b"text,category\n" + b"x " * 5_000_000 + b",a\n"},
                   "own/train.csv:2: a line must be at most 1000000 characters, got more."),
    "label only in validation": ({"train.csv": "text,category\nx,a\ny,b\n",
                                  "test.csv": "text,category\nz,c\n"},
                                 "own/test.csv:2: category must be one of the 2 labels of train, got 'c'."),
    "typo in the task file": ({"mine.toml": TYPO}, "own/mine.toml.lable: the key must be a known parameter, "
                              "got 'lable'. Did you mean label?"),
}  # fmt: skip


@pytest.mark.parametrize("defect", BAD)
def test_bad_input_is_one_line_and_leaves_nothing_half_written(csv_project, defect):
    folder = csv_project()
    assert run("prepare", "--task", "own/mine.toml")[0] == 0
    before = {path.name: path.read_bytes() for path in (folder / "data" / "mine").iterdir()}
    files, message = BAD[defect]
    for name, content in files.items():
        (folder / "own" / name).write_bytes(content.encode() if isinstance(content, str) else content)
    for command in (["prepare", "--task"], ["run", "--task"], ["tasks", "check"]):
        code, _, error = run(*command, "own/mine.toml")
        assert code == 1
        assert error.startswith(message), error
        assert len(error.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in (folder / "data" / "mine").iterdir()} == before
    assert not (folder / "models").exists()


def test_check_shows_examples_with_tokens_balance_lengths_and_what_is_wrong(csv_project):
    folder = csv_project()
    train = (folder / "own" / "train.csv").read_text()
    (folder / "own" / "test.csv").write_text(train)
    code, out, _ = run("tasks", "check", "own/mine.toml")
    assert code == 0
    assert "mine: train 48 rows, validation 48 rows" in out
    assert "train-1: card_arrival" in out
    assert "[CLS] the bank" in out
    assert out.count(" tokens  [CLS] ") == 3
    assert "card_arrival" in out.split("train-3")[1]  # the table of labels
    assert "9-16" in out
    assert "█" in out
    assert "- 48 of 48 rows of validation (100.0%) have the text of a training row" in out
    assert not (folder / "data").exists()

    code, out, _ = run("tasks", "check", "own/mine.toml", "--set", "train_teacher.model=package:nope")
    assert code == 0
    assert "Tokens are not shown. package:nope: 'nope' must be an installed Python package" in out
    assert "train-1: card_arrival" in out


def test_check_knows_the_tasks_of_superglue_too(csv_project):
    csv_project()
    code, out, _ = run("tasks", "check", "cb")
    assert code == 0
    assert "text_pair" in out


def test_missing_task_file_says_so(csv_project):
    csv_project()
    code, _, error = run("run", "--task", "own/other.toml")
    assert code == 1
    assert error.startswith("own/other.toml: the task file must exist, got nothing there.")
