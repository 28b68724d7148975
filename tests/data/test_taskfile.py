"""Task files: TOML and YAML say the same, every mistake is found before a row is read."""

from pathlib import Path

import pytest

from kdcache.data.find import own_tasks
from kdcache.data.metrics import METRICS
from kdcache.data.taskfile import Files, HoldOut, TaskFile, read_task_file
from kdcache.errors import ParamsError

MINIMAL = 'splits = {train = "train.csv", validation = "val.csv"}\ntext = "review"\n'


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_minimal_file_needs_splits_and_text_alone(tmp_path: Path):
    task = read_task_file(write(tmp_path / "mine.toml", MINIMAL))
    assert task == TaskFile(splits=Files(train="train.csv", validation="val.csv"), text="review")
    assert task.splits.named == {"train": "train.csv", "validation": "val.csv"}


def test_yaml_says_the_same_as_toml(tmp_path: Path):
    toml = """
        splits = {train = "a.tsv"}
        text = "{title}. {body}"
        labels = {0 = "no", 1 = "yes"}
        metrics = ["macro_f1"]
        holdout = {fraction = 0.2, seed = 3}
        read = {header = ["label", "title", "body"], quotes = false}
    """
    yaml = """
        splits: {train: a.tsv}
        text: "{title}. {body}"
        labels: {"0": "no", "1": "yes"}
        metrics: [macro_f1]
        holdout: {fraction: 0.2, seed: 3}
        read: {header: [label, title, body], quotes: false}
    """
    one = read_task_file(write(tmp_path / "one.toml", toml))
    assert one == read_task_file(write(tmp_path / "two.yaml", yaml))
    assert one.holdout == HoldOut(0.2, 3)
    assert one.columns == ("title", "body")


def test_template_names_its_version(tmp_path: Path):
    one = read_task_file(write(tmp_path / "one.toml", MINIMAL))
    two = read_task_file(write(tmp_path / "two.toml", MINIMAL.replace('"review"', '"A review: {review}"')))
    assert one.template("one") == "one/" + one.template("x").removeprefix("x/")
    assert one.template("t") != two.template("t")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL.replace("text", "txet"),
         "{path}.txet: the key must be a known parameter, got 'txet'. Did you mean text?\n"
         "{path}.text: the parameter must be set, got nothing."),
        (MINIMAL.replace("validation", "validaton"),
         "{path}.splits.validaton: the key must be a known parameter, got 'validaton'. "
         "Did you mean validation?"),
        (MINIMAL + 'metrics = ["acuracy"]\n',
         "{path}.metrics[0]: it must be one of accuracy, macro_f1, matthews, got 'acuracy'."),
        (MINIMAL + "read = {quotes = 0}\n", "{path}.read.quotes: it must be true or false, got 0."),
        (MINIMAL + 'read = {encoding = "utf9"}\n',
         "{path}.read.encoding: it must be an encoding that Python knows, got 'utf9'. "
         "For example: utf-8, latin-1, cp1252, utf-16."),
        (MINIMAL + "holdout = {fraction = 0.2}\n",
         "{path}: validation must be a file in splits or a holdout of train, got both. "
         "Set splits.validation, or for example holdout = {fraction = 0.2}."),
        ('splits = {train = "a.csv"}\ntext = "a"\n',
         "{path}: validation must be a file in splits or a holdout of train, got neither. "
         "Set splits.validation, or for example holdout = {fraction = 0.2}."),
        (MINIMAL + 'labels = ["a", "b", "a"]\n',
         "{path}.labels: they must be at least 2 different ones, got a, b, a."),
        (MINIMAL + 'labels = {0 = "a"}\n', "{path}.labels: they must be at least 2 different ones, got a."),
        (MINIMAL + "labels = 3\n", "{path}.labels: it must be a list or a mapping, got 3."),
        (MINIMAL + "labels = \n", "{path}: the text must be TOML, got an error: "
         "Invalid value (at line 3, column 10)."),
    ],
)  # fmt: skip
def test_mistake_is_named_with_its_remedy(tmp_path: Path, text, message):
    path = write(tmp_path / "mine.toml", text)
    with pytest.raises(ParamsError) as caught:
        read_task_file(path)
    assert str(caught.value) == message.replace("{path}", path.as_posix())


def test_task_file_of_another_encoding_is_refused(tmp_path: Path):
    (tmp_path / "mine.toml").write_bytes((MINIMAL + "# é\n").encode("latin-1"))
    with pytest.raises(ParamsError, match=r"mine.toml: a task file must be UTF-8, got byte 0xe9\."):
        read_task_file(tmp_path / "mine.toml")


def test_file_must_be_there_under_a_name_a_task_can_have(tmp_path: Path):
    with pytest.raises(ParamsError, match=r"mine.toml: the task file must exist, got nothing there."):
        read_task_file(tmp_path / "mine.toml")
    for name in ("Mine.toml", "my task.toml", "mine.json"):
        with pytest.raises(ParamsError, match=r"must be called NAME.toml or NAME.yaml, NAME of a-z"):
            read_task_file(write(tmp_path / name, MINIMAL))


def test_metrics_are_ones_that_are_computed():
    offered = TaskFile.__annotations__["metrics"].__args__[0].__args__
    assert set(offered) <= set(METRICS)


def test_own_tasks_are_found_by_name_and_none_hides_another(tmp_path: Path):
    assert own_tasks(tmp_path / "absent") == {}
    (tmp_path / "tasks").mkdir()
    mine = write(tmp_path / "tasks" / "mine.toml", MINIMAL)
    write(tmp_path / "tasks" / "README.md", "no task")
    other = write(tmp_path / "other.yaml", "")
    assert own_tasks(tmp_path / "tasks", [other, mine]) == {"mine": mine, "other": other}
    again = write(tmp_path / "mine.yaml", "")
    with pytest.raises(
        ParamsError, match=r"mine.yaml: a task file must have a name of its own, got that of "
    ):
        own_tasks(tmp_path / "tasks", [again])
    with pytest.raises(ParamsError, match=r"cb.toml: .* got that of a SuperGLUE task. Rename it."):
        own_tasks(tmp_path, [write(tmp_path / "cb.toml", MINIMAL)])
