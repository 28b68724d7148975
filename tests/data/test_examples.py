"""From a task file and rows to a task and examples, and every defect of a row in one line."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from six_tasks import write_powered

from kdcache.data.examples import read_examples
from kdcache.data.taskfile import read_task_file
from kdcache.errors import DataError, ParamsError

ROOT = Path(__file__).parents[2]
POWERED = sorted((ROOT / "studies" / "tasks").glob("*.toml"))
TASK_FILE = 'splits = {train = "train.csv", validation = "val.csv"}\ntext = "text"\n'
TRAIN = ["good,pos", "bad,neg", "fine,pos"]
VALIDATION = ["nice,pos", "ugly,neg"]


def read_own(path: Path, folder: Path):
    return read_examples(path.stem, read_task_file(path), folder)


@pytest.fixture
def own(tmp_path: Path):
    """Write a task file and its CSV files (or others), and read them."""

    def make(task_file: str = TASK_FILE, train=TRAIN, validation=VALIDATION, **files):
        for name, lines in (("train.csv", train), ("val.csv", validation)):
            (tmp_path / name).write_text("\n".join(["text,label", *lines]) + "\n")
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)
        (tmp_path / "mine.toml").write_text(task_file)
        return read_own(tmp_path / "mine.toml", tmp_path)

    return make


# One row each as the model reads it, from the invented rows.
RENDERED = {
    "ag_news": ("World", 'AP - "the bank lent us 0 .\\team', ""),
    "banking77": ("card_arrival", 'the bank\n lent us 0 ., "please"', ""),
    "clinc150": ("card_arrival", "train the bank lent us 0 .", ""),
    "cola": ("unacceptable", "the bank lent us 0 .", ""),
    "mrpc": ("different", 'train " the bank lent us 0 .', 'the bank lent us 0 . "'),
    "subj": ("subjective", "the bank lent us 0 . … é ", ""),
}


@pytest.mark.parametrize("path", POWERED, ids=lambda path: path.stem)
def test_powered_task_reads_as_meant_from_a_short_file(path, tmp_path: Path):
    assert len(path.read_text().splitlines()) <= 12
    task, splits = read_own(path, write_powered(tmp_path / "data"))
    first = splits["train"][0]
    rendered = (task.labels[first.label], first.text, first.text_pair)
    assert (first.example_id, rendered) == ("train-1", RENDERED[path.stem])
    counts = {split: len(rows) for split, rows in splits.items()}
    if path.stem == "subj":
        assert sum(counts.values()) == 48
    else:
        assert (counts["train"], counts["validation"], counts.get("tune", 24)) == (48, 24, 24)
    assert set(Counter(e.label for e in splits["train"])) == set(range(task.num_labels))
    assert task.metrics[0] == ("matthews" if path.stem == "cola" else "accuracy")


REAL = {  # labels, rows of each split, rows of the first and the last label in train
    "ag_news": (4, {"train": 10001, "validation": 7600}, 2509, 2538),
    "banking77": (77, {"train": 10003, "validation": 3080}, 162, 163),
    "clinc150": (150, {"train": 15000, "tune": 3000, "validation": 4500}, 100, 100),
    "cola": (2, {"train": 8551, "validation": 1043}, 2528, 6023),
    "mrpc": (2, {"train": 3667, "validation": 1725}, 1194, 2473),
    "subj": (2, {"train": 7000, "validation": 3000}, 3500, 3500),
}


@pytest.mark.parametrize(
    "path",
    # subj's hold-out of 10,000 groups takes long
    [pytest.param(path, marks=pytest.mark.slow if path.stem == "subj" else ()) for path in POWERED],
    ids=lambda path: path.stem,
)
def test_real_powered_task_reads_whole(path, tmp_path):
    shared = ROOT.parent / "shared" / "data" / "powered"
    if not shared.is_dir():
        pytest.skip("the real files are not beside this project")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "data").symlink_to(shared)
    task, splits = read_own(path, tmp_path / "tasks")
    counts = Counter(e.label for e in splits["train"])
    found = (
        task.num_labels, {split: len(rows) for split, rows in splits.items()},
        counts[0], counts[task.num_labels - 1],
    )  # fmt: skip
    assert found == REAL[path.stem]


def test_labels_are_those_of_train_sorted_numbers_by_value(own):
    assert own()[0].labels == ("neg", "pos")
    numbers = own(train=[f"text {n},{n}" for n in (10, 9, -1)], validation=["x,9"])
    assert numbers[0].labels == ("-1", "9", "10")


def test_listed_labels_keep_their_order_and_may_be_named(own):
    task, splits = own(TASK_FILE + 'labels = ["pos", "neg"]\n')
    assert (task.labels, [e.label for e in splits["train"]]) == (("pos", "neg"), [0, 1, 0])
    task, splits = own(TASK_FILE + 'labels = {pos = "good", neg = "bad"}\n')
    assert (task.labels, [e.label for e in splits["validation"]]) == (("good", "bad"), [0, 1])


def test_numbers_as_keys_in_yaml_are_the_files_labels(own, tmp_path: Path):
    text = "splits: {train: t.csv, validation: t.csv}\ntext: text\nlabels: {0: bad, 1: good}\n"
    own(t_csv="text,label\nx,1\ny,0\n")
    (tmp_path / "other.yaml").write_text(text)
    task, splits = read_own(tmp_path / "other.yaml", tmp_path)
    assert (task.labels, [e.label for e in splits["train"]]) == (("bad", "good"), [1, 0])


def test_labels_of_json_may_be_numbers_or_booleans(own, tmp_path: Path):
    for values, listed, names in (((True, False), "[false, true]", ("false", "true")),
                                  ((1, 0), "[0, 1]", ("0", "1"))):  # fmt: skip
        rows = [json.dumps({"text": f"text {v}", "label": v}) + "\n" for v in values]
        (tmp_path / "rows.jsonl").write_text("".join(rows))
        text = TASK_FILE.replace("train.csv", "rows.jsonl").replace("val.csv", "rows.jsonl")
        for task_file in (text, text + f"labels = {listed}\n"):
            task, splits = own(task_file)
            assert (task.labels, [e.label for e in splits["train"]]) == (names, [1, 0])


def test_template_joins_columns_under_any_name(own):
    text = 'splits = {train = "t.csv", validation = "t.csv"}\ntext = "{#1 a.b}: {body[0]}"\n'
    task, splits = own(text, t_csv="#1 a.b,body[0],label\nx,y,p\n,z,q\n")
    assert [e.text for e in splits["train"]] == ["x: y", ": z"]
    assert task.template.startswith("mine/")


def test_rows_are_numbered_or_have_ids_of_their_own(own):
    assert [e.example_id for e in own()[1]["train"]] == ["train-1", "train-2", "train-3"]
    splits = own(TASK_FILE.replace("val.csv", "train.csv") + 'id = "text"\n')[1]
    assert [e.example_id for e in splits["validation"]] == [
        "validation-good", "validation-bad", "validation-fine",
    ]  # fmt: skip


def test_rows_group_by_column_or_by_text(own):
    rows = own(train=["x,pos", "x,neg", "y,pos"])[1]["train"]
    assert rows[0].group == rows[1].group != rows[2].group
    rows = own(TASK_FILE + 'group = "label"\n')[1]["train"]
    assert [e.group for e in rows] == ["pos", "neg", "pos"]


def test_holdout_is_stratified_exact_and_keeps_texts_together(own):
    text = 'splits = {train = "train.csv"}\ntext = "text"\nholdout = {fraction = 0.3}\n'
    train = [f"text {i // 2},{'ab'[i // 2 % 2]}" for i in range(200)]
    splits = own(text, train=train)[1]
    held_out, rest = splits["validation"], splits["train"]
    assert (len(held_out), len(rest)) == (60, 140)
    assert Counter(e.label for e in held_out) == {0: 30, 1: 30}
    assert not {e.text for e in held_out} & {e.text for e in rest}
    again = own(text.replace("0.3}", "0.3, seed = 1}"), train=train)[1]
    assert {e.example_id for e in again["validation"]} != {e.example_id for e in held_out}


def test_unlabelled_rows_need_no_label_and_theirs_is_not_read(own):
    text = TASK_FILE.replace("validation", 'unlabelled = "more.csv", test = "test.csv", validation')
    splits = own(text, more_csv="text,label\nx,what?\ny,\n", test_csv="text\nz\n")[1]
    assert [e.label for e in splits["unlabelled"]] == [-1, -1]
    assert [e.label for e in splits["test"]] == [-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": [*TRAIN, "x,"]}, "train.csv:5: label must be a label (text, a whole number, true or "
         "false), got ''. Label the row, or move it into the split unlabelled."),
        ({"validation": [*VALIDATION, "x,mixed"]}, "val.csv:4: label must be one of the 2 labels of train, "
         "got 'mixed'. Known: neg, pos. Or list all labels in the task file."),
        ({"task_file": TASK_FILE + 'labels = ["pos", "neg"]\n', "train": [*TRAIN, "x,poss"]},
         "train.csv:5: label must be one of the 2 labels of the task file, got 'poss'. Did you mean pos?"),
        ({"train": ["x,pos", "y,pos"]}, "train.csv:2: train must hold at least 2 labels, got only pos. "
         "Check the column that label names."),
        ({"train": [*TRAIN, " ,pos"]}, "train.csv:5: text must not be empty, got ' '. "
         "Give the row a text, or remove it."),
        ({"task_file": TASK_FILE + 'id = "text"\n', "train": [*TRAIN, "good,neg"]},
         "train.csv:5: text must be unique, got 'good' again (first at train.csv:2). Renumber the rows."),
        ({"task_file": TASK_FILE + 'group = "label"\n', "train": [*TRAIN, "x,"]},
         "train.csv:5: label must be a label (text, a whole number, true or false), got ''. "
         "Label the row, or move it into the split unlabelled."),
        ({"task_file": TASK_FILE + 'label = "labels"\n'}, "train.csv: the column 'labels' must be there, "
         "got none of that name. Did you mean label? "
         "A task file can name the columns of a file without a header: read.header."),
    ],
)  # fmt: skip
def test_bad_row_names_file_line_value_and_remedy(own, tmp_path: Path, change, message):
    with pytest.raises(DataError) as caught:
        own(**change)
    assert str(caught.value).replace(f"{tmp_path}/", "") == message


@pytest.mark.parametrize(("value", "shown"), [(None, "None"), (float("nan"), "nan"), (5, "5")])
def test_null_and_nan_are_no_text(own, tmp_path: Path, value, shown):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": value, "label": "a"}) + "\n")
    with pytest.raises(DataError, match=rf"rows.jsonl:1: text must be text, got {shown}. Give the row one"):
        own(TASK_FILE.replace("train.csv", "rows.jsonl") + 'labels = ["a", "b"]\n')


@pytest.mark.parametrize("column", ["text", "label"])
def test_null_of_parquet_is_no_value(own, tmp_path: Path, column):
    rows = [{"text": "x", "label": "pos"}, {"text": "y", "label": "neg"}]
    rows[1][column] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=rf"rows.parquet row 2: {column} must be .*, got None\."):
        own(TASK_FILE.replace("train.csv", "rows.parquet"))
    for labels, row, told in (([0.0, float("nan")], 2, "nan"), ([0.5, 1.0], 1, "0.5")):
        pq.write_table(pa.table({"text": ["x", "y"], "label": labels}), tmp_path / "rows.parquet")
        with pytest.raises(DataError, match=rf"row {row}: label must be a label \(text, .*, got {told}\."):
            own(TASK_FILE.replace("train.csv", "rows.parquet"))


def test_choices_are_second_texts_and_the_label_says_which_is_right(own):
    text = TASK_FILE + 'choices = ["a", "{b}!"]\nlabels = [1, 2]\n'
    task, splits = own(text.replace("val.csv", "train.csv").replace("train.csv", "t.csv"),
                       t_csv="text,a,b,label\nwhy,x,y,2\nhow,v,w,1\n")  # fmt: skip
    assert (task.num_choices, task.num_outputs, task.labels) == (2, 1, ("1", "2"))
    assert [(e.label, e.text, e.choices) for e in splits["train"]] == [
        (1, "why", ("x", "y!")), (0, "how", ("v", "w!")),
    ]  # fmt: skip
    assert len({e.group for e in splits["train"]}) == 2


def test_spans_of_a_csv_are_marked(own):
    text = TASK_FILE + 'spans = [{column = "text", start = "from", end = "to", mark = "_"}]\n'
    rows = "text,from,to,label\nthe bank,4,8,pos\na bank,0,1,neg\n"
    _, splits = own(text.replace("val.csv", "t.csv").replace("train.csv", "t.csv"), t_csv=rows)
    assert [e.text for e in splits["train"]] == ["the _bank_", "_a_ bank"]
    with pytest.raises(
        DataError, match=r"t.csv:2: from, to must be a span of text \(8 characters\), got 4, 9"
    ):
        own(text.replace("val.csv", "t.csv").replace("train.csv", "t.csv"), t_csv=rows.replace("4,8", "4,9"))


def test_marks_of_spans_that_touch_or_hold_each_other_do_not_cross(own):
    text = TASK_FILE.replace("val.csv", "t.csv").replace("train.csv", "t.csv") + (
        'spans = [{column = "text", start = "a", end = "b", mark = "*"},\n'
        '         {column = "text", start = "c", end = "d", mark = "#"}]\n'
    )
    rows = "text,a,b,c,d,label\nabcde,0,3,3,5,pos\nabcde,3,5,0,3,neg\nabcde,0,5,0,3,neg\nabcde,2,5,0,5,neg\n"
    _, splits = own(text, t_csv=rows)
    assert [e.text for e in splits["train"]] == ["*abc*#de#", "#abc#*de*", "*#abc#de*", "#ab*cde*#"]


@pytest.mark.parametrize("cell", ["", " ", "-1"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_test_split_without_labels_is_one_in_any_format(own, tmp_path: Path, cell, kind):
    text = f'splits = {{train = "train.csv", validation = "val.csv", test = "t.{kind}"}}\ntext = "text"\n'
    rows = [{"text": "who knows", "label": cell}, {"text": "good", "label": "pos"}]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    elif kind == "jsonl":
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        (tmp_path / "t.csv").write_text(f"text,label\nwho knows,{cell}\ngood,pos\n")
    _, splits = own(text)
    assert [e.label for e in splits["test"]] == [-1, 1]


def test_numbers_of_parquet_that_stand_for_no_label(own, tmp_path: Path):
    text = 'splits = {train = "train.csv", validation = "val.csv", test = "t.parquet"}\ntext = "text"\n'
    pq.write_table(pa.table({"text": ["a", "b"], "label": [-1.0, float("nan")]}), tmp_path / "t.parquet")
    assert [e.label for e in own(text)[1]["test"]] == [-1, -1]


@pytest.mark.parametrize(
    ("labels", "told"),
    [(("first", "second", "third"), "third"), ((0, 1), "choices"), ((1, 2, 4), "choices"), ((0, 1, 2), "")],
)
def test_labels_of_choices_that_are_not_listed_are_numbers_in_a_row(own, labels, told):
    """Sorted by name they would point at other choices than their author meant."""
    text = TASK_FILE.replace("val.csv", "t.csv").replace("train.csv", "t.csv") + 'choices = ["a", "b", "c"]\n'
    rows = "text,a,b,c,label\n" + "".join(f"why {label},x,y,z,{label}\n" for label in labels)
    if told:
        with pytest.raises(DataError, match=told):
            own(text, t_csv=rows)
    else:
        assert [e.label for e in own(text, t_csv=rows)[1]["train"]] == [0, 1, 2]


def test_a_metric_of_two_labels_is_refused_for_three(own):
    with pytest.raises(DataError, match="f1a"):
        own(TASK_FILE + 'metrics = ["f1a"]\n', train=[*TRAIN, "so-so,mixed"])


def test_utf_16_that_does_not_say_its_order_is_one_line(own, tmp_path: Path):
    text = TASK_FILE.replace("val.csv", "t.csv").replace("train.csv", "t.csv")
    (tmp_path / "t.csv").write_bytes("text,label\na,pos\nb,neg\n".encode("utf-16-le"))
    with pytest.raises(DataError, match="utf-16-le"):
        own(text + 'read = {encoding = "utf-16"}\n')
    _, splits = own(text + 'read = {encoding = "utf-16-le"}\n')
    assert [e.text for e in splits["train"]] == ["a", "b"]


def test_a_task_file_may_begin_with_a_byte_order_mark(own):
    assert own("\ufeff" + TASK_FILE)[0] == own(TASK_FILE)[0]


def test_units_and_diagnostics_are_for_own_tasks_too(own):
    text = TASK_FILE + (
        'unit = "text"\nmetrics = ["exact_match"]\n'
        '[diagnostics.hard]\nfile = "hard.csv"\ntext = "body"\nunit = "body"\nmetrics = ["accuracy"]\n'
    )
    task, splits = own(text, hard_csv="body,label\nodd,pos\n")
    assert (task.metrics, task.columns) == (("exact_match",), ("unit",))
    assert task.diagnostics == {"hard": ("accuracy",)}
    assert [(e.example_id, e.text, e.label, e.unit) for e in splits["hard"]] == [
        ("hard-1", "odd", 1, "hard-odd")
    ]
    assert splits["train"][0].unit == "train-good"


def test_a_star_takes_all_files_that_fit_in_order(own, tmp_path: Path):
    text = TASK_FILE.replace("train.csv", "part-*.csv")
    for name, row in (("part-1", "b,neg"), ("part-0", "a,pos")):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{row}\n")
    assert [e.text for e in own(text)[1]["train"]] == ["a", "b"]
    with pytest.raises(DataError, match=r"none-\*.csv: the train split of mine must be a file there"):
        own(text.replace("part-", "none-"))


def test_a_holdout_takes_test_rows_beside_the_same_validation_rows(tmp_path: Path):
    """Test comes out of what validation leaves, so that asking for it changes no validation row."""
    rows = "\n".join(f"text {i},{'ab'[i % 2]}" for i in range(100))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}\n")

    def read(cut: str) -> dict[str, set[str]]:
        path = tmp_path / "own.toml"
        lines = ['splits = {train = "rows.csv"}', f"holdout = {{{cut}}}", 'text = "text"', 'label = "label"']
        path.write_text("\n".join(lines))
        found = read_examples("own", read_task_file(path), tmp_path)[1]
        return {split: {example.text for example in rows} for split, rows in found.items()}

    plain, both = read("fraction = 0.2"), read("fraction = 0.2, test = 0.2")
    assert {split: len(found) for split, found in both.items()} == {"train": 60, "validation": 20, "test": 20}
    assert both["validation"] == plain["validation"]
    assert both["train"] | both["test"] == plain["train"]
    with pytest.raises(ParamsError, match=r"holdout\.test"):
        read("fraction = 0.2, test = 0.45")


def test_labels_may_lie_in_files_of_their_own(tmp_path: Path):
    """Line by line; a blank line, a line too many or too few, and a label in both places are refused."""
    (tmp_path / "mine.toml").write_text(
        'splits = {train = "texts.txt", validation = "val.csv"}\ntext = "text"\n'
        'read = {pattern = "{text}"}\nlabel_files = {train = "labels.txt", validation = "labels.csv"}\n'
    )
    (tmp_path / "texts.txt").write_text("a, b\nc\n")
    (tmp_path / "val.csv").write_text("d\n")
    (tmp_path / "labels.csv").write_text("number,label\n7,bad\n")

    def read(labels: str):
        (tmp_path / "labels.txt").write_text(labels)
        return read_own(tmp_path / "mine.toml", tmp_path)

    task, rows = read("good\nbad\n")
    assert task.labels == ("bad", "good")
    assert [(e.text, e.label) for split in ("train", "validation") for e in rows[split]] == [
        ("a, b", 1), ("c", 0), ("d", 0),
    ]  # fmt: skip
    for labels, place in (("good\n", r"texts.txt:2"), ("good\nbad\nbad\n", r"labels.txt:3")):
        with pytest.raises(DataError, match=place):
            read(labels)
    with pytest.raises(DataError, match=r"labels.txt"):
        read("good\n\nbad\n")
    text = (tmp_path / "mine.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("{text}", "{label} {text}"))
    with pytest.raises(DataError, match=r"labels.txt"):
        read("good\nbad\n")
    for change, message in (
        (('train = "lab', 'tran = "lab'), "tran"),
        (("read", "hub = {name='a', revision='b'}\nread"), "hub"),
    ):
        (tmp_path / "mine.toml").write_text(text.replace(*change))
        with pytest.raises(ParamsError, match=message):
            read("good\nbad\n")
