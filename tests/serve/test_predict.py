"""kdcache predict of prepared splits: the schema of every task, and the benchmark's submission files."""

import csv
import dataclasses
import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import fails, run, run_all, superglue_task, write_project
from served import make_student

import kdcache
from kdcache.data.superglue import SUPERGLUE
from kdcache.data.task import read_task, write_task
from kdcache.errors import ParamsError
from kdcache.serve import prepared_split as prepared
from kdcache.serve.superglue_files import SUBMISSION_NAMES, submission_name, superglue_text, zip_bytes

FIXTURES = Path(__file__).parents[1] / "fixtures" / "superglue"


def lines(text: str) -> list:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("boolq", ["true", "false"]),
        ("cb", ["contradiction", "entailment"]),
        ("copa", [1, 0]),
        ("rte", ["not_entailment", "entailment"]),
        ("wic", ["true", "false"]),
        ("wsc", ["True", "False"]),
    ],
)
def test_labels_are_spelt_as_the_benchmark_does(name, expected):
    task = superglue_task(name)
    logits = np.eye(task.num_labels)[[1, 0]]
    text = superglue_text(task, "test", ["test-7", "test-3"], logits, {})
    assert lines(text) == [{"idx": 7, "label": expected[0]}, {"idx": 3, "label": expected[1]}]


def test_multirc_is_nested_by_passage_and_question():
    ids = ["test-5-0-0", "test-5-0-1", "test-5-1-2", "test-6-2-3"]
    logits = np.eye(2)[[1, 0, 0, 1]]
    text = superglue_text(superglue_task("multirc"), "test", ids, logits, {})
    assert lines(text) == [
        {"idx": 5, "passage": {"questions": [
            {"idx": 0, "answers": [{"idx": 0, "label": 1}, {"idx": 1, "label": 0}]},
            {"idx": 1, "answers": [{"idx": 2, "label": 0}]},
        ]}},
        {"idx": 6, "passage": {"questions": [{"idx": 2, "answers": [{"idx": 3, "label": 1}]}]}},
    ]  # fmt: skip


def test_record_names_the_chosen_candidate_of_each_query():
    ids = ["test-4-90-0", "test-4-90-1", "test-4-91-0"]
    columns = {"unit": ["test-4-90"] * 2 + ["test-4-91"], "candidate": ["Åse", "Oslo", "Riga"]}
    logits = np.array([[0.0, 1.0], [0.0, 3.0], [5.0, 0.0]])
    text = superglue_text(superglue_task("record"), "test", ids, logits, columns)
    assert lines(text) == [{"idx": 90, "label": "Oslo"}, {"idx": 91, "label": "Riga"}]


def test_every_task_and_diagnostic_has_a_submission_file():
    files = {"BoolQ", "CB", "COPA", "MultiRC", "ReCoRD", "RTE", "WiC", "WSC", "AX-b", "AX-g"}
    assert {*SUBMISSION_NAMES.values()} == files
    assert {*SUBMISSION_NAMES} == {*SUPERGLUE, "axb", "axg"}
    with pytest.raises(ParamsError, match=r"'mine'.*--format csv or jsonl"):
        submission_name("mine", "test")


def test_zip_is_the_same_bytes_whatever_the_order():
    files = {"WiC.jsonl": "b\n", "CB.jsonl": "a\n"}
    assert zip_bytes(files) == zip_bytes(dict(reversed(files.items())))
    with zipfile.ZipFile(io.BytesIO(zip_bytes(files))) as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == files


def official_idx(name: str, split: str) -> list:
    """What the benchmark's server looks for, read straight from the official file."""
    path = FIXTURES / SUBMISSION_NAMES[name] / {"validation": "val.jsonl", "test": "test.jsonl"}[split]
    rows = lines(path.read_text(encoding="utf-8"))
    return (
        [q["idx"] for row in rows for q in row["qas"]] if name == "record" else [row["idx"] for row in rows]
    )


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A project with all tasks of SuperGLUE prepared, and an untrained student of each in models/students."""
    folder = tmp_path_factory.mktemp("official")
    write_project(
        folder, tiny_model,
        prepare={"source": "superglue", "path": str(FIXTURES), "tune_fraction": 0.0},
        distill={"seeds": [3]},
    )  # fmt: skip
    run_all(folder, ["prepare", "--set", f"tasks=[{', '.join(SUPERGLUE)}]"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in SUPERGLUE:
            task = read_task(Path("data") / name, name)
            make_student(Path(f"models/students/{name}/kl-3"), Path("tiny"), task, "head", max_length=64)
    return folder


@pytest.fixture
def at_official(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, gone to."""
    shutil.copytree(official, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_submission_files_hold_what_the_benchmarks_server_looks_for(at_official):
    """A zip holds the test split and diagnostics, and nothing of other splits that lies there already."""
    predictions = Path("runs/predictions")
    names = [name for name in SUPERGLUE if (Path("data") / name / "test.parquet").is_file()]
    arguments = ["--arm", "kl", "--split", "validation", "--set", "tasks=[boolq]"]
    assert run("predict", *arguments, "--format", "superglue")[0] == 0
    code, out, _ = run(
        "predict", "--arm", "kl", "--format", "superglue", "--set", f"tasks=[{','.join(names)}]"
    )
    assert code == 0
    for name in SUPERGLUE:
        split, file = "test", f"{SUBMISSION_NAMES[name]}.jsonl"
        if name not in names:
            split, file = "validation", f"{SUBMISSION_NAMES[name]}-validation.jsonl"
            arguments = ["--arm", "kl", "--split", split, "--set", f"tasks=[{name}]"]
            assert run("predict", *arguments, "--format", "superglue")[0] == 0
        found = [line["idx"] for line in lines((predictions / file).read_text(encoding="utf-8"))]
        assert found == official_idx(name, split)
    archive, _, missing = out.splitlines()[-1].partition(" without ")
    assert missing.split(", ") == [
        f"{SUBMISSION_NAMES[name]}.jsonl" for name in SUPERGLUE if name not in names
    ]
    with zipfile.ZipFile(archive) as packed:
        kept = {f"{SUBMISSION_NAMES[name]}.jsonl" for name in names} | {"AX-b.jsonl", "AX-g.jsonl"}
        assert set(packed.namelist()) == kept
        for name in names:
            file = f"{SUBMISSION_NAMES[name]}.jsonl"
            assert packed.read(file) == (predictions / file).read_bytes()
        labels = {line["label"] for line in lines(packed.read("AX-b.jsonl").decode())}
        assert labels <= {"entailment", "not_entailment"}


@pytest.mark.parametrize("name", SUPERGLUE)
def test_a_split_comes_out_with_its_columns_and_probabilities(name, at_official):
    """In both formats; in the schema that rows of a file come out in."""
    arguments = ["predict", "--student", f"models/students/{name}/kl-3", "--split", "validation"]
    arguments += ["--set", f"tasks=[{name}]"]
    code, out, progress = run(*arguments)
    assert (code, out) == (0, f"runs/predictions/{name}-validation.csv\n")
    assert re.search(rf"{name} predictions: 100%.* (\d+)/\1 ", progress)
    assert run(*arguments, "--format", "jsonl")[0] == 0
    task = superglue_task(name)
    table = pq.read_table(f"data/{name}/validation.parquet").to_pylist()
    from_jsonl = lines(Path(f"runs/predictions/{name}-validation.jsonl").read_text(encoding="utf-8"))
    with Path(f"runs/predictions/{name}-validation.csv").open(encoding="utf-8", newline="") as file:
        from_csv = list(csv.DictReader(file))
    second = "choices" if task.num_choices > 1 else "text_pair"
    names = [f"probability_{label}" for label in task.labels]
    columns = ["example_id", "prediction", *names, "label", "text", second, "group", *task.columns]
    student = kdcache.load_student(f"models/students/{name}/kl-3")
    wanted = student.predict([row["text"] for row in table], [row[second] for row in table])
    for given, row, cells, prediction in zip(table, from_jsonl, from_csv, wanted, strict=True):
        assert list(row) == list(cells) == columns
        assert row["label"] == cells["label"] == task.labels[given["label"]]
        for column in ("example_id", "text", second, "group", *task.columns):
            assert row[column] == given[column]
            shown = cells[column]
            assert (shown if isinstance(given[column], str) else json.loads(shown)) == given[column]
        assert row["prediction"] == cells["prediction"] == prediction.label
        for some in (row, cells):
            shares = {label: float(some[f"probability_{label}"]) for label in task.labels}
            assert shares == pytest.approx(prediction.probabilities, abs=2e-6)


def test_rows_without_a_label_leave_it_blank(at_official):
    for form in ("csv", "jsonl"):
        assert run("predict", "--student", "models/students/cb/kl-3", "--format", form)[0] == 0
    rows = lines(Path("runs/predictions/cb-test.jsonl").read_text())
    assert {row["label"] for row in rows} == {None}
    with Path("runs/predictions/cb-test.csv").open(newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == {""}


def test_a_students_task_need_not_be_named_and_the_rows_are_those_of_a_file(distilled_project, write_jsonl):
    """A split through predict, and the same rows through predict --input: the same answers."""
    student = ["--student", "runs/cb/kl+gram-0"]
    assert run("predict", *student, "--split", "validation", "--format", "jsonl")[0] == 0
    rows = lines(Path("runs/predictions/cb-validation.jsonl").read_text())
    kept = ("example_id", "label", "text", "text_pair", "group")
    source = write_jsonl(Path("rows.jsonl"), [{name: row[name] for name in kept} for row in rows])
    assert run("predict", *student, "--input", str(source), "--output", "labelled.jsonl")[0] == 0
    for by_split, by_file in zip(rows, lines(Path("labelled.jsonl").read_text()), strict=True):
        assert list(by_split) == list(by_file)
        for name, value in by_split.items():
            same = pytest.approx(value, abs=2e-6) if name.startswith("probability_") else value
            assert by_file[name] == same


def test_mistakes_are_one_clear_line(distilled_project):
    student = ["--student", "runs/cb/kl+gram-0"]
    shutil.copytree("data/cb", "data/twin")  # another task with the same labels
    write_task(dataclasses.replace(read_task(Path("data/cb"), "cb"), name="twin"), Path("data/twin"))
    for arguments, told in (
        ([], ["--arm NAME", "--student FOLDER"]),
        ([*student, "--arm", "kl"], ["--arm NAME", "--student FOLDER"]),
        (["--arm", "kl", "--task", "cb"], ["runs/cb/kl-0", "kdcache distill --task cb --arm kl"]),
        (["--arm", "kll"], ["Did you mean kl?"]),
        ([*student, "--split", "tune_"], ["data/cb", "'tune_'", "Did you mean tune?"]),
        ([*student, "--task", "cb", "--task", "wic"], ["cb, wic", "Remove --task"]),
        ([*student, "--task", "wic", "--split", "tune"], ["runs/cb/kl+gram-0", "cb", "wic"]),
        ([*student, "--task", "twin", "--split", "tune", "--set", "tasks=[cb, twin]"], ["twin", "cb"]),
        ([*student, "--set", "tasks=[wic]"], ["'cb'", "wic"]),
        ([*student, "--output", "x.csv"], ["--input", "runs/predictions/"]),
        (["--student", "runs/cb"], ["runs/cb/student.json"]),
    ):
        message = fails("predict", *arguments)
        for part in told:
            assert part in message, arguments
    assert not list(Path("runs/predictions").glob("*.csv"))


def test_a_student_does_not_label_texts_that_are_rendered_otherwise(distilled_project):
    write_task(dataclasses.replace(read_task(Path("data/cb"), "cb"), template="cb/other"), Path("data/cb"))
    for command in ("predict", "evaluate"):
        told = fails(command, "--split", "validation", "--arm", "kl+gram", "--task", "cb")
        assert "cb/other" in told, command


def test_a_task_without_a_submission_file_is_refused_before_the_work(distilled_project, monkeypatch):
    Path("data/cb").rename("data/mine")
    task = read_task(Path("data/mine"), "mine")
    write_task(dataclasses.replace(task, name="mine"), Path("data/mine"))
    monkeypatch.setattr(prepared, "load_student", lambda *_: pytest.fail("loaded the student"))
    arguments = ["--task", "mine", "--set", "tasks=[mine]", "--student", "runs/cb/kl+gram-0"]
    message = fails("predict", *arguments, "--split", "validation", "--format", "superglue")
    assert "'mine'" in message
    assert "csv or jsonl" in message
