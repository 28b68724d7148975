"""kdcache predict --input: every format the same answers, as they come, and nothing spoilt by a bad row."""

import csv
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from served import CB, COPA, TEXTS, WIC, make_home
from typer.testing import CliRunner

import kdcache
from kdcache.cli import app
from kdcache.serve.files import serve

ROWS = [{"id": number, "text": text, "text_pair": TEXTS[-1]} for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Students of three tasks; no params.yaml, which serving does not need."""
    students = {"wic": (WIC, "prefix", 2), "cb": (CB, "prefix", 3), "copa": (COPA, "prefix", 4)}
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


def test_every_format_gives_the_same_answers_with_the_columns_it_had(tmp_path, write_jsonl):
    wanted = kdcache.load_student("cb").predict([row["text"] for row in ROWS], [TEXTS[-1]] * len(ROWS))
    sources = [
        str(write_table(tmp_path / "in.csv", ROWS)), str(write_table(tmp_path / "in.tsv", ROWS)),
        str(write_jsonl(tmp_path / "in.jsonl", ROWS)), "-",
    ]  # fmt: skip
    for source in sources:
        for form in ("csv", "jsonl"):
            code, out, _ = run(
                "--student", "cb", "--input", source, "--format", form, "--chunk", "5", piped=as_lines(ROWS)
            )
            assert code == 0
            if form == "csv":
                found = list(csv.DictReader(io.StringIO(out)))
                names = [f"probability_{label}" for label in CB.labels]
                assert list(found[0]) == ["id", "text", "text_pair", "prediction", *names]
                shares = [[float(row[name]) for name in names] for row in found]
            else:
                found = parsed(out)
                assert list(found[0]) == ["id", "text", "text_pair", "prediction", "probabilities"]
                shares = [list(row["probabilities"].values()) for row in found]
            assert [(str(row["id"]), row["text"]) for row in found] == [
                (str(row["id"]), row["text"]) for row in ROWS
            ]
            assert [row["prediction"] for row in found] == [prediction.label for prediction in wanted]
            for some, prediction in zip(shares, wanted, strict=True):
                assert some == pytest.approx(list(prediction.probabilities.values()), abs=1e-5)


def test_output_goes_by_its_ending_and_its_rows_can_be_a_teachers(tmp_path, write_jsonl):
    """What predict writes, import reads."""
    from kdcache.cache.exchange import read_outputs

    source = write_jsonl(tmp_path / "in.jsonl", [{**row, "example_id": f"r{row['id']}"} for row in ROWS])
    for name in ("out.csv", "out.jsonl"):
        code, out, _ = run("--student", "wic", "--input", str(source), "--output", str(tmp_path / name))
        assert (code, out) == (0, "")
        outputs = read_outputs(tmp_path / name, WIC.labels)
        assert outputs.example_id == [f"r{row['id']}" for row in ROWS]
        assert outputs.kind == "probabilities"
        assert outputs.values.sum(1) == pytest.approx(1, abs=1e-5)


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
        (alone,) = kdcache.load_student(name).predict([row["text"]], [second])
        assert answer["prediction"] == alone.label
        assert answer["probabilities"] == pytest.approx(alone.probabilities, abs=1e-5)
        assert answer.items() >= row.items()

    table = [
        {"task": "wic", "text": "bank", "choices": ""},
        {"task": "copa", "text": "bank", "choices": '["the river", "the match"]'},
    ]  # fmt: skip
    code, out, _ = run(*students, "--input", str(write_table(tmp_path / "in.csv", table)))
    assert code == 0
    wic, copa = csv.DictReader(io.StringIO(out))
    assert (wic["probability_choice1"], copa["probability_true"]) == ("", "")
    assert float(copa["probability_choice1"]) == pytest.approx(found[1]["probabilities"]["choice1"], abs=1e-5)


class Producer:
    """A pipe that sends its next rows only when it has seen the answers to the ones before."""

    def __init__(self, out: io.BytesIO, ahead: int) -> None:
        self.out, self.ahead, self.sent = out, ahead, 0

    def readline(self, _size: int) -> bytes:
        answered = self.out.getvalue().count(b"\n")
        assert self.sent - answered < self.ahead
        if self.sent == 12:
            return b""
        self.sent += 1
        return b'{"text": "bank"}\n'


@pytest.mark.parametrize("chunk", [1, 5])
def test_answers_come_before_the_input_ends_and_no_more_than_a_chunk_is_held(monkeypatch, chunk):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Producer(out, chunk)))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out, isatty=lambda: False))
    assert serve([Path("wic")], "-", None, None, chunk) == 12
    assert len(parsed(out.getvalue().decode())) == 12


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            '{"text": ',
            "the line must be a JSON object, got '{\"text\": ' (Expecting value: character 9). "
            "Repair or remove the line.",
        ),
        ('{"text": "a"}', "the row must name its task or student, got neither. Add a column task."),
        (
            '{"text": "a", "task": "wick"}',
            "the task or student must be one of the pool's, got 'wick'. Did you mean wic?",
        ),
        ('{"text": 5, "task": "wic"}', "text must be text, and not empty, got 5."),
        ('{"text": "a", "task": "wic", "text_pair": ["b"]}', "text_pair must be text, got ['b']."),
        ('{"text": "a", "task": "copa", "choices": "b"}', "choices must be 2 texts in copa, got 'b'."),
        (
            '{"text": "a", "task": "wic", "prediction": "b"}',
            "the columns must leave 'prediction' to the predictions, got one of that name. Rename it.",
        ),
    ],
)  # fmt: skip
def test_a_bad_row_is_one_line_and_those_before_it_are_answered(tmp_path, bad, message):
    good = '{"text": "bank", "task": "wic"}\n'
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(good * 3 + bad + "\n" + good)
    code, _, error = run(
        "--student", "wic", "--student", "copa", "--input", str(source), "--output", str(output)
    )
    assert code == 1
    assert error.splitlines()[-1] == f"{source}:4: {message}"
    assert [row["task"] for row in parsed(output.read_text())] == ["wic"] * 3


def test_columns_that_come_late_are_refused_in_csv():
    code, out, error = run(
        "--student", "wic", "--input", "-", "--format", "csv",
        piped='{"text": "a", "n": null}\n{"text": "b", "n": [1]}\n{"text": "c"}\n{"text": "d", "m": 1}\n',
    )  # fmt: skip
    assert code == 1
    assert error.splitlines() == [
        "standard input:4: the columns must be those of the first row in CSV, got 'm' too. "
        "Add: --format jsonl"
    ]
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
    ("arguments", "message"),
    [
        (
            ["--input", "in.csv"],
            "--input: a student must be named, got none. Add: --student FOLDER",
        ),
        (
            ["--input", "in.csv", "--student", "wic", "--arm", "kl"],
            "--input: it must go without --task, --arm, --zip, --set, got --arm. Remove it.",
        ),
        (
            ["--input", "in.csv", "--student", "wic"],
            "in.csv: the input must be a file, got nothing there. Check the path.",
        ),
        (
            ["--input", "wic/README.md", "--student", "wic"],
            "--input: the file must end in .jsonl, .csv, .tsv, got wic/README.md. Rename it.",
        ),
        (
            ["--input", "-", "--student", "wic", "--output", "out.txt"],
            "--output: the file must end in .csv or .jsonl, got out.txt. Rename it.",
        ),
        (
            ["--input", "rows.jsonl", "--student", "wic", "--output", "./rows.jsonl"],
            "--output: it must be another file than the input, got rows.jsonl. Name another.",
        ),
        (
            ["--input", "-", "--student", "wic", "--format", "superglue"],
            "--format superglue: it must go with --split, got --input. Use csv or jsonl.",
        ),
    ],
)
def test_mistakes_are_one_clear_line(arguments, message):
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    code, _, error = run(*arguments)
    assert (code, error.splitlines()) == (1, [message])


def test_options_of_an_input_need_one(project):
    project()
    for option in (["--student", "a", "--student", "b"], ["--student", "a", "--output", "x.csv"]):
        code, _, error = run("--task", "wic", *option)
        which = "--output" if "--output" in option else "more than one --student"
        assert (code, error) == (1, f"predict: {which} must go with --input, got none. Add: --input FILE\n")
