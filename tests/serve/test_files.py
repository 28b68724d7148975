"""kdcache predict --input: one schema in every format, answers as rows come, and bad rows in one line."""

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from served import CB, COPA, TEXTS, WIC, make_home
from typer.testing import CliRunner

import kdcache
from kdcache.cli import app
from kdcache.serve import files
from kdcache.serve.files import Pipe, label_file
from kdcache.serve.mixed_batches import predict_requests

ROWS = [{"id": number, "text": text, "text_pair": TEXTS[-1]} for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Students of three tasks; no params.yaml, which serving does not need."""
    students = {"wic": (WIC, "prefix", 2), "cb": (CB, "prefix", 3), "copa": (COPA, "prefix", 4)}
    students |= {"nli": (replace(CB, name="nli", pairs=True), "prefix", 2)}
    students |= {"mood": (replace(WIC, name="mood", pairs=False), "prefix", 2)}
    return make_home(tmp_path_factory.mktemp("served"), tiny_model, students)


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def run(*arguments: str, piped: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["predict", *arguments], input=piped)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def write_table(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parsed(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def shares_of(row: dict, labels: tuple[str, ...] = CB.labels) -> dict[str, float]:
    return {label: float(row[f"probability_{label}"]) for label in labels}


def test_every_format_gives_the_same_rows(tmp_path, write_jsonl, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 5)
    wanted = kdcache.load_student("cb").predict([row["text"] for row in ROWS], [TEXTS[-1]] * len(ROWS))
    sources = [
        str(write_table(tmp_path / "in.csv", ROWS)), str(write_table(tmp_path / "in.tsv", ROWS)),
        str(write_jsonl(tmp_path / "in.jsonl", ROWS)), "-",
    ]  # fmt: skip
    for source in sources:
        for form in ("csv", "jsonl"):
            code, out, _ = run("--student", "cb", "--input", source, "--format", form, piped=as_lines(ROWS))
            assert code == 0
            found = list(csv.DictReader(io.StringIO(out))) if form == "csv" else parsed(out)
            names = [f"probability_{label}" for label in CB.labels]
            assert list(found[0]) == ["example_id", "prediction", *names, "id", "text", "text_pair"]
            for row, given, prediction in zip(found, ROWS, wanted, strict=True):
                assert row["example_id"] == str(row["id"]) == str(given["id"])
                assert row["text"] == given["text"]
                assert row["prediction"] == prediction.label
                assert shares_of(row) == pytest.approx(prediction.probabilities, abs=2e-6)


@pytest.mark.parametrize(
    ("row", "example_id"),
    [
        ({"example_id": "a", "id": "b"}, "a"),
        ({"id": 7}, "7"),
        ({"id": "", "example_id": None}, "2"),
        ({}, "2"),
    ],
)
def test_a_row_without_an_id_gets_its_number(row, example_id):
    rows = [{"text": "bank"}, {**row, "text": "bank"}]
    code, out, _ = run("--student", "wic", "--input", "-", piped=as_lines(rows))
    assert code == 0
    first, second = parsed(out)
    assert (first["example_id"], second["example_id"]) == ("1", example_id)
    assert second.get("id") == row.get("id")


def test_output_goes_by_its_ending_and_its_rows_can_be_a_teachers(tmp_path, write_jsonl):
    """What predict writes, import reads."""
    from kdcache.cache.read_outputs import read_outputs

    source = write_jsonl(tmp_path / "in.jsonl", [{**row, "example_id": f"r{row['id']}"} for row in ROWS])
    for name in ("out.csv", "out.jsonl"):
        code, out, _ = run("--student", "wic", "--input", str(source), "--output", str(tmp_path / name))
        assert (code, out) == (0, "")
        outputs = read_outputs(tmp_path / name, WIC.labels)
        assert outputs.example_id == [f"r{row['id']}" for row in ROWS]
        assert outputs.kind == "probabilities"
        assert outputs.values.sum(1) == pytest.approx(1, abs=1e-5)


def test_no_rows_give_the_columns_of_labelled_ones(tmp_path):
    (tmp_path / "none.csv").write_text("text,text_pair\n")
    code, _, error = run("--student", "wic", "--input", str(tmp_path / "none.csv"), "--output", "out.csv")
    assert code == 0, error
    assert Path("out.csv").read_text() == "example_id,prediction,probability_false,probability_true\n"


def test_mixed_tasks_in_one_input(tmp_path):
    rows = [
        {"task": "wic", "text": "bank", "text_pair": "the bank"},
        {"task": "copa", "text": "bank", "choices": ["the river", "the match"]},
        {"student": "cb", "text": "bat", "text_pair": "crane"},
        {"task": "wic", "text": "seal", "label": "gold"},
    ]  # fmt: skip
    students = ["--student", "wic", "--student", "cb", "--student", "copa"]
    code, out, _ = run(*students, "--input", "-", piped=as_lines(rows))
    assert code == 0
    found = parsed(out)
    for row, answer in zip(rows, found, strict=True):
        name = row.get("task") or row["student"]
        second = row.get("choices") or row.get("text_pair")
        student = kdcache.load_student(name)
        (by_itself,) = student.predict([row["text"]], [second])
        assert answer["prediction"] == by_itself.label
        assert shares_of(answer, student.labels) == pytest.approx(by_itself.probabilities, abs=1e-5)
        assert len([name for name in answer if name.startswith("probability_")]) == len(student.labels)
        assert answer.items() >= row.items()

    table = [
        {"task": "wic", "text": "bank", "choices": ""},
        {"task": "copa", "text": "bank", "choices": '["the river", "the match"]'},
    ]  # fmt: skip
    code, out, _ = run(*students, "--input", str(write_table(tmp_path / "in.csv", table)))
    assert code == 0
    wic, copa = csv.DictReader(io.StringIO(out))
    assert (wic["probability_choice1"], copa["probability_true"]) == ("", "")
    assert shares_of(copa, COPA.labels) == pytest.approx(shares_of(found[1], COPA.labels), abs=1e-5)


@pytest.mark.parametrize(
    ("student", "row", "told"),
    [
        ("nli", {"text": "bank"}, ["text_pair"]),
        ("nli", {"text": "bank", "text_b": "river"}, ["text_pair"]),
        ("nli", {"text": "bank", "text_pair": ""}, ["text_pair", "pairs"]),
        ("nli", {"text": "bank", "text_pair": " "}, ["text_pair", "pairs"]),
        ("nli", {"text": "bank", "text_pair": None}, ["text_pair", "pairs"]),
        ("nli", {"text": "bank", "text_pair": "river", "choices": ["a", "b"]}, ["choices"]),
        ("mood", {"text": "bank", "text_pair": "river"}, ["text_pair", "single", "'river'"]),
        ("mood", {"text": "bank", "choices": ["a", "b"]}, ["choices"]),
        ("copa", {"text": "bank", "choices": ["a", "b"], "text_pair": "river"}, ["text_pair", "'river'"]),
        ("copa", {"text": "bank", "text_pair": "river"}, ["choices"]),
    ],
)
def test_a_text_that_the_task_lacks_or_does_not_read_is_refused(student, row, told, tmp_path):
    whole = {"text": "bank"} | {"nli": {"text_pair": "river"}, "copa": {"choices": ["a", "b"]}}.get(
        student, {}
    )
    assert run("--student", student, "--input", "-", piped=as_lines([whole]))[0] == 0
    code, out, error = run("--student", student, "--input", "-", piped=as_lines([row]))
    assert (code, out) == (1, "")
    (line,) = error.splitlines()
    assert line.startswith("standard input:1: ")
    assert all(part in line for part in told)


def test_a_student_asked_in_python_refuses_the_same():
    nli, mood = kdcache.load_student("nli"), kdcache.load_student("mood")
    for student, pairs in ((nli, None), (nli, ["a", ""]), (mood, ["a", "b"])):
        with pytest.raises(kdcache.KdcacheError, match="text_pair"):
            student.predict(["bank", "bat"], pairs)
    assert len(mood.predict(["bank", "bat"], ["", None])) == 2


def test_one_student_labels_every_row_whatever_its_column_task_says():
    code, out, _ = run("--student", "cb", "--input", "-", piped=as_lines([{"text": "bat", "task": "mine"}]))
    assert code == 0
    assert parsed(out)[0]["task"] == "mine"


class Producer:
    """A pipe that sends its next rows only when it has seen the answers to the ones before."""

    def __init__(self, out: io.BytesIO, at_once: int, end: bytes) -> None:
        self.out, self.at_once, self.end, self.sent = out, at_once, end, 0

    def read1(self, _size: int) -> bytes:
        assert self.out.getvalue().count(b"\n") == self.sent
        if self.sent == 12:
            return b""
        self.sent += self.at_once
        return (b'{"text": "bank"}' + self.end) * self.at_once


@pytest.mark.parametrize(("at_once", "end"), [(1, b"\n"), (4, b"\n"), (4, b"\r\n \n\n")])
def test_a_pipe_is_answered_as_its_rows_come(monkeypatch, at_once, end):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Producer(out, at_once, end)))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out, isatty=lambda: False))
    assert label_file([Path("wic")], "-", None, None) == 12
    assert len(parsed(out.getvalue().decode())) == 12


def test_no_more_than_a_chunk_of_a_pipe_is_held(monkeypatch):
    sizes = []

    def count(requests):
        sizes.append(len(requests))
        return predict_requests(requests)

    monkeypatch.setattr(files, "CHUNK", 5)
    monkeypatch.setattr(files, "predict_requests", count)
    assert run("--student", "wic", "--input", "-", piped='{"text": "bank"}\n' * 12)[0] == 0
    assert sizes == [5, 5, 2]


def test_lines_of_a_pipe_are_those_of_its_bytes():
    """However the bytes are cut into arrivals, and with a limit on a line."""
    data = b"a\n\nlonger than the limit\nlast"
    for size in (1, 2, 3, len(data)):
        arrivals = [data[i : i + size] for i in range(0, len(data), size)]
        pipe = Pipe(SimpleNamespace(read1=lambda _, left=arrivals: left.pop(0) if left else b""))
        assert list(iter(lambda pipe=pipe: pipe.readline(8), b"")) == [
            b"a\n", b"\n", b"longer t", b"han the ", b"limit\n", b"last",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ('{"text": ', "JSON"),
        ('{"text": "a"}', "task"),
        ('{"text": "a", "task": "wick"}', "Did you mean wic?"),
        ('{"text": 5, "task": "wic"}', "text"),
        ('{"text": "a", "task": "wic", "text_pair": ["b"]}', "['b']"),
        ('{"text": "a", "task": "copa", "choices": "b"}', "'b'"),
        ('{"text": "a", "task": "wic", "prediction": "b"}', "'prediction'"),
        ('{"text": "a", "task": "wic", "probability_choice1": 1}', "'probability_choice1'"),
        ('{"text": "a", "task": "wic", "id": [1]}', "id must be"),
    ],
)
def test_a_bad_row_is_one_line_and_those_before_it_are_answered(tmp_path, bad, told):
    good = '{"text": "bank", "task": "wic"}\n'
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(good * 3 + bad + "\n" + good)
    code, _, error = run(
        "--student", "wic", "--student", "copa", "--input", str(source), "--output", str(output)
    )
    assert code == 1
    assert error.splitlines()[-1].startswith(f"{source}:4: ")
    assert told in error.splitlines()[-1]
    assert [row["task"] for row in parsed(output.read_text())] == ["wic"] * 3


@pytest.mark.parametrize("bad", ['{"text": ', '{"text": 5}', '{"other": "a"}', ""])
def test_an_old_output_stays_where_no_row_can_be_labelled(tmp_path, bad):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(bad)
    output.write_text("old")
    code, _, _ = run("--student", "wic", "--input", str(source), "--output", str(output))
    assert (code, output.read_text()) == ((1, "old") if bad else (0, ""))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_an_old_output_stays_while_rows_are_labelled(tmp_path, monkeypatch, write_jsonl):
    def interrupted(*_):
        assert (tmp_path / "out.jsonl").read_text() == "old"
        raise KeyboardInterrupt

    (tmp_path / "out.jsonl").write_text("old")
    source = write_jsonl(tmp_path / "in.jsonl", ROWS)
    monkeypatch.setattr(files, "predict_requests", interrupted)
    assert run("--student", "cb", "--input", str(source), "--output", str(tmp_path / "out.jsonl"))[0] == 130
    assert (tmp_path / "out.jsonl").read_text() == "old"


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_columns_that_only_resemble_those_written_pass_through(form):
    row = {"text": "a", "probability_other": 0.5, "Prediction": "x"}
    code, out, _ = run("--student", "wic", "--input", "-", "--format", form, piped=as_lines([row]))
    assert code == 0
    (found,) = csv.DictReader(io.StringIO(out)) if form == "csv" else parsed(out)
    assert (float(found["probability_other"]), found["Prediction"]) == (0.5, "x")


def test_columns_that_come_late_are_refused_in_csv():
    code, out, error = run(
        "--student", "wic", "--input", "-", "--format", "csv",
        piped='{"text": "a", "n": null}\n{"text": "b", "n": [1]}\n{"text": "c"}\n{"text": "d", "m": 1}\n',
    )  # fmt: skip
    assert code == 1
    (line,) = error.splitlines()
    assert line.startswith("standard input:4: ")
    assert "'m'" in line
    assert "--format jsonl" in line
    assert [(row["text"], row["n"]) for row in csv.DictReader(io.StringIO(out))] == [
        ("a", ""),
        ("b", "[1]"),
        ("c", ""),
    ]


def test_half_a_character_passes_through_as_json_spells_it():
    code, out, _ = run("--student", "wic", "--input", "-", piped='{"text": "é", "id": "\\ud800"}\n')
    assert code == 0
    assert '"é"' in out
    assert parsed(out)[0]["id"] == "\ud800"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--input", "in.csv"], ["--student FOLDER"]),
        (["--input", "in.csv", "--student", "wic", "--arm", "kl"], ["--arm", "Remove it."]),
        (["--input", "in.csv", "--student", "wic", "--split", "test"], ["--split", "Remove it."]),
        (["--input", "in.csv", "--student", "wic", "--set", "a=1"], ["--set", "Remove it."]),
        (["--input", "in.csv", "--student", "wic"], ["no input file in.csv"]),
        (["--input", "wic/README.md", "--student", "wic"], [".jsonl, .csv, .tsv", "wic/README.md"]),
        (["--input", "-", "--student", "wic", "--output", "out.txt"], [".csv or .jsonl", "out.txt"]),
        (
            ["--input", "rows.jsonl", "--student", "wic", "--output", "./rows.jsonl"],
            ["overwrite the input", "rows.jsonl"],
        ),
        (["--input", "-", "--student", "wic", "--format", "superglue"], ["csv or jsonl"]),
    ],
)
def test_mistakes_are_one_clear_line(arguments, told):
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    code, out, error = run(*arguments)
    assert (code, out) == (1, "")
    (line,) = error.splitlines()
    for part in told:
        assert part in line
    assert Path("rows.jsonl").read_text() == '{"text": "a"}\n'


def test_options_of_an_input_need_one(project):
    project()
    for options in (["--student", "a", "--student", "b"], ["--student", "a", "--output", "x.csv"]):
        code, _, error = run("--task", "wic", *options)
        assert code == 1
        (line,) = error.splitlines()
        assert "--input" in line
