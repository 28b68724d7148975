"""Rows with a task's own columns: the student gets what prepare would have made, and nothing is guessed."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, fails, run
from served import make_home

from kdcache.data.examples import read_examples
from kdcache.data.parsers import Layout, Row
from kdcache.data.readers import read_rows
from kdcache.data.superglue import SUPERGLUE
from kdcache.data.task import Task
from kdcache.data.taskfile import read_task_file
from kdcache.data.taskfile_schema import TaskFile
from kdcache.errors import DataError
from kdcache.serve.mixed_batches import LoadedStudent
from kdcache.serve.row_columns import read_requests

OFFICIAL = Path(__file__).parents[1] / "fixtures" / "superglue"
HEAD = 'splits = {train = "train.csv", validation = "val.csv"}\nlabels = ["no", "yes"]\n'


def pool_of(*tasks: Task) -> SimpleNamespace:
    """Students that only know their task: nothing is computed here."""
    students = {task.name: LoadedStudent(None, SimpleNamespace(task=task), None) for task in tasks}
    return SimpleNamespace(students=students, find=lambda name, _: students[name])


def own_file(folder: Path, text: str) -> TaskFile:
    path = folder / "mine.toml"
    path.write_text(HEAD + text)
    return read_task_file(path)


def read(file: TaskFile, row: dict, columns=None, quoted=False, task: Task | None = None) -> list[tuple]:
    pool = pool_of(task or file.task("mine"))
    found = read_requests([Row("in:1", row)], pool, {"mine": file}, columns, quoted)
    return [(request.text, *request.seconds) for _, request in found]


def refusal(file: TaskFile, row: dict, **options) -> str:
    with pytest.raises(DataError) as error:
        read(file, row, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", SUPERGLUE)
def test_a_student_gets_of_official_rows_what_prepare_made(name):
    file = read_task_file(SUPERGLUE[name])
    task, examples = read_examples(name, file, OFFICIAL)
    for split in file.splits.named.keys() & examples.keys():
        rows = read_rows(OFFICIAL / file.files[split], Layout(), [])
        columns = "task" if name == "wsc" else None  # its column text is not yet marked
        requests = [request for _, request in read_requests(rows, pool_of(task), {name: file}, columns)]
        wanted = [(e.text, e.choices or (e.text_pair,)) for e in examples[split]]
        assert [(request.text, request.seconds) for request in requests] == wanted


def test_a_column_text_that_is_not_yet_rendered_must_be_told():
    file = read_task_file(SUPERGLUE["wsc"])
    task = file.task("wsc")
    (row, *_) = read_rows(OFFICIAL / file.files["train"], Layout(), [])
    with pytest.raises(DataError, match="--columns task or --columns prepared"):
        list(read_requests([row], pool_of(task), {"wsc": file}))
    ((_, request),) = read_requests([row], pool_of(task), {"wsc": file}, "prepared")
    assert request.text == row.values["text"]


OWN = [  # the task file's templates, a row, what the student reads
    ('text = "text"\ntext_pair = "other"', {"text": "a", "other": "b"}, ("a", "b")),
    ('text = "{title}. {body}"', {"title": "a", "body": "b", "n": 1}, ("a. b", "")),
    ('text = "{title}. {body}"', {"title": "", "body": "b"}, (". b", "")),
    ('text = "v2"', {"v2": "a", "text": ""}, ("a", "")),  # a table of several tasks has blank cells
    ('text = "q"\nchoices = ["x", "{y}!"]', {"q": "a", "x": "b", "y": "c"}, ("a", "b", "c!")),
    (
        'text = "s"\nspans = [{column = "s", start = "i", end = "j"}]',
        {"s": "abc", "i": "1", "j": 2},
        ("a*b*c", ""),
    ),
]
PREPARED = [
    ('text = "text"\ntext_pair = "other"', {"text": "a", "text_pair": "b"}, ("a", "b")),
    ('text = "{title}. {body}"', {"text": "a. b", "title": ""}, ("a. b", "")),
    ('text = "{text}"', {"text": "a", "text_pair": ""}, ("a", "")),
    ('text = "q"\nchoices = ["x", "{y}!"]', {"text": "a", "choices": '["b", "c!"]'}, ("a", "b", "c!")),
]


@pytest.mark.parametrize(("templates", "row", "wanted"), [*OWN, *PREPARED])
def test_the_names_of_columns_tell_which_they_are(templates, row, wanted, tmp_path):
    assert read(own_file(tmp_path, templates), row) == [wanted]


@pytest.mark.parametrize(("templates", "row", "wanted"), OWN)
def test_columns_that_are_named_need_not_be_guessed(templates, row, wanted, tmp_path):
    assert read(own_file(tmp_path, templates), row, columns="task") == [wanted]


BOTH = [
    ('text = "Review: {text}"', {"text": "a"}),
    ('text = "{title} {text}"', {"title": "a", "text": "b"}),
    ('text = "{title} {text}"', {"text": "b"}),
    ('text = "title"\ntext_pair = "text"', {"title": "a", "text": "b"}),
    ('text = "text"\ntext_pair = "other"', {"text": "a", "other": "b", "text_pair": "c"}),
    ('text = "p"\ntext_pair = "h"', {"p": "a", "h": "b", "text": "c"}),
    ('text = "p"\ntext_pair = "h"', {"p": "a", "text": "c", "text_pair": "d"}),
    ('text = "q"\nchoices = ["x", "y"]', {"q": "a", "x": "b", "y": "c", "choices": ["d", "e"]}),
    (
        'text = "text"\nspans = [{column = "text", start = "i", end = "j"}]',
        {"text": "abc", "i": "1", "j": 2},
    ),
]


@pytest.mark.parametrize(("templates", "row"), BOTH)
def test_a_row_that_could_be_read_in_both_ways_is_refused(templates, row, tmp_path):
    message = refusal(own_file(tmp_path, templates), row)
    assert message.startswith("in:1: ")
    assert "--columns task" in message
    assert "--columns prepared" in message


LACKING = [
    ('text = "text"\ntext_pair = "other"', {"text": "a"}, ["no text_pair", "text, other", "text, text_pair"]),
    (
        'text = "text"\ntext_pair = "other"',
        {"text": "a", "othr": "b"},
        ["text, other", "text, text_pair"],
    ),
    ('text = "{title}. {body}"', {"title": "a", "bdy": "b"}, ["no body", "Did you mean bdy?", "or text,"]),
    ('text = "{title}. {body}"', {"x": "a"}, ["title, body", "or text,", "Known: x."]),
]


@pytest.mark.parametrize(("templates", "row", "told"), LACKING)
def test_a_lacking_column_is_named_and_both_ways(templates, row, told, tmp_path):
    message = refusal(own_file(tmp_path, templates), row)
    assert all(part in message for part in told), message


def test_a_row_that_is_none_of_an_expanded_task_is_told_both_ways():
    file = read_task_file(SUPERGLUE["multirc"])
    pool, row = pool_of(file.task("multirc")), Row("in:1", {"question": "a"})
    with pytest.raises(DataError, match=r"KeyError.*text, text_pair"):
        list(read_requests([row], pool, {"multirc": file}))


def test_a_task_file_that_renders_otherwise_than_the_student_learned_is_refused(tmp_path):
    learned = own_file(tmp_path, 'text = "{title}. {body}"').task("mine")
    file = own_file(tmp_path, 'text = "{title}: {body}"')
    message = refusal(file, {"title": "a", "body": "b"}, task=learned)
    assert learned.template in message
    assert file.template("mine") in message
    assert read(file, {"text": "a. b"}, task=learned) == [("a. b", "")]


def test_quotes_that_are_text_for_the_task_are_not_cut_off(tmp_path):
    file = own_file(tmp_path, 'text = "v2"\nread = {quotes = false}')
    assert "--columns task" in refusal(file, {"v2": "a"}, quoted=True)
    assert read(file, {"v2": '"a"'}) == [('"a"', "")]
    assert read(file, {"text": "a"}, quoted=True) == [("a", "")]
    same = own_file(tmp_path, 'text = "text"\nread = {quotes = false}')
    assert "--columns prepared" in refusal(same, {"text": "a"}, quoted=True)  # which of the two is not known
    assert read(same, {"text": "a"}, columns="prepared", quoted=True) == [("a", "")]


def test_a_blank_text_is_told_as_such(tmp_path):
    file = own_file(tmp_path, 'text = "body"')
    assert "body must not be empty" in refusal(file, {"body": " "})
    assert "body must not be empty" in refusal(file, {"body": ""})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A project with two tasks of its own and an untrained student of each."""
    templates = {"pairs": 'text = "text"\ntext_pair = "other"', "single": 'text = "On {title}: {body}"'}
    root = tmp_path_factory.mktemp("shop")
    (root / "tasks").mkdir()
    shutil.copy(ROOT / "params.yaml", root)
    students = {}
    for name, text in templates.items():
        path = root / "tasks" / f"{name}.toml"
        path.write_text(f"{HEAD}{text}\nread = {{delimiter = ';', quotes = false}}")
        students[name] = (read_task_file(path).task(name), "prefix", 4)
    return make_home(root, tiny_model, students)


@pytest.fixture
def shop(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the current folder."""
    monkeypatch.chdir(shutil.copytree(built, tmp_path / "shop"))
    return tmp_path / "shop"


def labelled(*arguments: str) -> list[dict]:
    code, out, error = run("predict", *arguments, "--format", "jsonl")
    assert code == 0, error
    return [json.loads(line) for line in out.splitlines()]


def shares(row: dict) -> tuple:
    return row["prediction"], row["probability_no"], row["probability_yes"]


def test_the_command_takes_the_projects_own_columns(shop, write_jsonl):
    own = write_jsonl(shop / "own.jsonl", [{"title": "bank", "body": "the river", "n": 3}])
    rendered = write_jsonl(shop / "rendered.jsonl", [{"text": "On bank: the river"}])
    (one,), (other,) = (labelled("--student", "single", "--input", str(path)) for path in (own, rendered))
    assert shares(one) == shares(other)
    assert (one["title"], one["n"], "text" in one) == ("bank", 3, False)
    both = write_jsonl(shop / "both.jsonl", [
        {"task": "single", "title": "bank", "body": "the river"},
        {"task": "pairs", "text": "bat", "other": "tree"},
        {"task": "pairs", "text": "bat", "text_pair": "tree"},
    ])  # fmt: skip
    mixed = labelled("--student", "single", "--student", "pairs", "--input", str(both))
    assert shares(mixed[0])[1:] == pytest.approx(shares(one)[1:], abs=1e-5)
    assert shares(mixed[1]) == shares(mixed[2])


def test_columns_task_reads_a_file_as_the_tasks_own_are_read(shop, write_jsonl):
    (shop / "in.csv").write_text('title;body\n"bank";the "river\n')
    wanted = write_jsonl(shop / "wanted.jsonl", [{"text": 'On "bank": the "river'}])
    (found,) = labelled("--student", "single", "--input", "in.csv", "--columns", "task")
    assert found["body"] == 'the "river'
    assert shares(found) == shares(labelled("--student", "single", "--input", str(wanted))[0])


def test_without_the_task_file_own_columns_are_refused_and_rendered_ones_are_not(shop, write_jsonl):
    own = write_jsonl(shop / "own.jsonl", [{"title": "bank", "body": "the river"}])
    rendered = write_jsonl(shop / "rendered.jsonl", [{"text": "On bank: the river"}])
    for content in ("x: 1\n", None):  # another program's params.yaml, and none
        (shop / "params.yaml").write_text(content) if content else (shop / "params.yaml").unlink()
        for options, told in (([], "'text'"), (["--columns", "task"], "--columns")):
            code, out, error = run("predict", "--student", "single", "--input", str(own), *options)
            assert (code, out) == (1, "")
            assert told in error.splitlines()[-1]
            assert "task file of single" in error.splitlines()[-1]
        assert len(labelled("--student", "single", "--input", str(rendered))) == 1


def test_the_option_columns_needs_an_input(shop):
    assert "--input" in fails("predict", "--student", "single", "--columns", "task")
