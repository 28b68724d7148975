"""Task files: TOML and YAML say the same, every mistake is found before a row is read."""

from pathlib import Path

import pytest

from kdcache.data.taskfile import own_tasks, read_task_file
from kdcache.data.taskfile_schema import Files, HoldOut, TaskFile
from kdcache.errors import ParamsError
from kdcache.places import SPLIT_LETTERS

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


def test_what_the_model_reads_decides_the_version_unless_it_is_named(tmp_path: Path):
    texts = [
        MINIMAL,
        MINIMAL.replace('"review"', '"A review: {review}"'),
        MINIMAL + 'text_pair = "title"\n',
        MINIMAL + 'choices = ["title", "body"]\n',
        MINIMAL + 'spans = [{column = "review", start = "a", end = "b"}]\n',
        MINIMAL + 'spans = [{column = "review", start = "a", end = "b", mark = "#"}]\n',
        MINIMAL + 'text_pair = "title"\ntruncate = "first"\n',
        MINIMAL + "version = 1\n",
    ]
    files = [read_task_file(write(tmp_path / "one.toml", text)) for text in texts]
    assert len({file.template("t") for file in files}) == len(texts)
    assert files[0].template("one") == "one/" + files[0].template("x").removeprefix("x/")
    assert files[-1].template("t") == "t/1"
    same = read_task_file(write(tmp_path / "one.toml", MINIMAL + 'label = "stars"\ngroup = "author"\n'))
    assert same.template("t") == files[0].template("t")


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
         "{path}.metrics[0]: there is no metric 'acuracy'. Did you mean accuracy?"),
        (MINIMAL + 'metrics = ["exact_match"]\n',
         '{path}.metrics[0]: exact_match needs a column. Name it: unit = "…".'),
        (MINIMAL + 'text_pair = "a"\nchoices = ["b", "c"]\n',
         "{path}.choices: set either choices or text_pair, not both."),
        (MINIMAL + 'choices = ["b", "c"]\nlabels = [0, 1, 2]\n',
         "{path}.choices: there must be one per label (3), got 2."),
        (MINIMAL + 'spans = [{column = "reviw", start = "a", end = "b"}]\n',
         "{path}.spans[0].column: no text has the column 'reviw'. Did you mean review?"),
        (MINIMAL + 'required = ["title"]\n',
         "{path}.required[0]: no text has the column 'title'. Known: review."),
        (MINIMAL.replace("}", ', test = "t.csv"}') + 'optional = ["tset"]\n',
         "{path}.optional: the split 'tset' must not be absent. Did you mean test?"),
        (MINIMAL + 'diagnostics = {test = {file = "a.csv", metrics = ["accuracy"]}}\n',
         "{path}.diagnostics.test: the name is taken, or not of a-z, 0-9, _ and -. Rename it."),
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
    expected = message.replace("{path}", path.as_posix())
    assert sorted(str(caught.value).splitlines()) == sorted(expected.splitlines())


DIAGNOSTIC = '[diagnostics.{}]\nfile = "a.csv"\nmetrics = ["accuracy"]\n'


@pytest.mark.parametrize("name", ["x" * (SPLIT_LETTERS + 1), "aux", "hard-00000-of-00002"])
def test_a_diagnostic_that_a_cache_could_not_hold_is_refused_before_any_row_is_read(tmp_path: Path, name):
    read_task_file(write(tmp_path / "mine.toml", MINIMAL + DIAGNOSTIC.format("x" * SPLIT_LETTERS)))
    with pytest.raises(ParamsError) as caught:
        read_task_file(write(tmp_path / "mine.toml", MINIMAL + DIAGNOSTIC.format(name)))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{(tmp_path / 'mine.toml').as_posix()}.diagnostics: ")
    assert name[:20] in line


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


def test_accuracy_is_added_unless_rows_are_scored_in_units(tmp_path: Path):
    for metrics, unit, scored in (
        ('["matthews"]', "", ("matthews", "accuracy")),
        ('["macro_f1", "accuracy"]', "", ("macro_f1", "accuracy")),
        ('["f1a", "exact_match"]', 'unit = "question"\n', ("f1a", "exact_match")),
    ):
        file = read_task_file(write(tmp_path / "mine.toml", f"{MINIMAL}metrics = {metrics}\n{unit}"))
        task = file.task("mine", ["no", "yes"])
        assert task.metrics == scored
        assert task.columns == (("unit",) if unit else ())


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
