"""``kdcache init``: a project from the template, with the sample tasks or a task guessed from a table."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, fails, run

from kdcache.data.taskfile import read_task_file
from kdcache.params import read_params

REVIEWS = "id,review,stars\n" + "".join(f"{i},the room was number {i},{1 + i % 3}\n" for i in range(30))
NO_TUNE = ("--set", "prepare.tune_fraction=0")  # the tables are small


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """An empty folder outside git, with a space and an umlaut in its path."""
    folder = tmp_path / "mein Büro"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def guessed(folder, name, content, *arguments):
    """Start a project from a table; return its task file, parsed, and what was printed."""
    table = folder / name
    if isinstance(content, pa.Table):
        pq.write_table(content, table)
    else:
        table.write_text(content, encoding="utf-8")
    code, out, error = run("init", "project", "--table", name, *arguments)
    assert code == 0, error
    (path,) = (folder / "project" / "tasks").glob("*.toml")  # the sample's task file is not there
    return read_task_file(path), out


def test_blank_columns_and_lone_carriage_returns_of_spreadsheets_are_no_trouble(empty_folder, monkeypatch):
    rows = "".join(f'"the room\rwas number {i}",{("a", "b", "")[i % 3]},\n' for i in range(60))
    _, told = guessed(empty_folder, "r.csv", f"text,label,\n{rows}")
    assert "label" in told
    monkeypatch.chdir("project")
    code, told, error = run("prepare", *NO_TUNE)
    assert code == 0, error
    assert "unlabelled 20 rows" in told


def test_project_is_the_repositorys_own_pipeline(empty_folder):
    assert run("init")[0] == 0
    for name in ("dvc.yaml", "params.yaml", ".dvc/plots/arms.json"):
        assert (empty_folder / name).read_bytes() == (ROOT / name).read_bytes()
    scripts = {path.name for path in (ROOT / "pipeline").glob("*.py")}
    assert {path.name for path in (empty_folder / "pipeline").iterdir()} == scripts
    assert (empty_folder / "sample" / "CB" / "val.jsonl").is_file()
    ignored = set((ROOT / ".gitignore").read_text().splitlines())
    assert set((empty_folder / ".gitignore").read_text().splitlines()) <= ignored


def test_a_new_project_prepares_its_sample_at_once():
    assert run("init")[0] == 0
    for task in read_params("params.yaml")["tasks"]:
        code, out, error = run("prepare", "--task", task)
        assert code == 0, error
        assert "unlabelled" in out


def test_no_scm_outside_git_only(empty_folder):
    assert run("init", "outside")[0] == 0
    assert "no_scm = true" in (empty_folder / "outside" / ".dvc" / "config").read_text()
    subprocess.run(["git", "init", "-q", "repository"], check=True)
    assert run("init", "repository/project")[0] == 0
    assert "no_scm" not in (empty_folder / "repository" / "project" / ".dvc" / "config").read_text()


@pytest.mark.parametrize(
    "name", ["params.yaml", "dvc.yaml", "pipeline/report.py", ".dvc/config", "sample/CB/val.jsonl"]
)
def test_nothing_is_overwritten_and_nothing_written_beside(empty_folder, name):
    path = empty_folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    assert name in fails("init")
    assert files_below(empty_folder) == {name}
    assert path.read_text() == "mine"


def test_ignore_files_are_extended(empty_folder):
    (empty_folder / ".gitignore").write_text("/data/\nmine")
    assert run("init")[0] == 0
    lines = (empty_folder / ".gitignore").read_text().splitlines()
    assert lines[:2] == ["/data/", "mine"]
    assert lines.count("/data/") == 1
    assert "/models/" in lines


def test_own_table_becomes_the_only_task(empty_folder):
    task, out = guessed(empty_folder, "reviews.csv", REVIEWS)
    assert (task.text, task.text_pair, task.label, task.id) == ("review", None, "stars", "id")
    params = read_params("project/params.yaml")
    shipped = read_params(ROOT / "params.yaml")
    assert params["tasks"] == params["fine_tune"] == ["reviews"]
    assert params["prepare"] == {**shipped["prepare"], "source": "files", "path": "tasks"}
    own = dict.fromkeys(("tasks", "fine_tune", "prepare"))
    assert {**params, **own} == {**shipped, **own}
    comments = [line for line in (ROOT / "params.yaml").read_text().splitlines() if line.startswith("#")]
    assert set(comments) <= set((empty_folder / "project" / "params.yaml").read_text().splitlines())
    assert not (empty_folder / "project" / "sample").exists()
    assert 'label = "stars"' in out
    assert "the room was number 2" in out
    for command in (
        "cd project",
        "kdcache tasks check reviews",
        "kdcache run",
        "dvc repro",
    ):
        assert command in out


def test_guessed_task_prepares_at_once(empty_folder, monkeypatch):
    guessed(empty_folder, "reviews.csv", REVIEWS)
    monkeypatch.chdir("project")
    code, out, error = run("prepare")
    assert code == 0, error
    assert json.loads(Path("data/reviews/task.json").read_text())["labels"] == ["1", "2", "3"]
    assert "validation" in out


def pairs(first="premise", second="hypothesis"):
    rows = [
        {"url": f"https://a.example/{i}", first: f"It rains in place number {i}, and has for weeks on end.",
         second: f"It is dry in {i}.", "Label": ["yes", "no"][i % 2], "lang": "en"}
        for i in range(20)
    ]  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)


TABLES = {  # content, then what is guessed
    "pair.jsonl": (pairs(), {"text": "premise", "text_pair": "hypothesis", "label": "Label"}),
    "shorter-first.jsonl": (
        pairs("zzz", "aaa"),
        {"text": "zzz", "text_pair": "aaa", "label": "Label"},
    ),
    "named.tsv": (  # two columns have few values; one is called category
        "flag\tcategory\tbody\n" + "".join(f"{i % 2}\tc{i % 4}\tsome text {i}\n" for i in range(20)),
        {"text": "body", "label": "category"},
    ),
    "unnamed.csv": (
        "when,what,kind\n"
        + "".join(f"2026-01-{i:02} 10:00,a sentence about {i},k{i % 3}\n" for i in range(1, 20)),
        {"text": "what", "text_pair": None, "label": "kind"},
    ),
    "semicolon.csv": (
        "text;label\n" + "".join(f"one, two or three {i};{'ab'[i % 2]}\n" for i in range(10)),
        {"text": "text", "label": "label"},
    ),
    "pandas.csv": (  # its index column has no name
        ",text,label\n" + "".join(f"{i},some text {i},{i % 2}.0\n" for i in range(10)),
        {"text": "text", "label": "label", "id": None},
    ),
    "groups.csv": (
        "doc_id,text,label\n" + "".join(f"d{i % 25},some text {i},{i % 2}\n" for i in range(50)),
        {"text": "text", "label": "label", "group": "doc_id"},
    ),
    "numbers.parquet": (
        pa.table({"text": [f"some text {i}" for i in range(10)], "price": [i / 3 for i in range(10)],
                  "target": [i % 2 for i in range(10)]}),
        {"text": "text", "label": "target"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_columns_are_guessed(empty_folder, monkeypatch, name):
    content, expected = TABLES[name]
    task, _ = guessed(empty_folder, name, content)
    assert {key: getattr(task, key) for key in expected} == expected
    monkeypatch.chdir("project")
    code, _, error = run("prepare", *NO_TUNE)
    assert code == 0, error


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_rows_without_a_label_become_the_unlabelled_split(empty_folder, monkeypatch, ending):
    rows = [{"text": f"a text, number {i}", "label": "ab"[i % 2] if i < 16 else None} for i in range(20)]
    if ending == "parquet":
        content = pa.Table.from_pylist(rows)
    elif ending == "jsonl":
        content = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        mark = "\t" if ending == "tsv" else ","
        content = f"text{mark}label\n" + "".join(f'"{r["text"]}"{mark}{r["label"] or ""}\n' for r in rows)
    guessed(empty_folder, f"some.{ending}", content)
    monkeypatch.chdir("project")
    code, out, error = run("prepare", *NO_TUNE)
    assert code == 0, error
    assert "unlabelled 4 rows" in out
    texts = pq.read_table("data/some/unlabelled.parquet")["text"].to_pylist()
    assert texts == [row["text"] for row in rows[16:]]


def test_whole_numbers_with_gaps_as_pandas_writes_them_are_labels(empty_folder, monkeypatch):
    """NaN makes floats of the column: 0.0 and 1.0 are the labels 0 and 1."""
    rows = pa.table({
        "text": [f"a text, number {i}" for i in range(20)],
        "label": pa.array([float(i % 2) if i < 16 else float("nan") for i in range(20)]),
    })  # fmt: skip
    guessed(empty_folder, "some.parquet", rows)
    monkeypatch.chdir("project")
    code, out, error = run("prepare", *NO_TUNE)
    assert code == 0, error
    assert "unlabelled 4 rows" in out
    assert json.loads(Path("data/some/task.json").read_text())["labels"] == ["0", "1"]


@pytest.mark.parametrize(
    ("file", "name"),
    [("Ärger im Büro (2).csv", "arger-im-buro-2"), ("2026.csv", "2026"), ("null.csv", "null")],
)
def test_task_is_named_after_the_file(empty_folder, monkeypatch, file, name):
    guessed(empty_folder, file, REVIEWS)
    assert yaml.safe_load((empty_folder / "project" / "params.yaml").read_text())["tasks"] == [name]
    monkeypatch.chdir("project")
    assert run("prepare")[0] == 0


def test_a_task_is_not_called_as_a_folder_beside_those_of_tasks(empty_folder, monkeypatch):
    rows = "".join(f"the room was number {i},{'ab'[i % 2]}\n" for i in range(40))
    Path("reports.csv").write_text(f"text,label\n{rows}")
    assert "reports" in fails("init", "project", "--table", "reports.csv")
    assert not Path("project").exists()
    assert run("init", "project")[0] == 0
    monkeypatch.chdir("project")
    for command in ("prepare", "distill"):
        assert "cannot be called metrics" in fails(command, "--set", "tasks=[metrics]")


def test_table_may_lie_in_its_place_already(empty_folder):
    (empty_folder / "tasks").mkdir()
    (empty_folder / "tasks" / "reviews.csv").write_text(REVIEWS)
    assert run("init", "--table", "tasks/reviews.csv")[0] == 0
    assert (empty_folder / "tasks" / "reviews.csv").read_text() == REVIEWS


BAD = {  # name of the file → content, and what the line must tell
    "no_header.csv": ("the room was fine,good\nit was not,bad\nit was,good\nwell it was,good\n", ["header"]),
    "number_as_header.csv": ("5,good\n3,bad\n", ["header", "'5'"]),
    "sentence_as_header.csv": ("it was as good as it gets in here,good\nno,bad\n", ["header"]),
    "empty.csv": ("", ["row"]),
    "only_header.csv": ("text,label\n", ["row"]),
    "unique.csv": (
        "text,label\n" + "".join(f"a text,l{i}\n" for i in range(9)),
        ["'label'", "9 different"],
    ),
    "one_label.csv": ("text,label\na b,x\nc d,x\n", ["'label'", "'x'"]),
    "regression.csv": ("text,label\na b,0.5\nc d,0.5\ne f,1.5\ne f,1.5\n", ["'label'", "decimal"]),
    "braces.csv": ("text{x},label\na b,x\nc d,y\ne f,x\ng h,y\n", ["'text{x}'", "Rename"]),
    "no_text.csv": ("n,label\n1,x\n2,y\n3,x\n4,y\n", ["text"]),
    "评论.csv": (REVIEWS, ["Rename"]),
    "cb.csv": (REVIEWS, ["cb", "Rename"]),
    "table.xlsx": (REVIEWS, [".csv", ".parquet"]),
    "broken.parquet": (REVIEWS, ["Parquet"]),
    "broken.jsonl": ('{"text": 1\n', ["broken.jsonl:1"]),
    "ragged.csv": ("text,label\na,b,c\n", ["ragged.csv:2"]),
    "latin.csv": ("text,label\ncafé au lait,x\n".encode("latin-1"), ["latin.csv:2"]),
    "missing.csv": (None, ["missing.csv"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_table_is_one_line_and_nothing_is_written(empty_folder, name):
    content, told = BAD[name]
    if content is not None:
        (empty_folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    line = fails("init", "project", "--table", name)
    for part in told:
        assert part in line
    assert not (empty_folder / "project").exists()


def test_a_larger_teacher_brings_the_settings_of_the_study(empty_folder):
    guessed(empty_folder, "reviews.csv", REVIEWS, "--teacher", "some/model")
    params, shipped = read_params("project/params.yaml"), read_params(ROOT / "params.yaml")
    study = read_params(ROOT / "studies" / "few_labels" / "params.yaml")
    assert params["train_teacher"]["model"] == "some/model"
    assert params["distill"]["arms"].keys() == shipped["distill"]["arms"].keys()
    for arm in ("kl", "kl+gram"):  # the study has an arm for each rate, and a teacher for each seed
        taught = study["distill"]["arms"][f"{arm}@3e-2"]
        assert params["distill"]["arms"][arm] | {"lr": taught["lr"], "targets": taught["targets"]} == taught
    compared = {"prepare": ["tune_fraction"], "train_teacher": ["epochs", "lr", "batch_size", "select"]}
    compared["student_backbone"] = ["num_layers"]
    compared["distill"] = ["num_virtual_tokens", "lr", "steps", "batch_size", "dropout", "select"]
    for section, keys in compared.items():
        for key in keys:
            assert params[section][key] == study[section][key], key


def test_a_teachers_folder_is_found_from_the_project(empty_folder):
    (empty_folder / "models").mkdir()
    assert run("init", "project", "--teacher", "models")[0] == 0
    model = read_params("project/params.yaml")["train_teacher"]["model"]
    assert Path("project", model).samefile(empty_folder / "models")


def test_folder_that_is_a_file_is_refused(empty_folder):
    (empty_folder / "project").write_text("")
    assert "project" in fails("init", "project")


def test_installation_without_its_template_is_refused(empty_folder, monkeypatch):
    monkeypatch.setattr(sys.modules["kdcache.cli.init"], "TEMPLATE", empty_folder / "nowhere")
    assert "pip install" in fails("init")
    assert not files_below(empty_folder)


def test_a_killed_init_goes_on_and_a_whole_project_is_left_alone(empty_folder):
    assert run("init", "whole")[0] == 0
    wanted = {name: (Path("whole") / name).read_bytes() for name in files_below(Path("whole"))}
    assert run("init", "killed")[0] == 0
    for name in list(wanted)[1::2]:
        (Path("killed") / name).unlink()
    assert run("init", "killed")[0] == 0
    assert {name: (Path("killed") / name).read_bytes() for name in files_below(Path("killed"))} == wanted
    assert "Nothing was written" in fails("init", "killed")
    Path("killed/params.yaml").write_text("mine")
    Path("killed/dvc.yaml").unlink()
    assert "params.yaml" in fails("init", "killed")
    assert not Path("killed/dvc.yaml").exists()
