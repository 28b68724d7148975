"""Students in a pool: a mixed batch gives each row what its own student gives it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import build_tiny_model
from safetensors.torch import load_file, save_file
from served import CB, COPA, TEXTS, WIC, make_home, make_student
from transformers.utils import logging as transformers_logging

import kdcache
from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_tokenizer
from kdcache.errors import DataError, ModelError
from kdcache.serve.mixed_batches import LoadedStudent
from kdcache.students.folder import load_folder
from kdcache.students.student import predict

FOLDERS = {
    "wic-prefix": (WIC, "prefix", 4),
    "cb-prefix": (CB, "prefix", 7),
    "copa-prefix": (COPA, "prefix", 3),
    "wic-prompt": (WIC, "prompt", 5),
    "cb-p_tuning": (CB, "p_tuning", 2),
    "wic-head": (WIC, "head", 4),
    "copa-head": (COPA, "head", 4),
    "cb-deep": (CB, "deep_prompt", 3),
    "cb-late": (CB, "late_prefix", 3),
    "wic-mean": (WIC, "prefix", 6),
    "cb-mean": (CB, "prompt", 5),
    "cb-mean-deep": (CB, "deep_prompt", 2),
    "copa-mean-deep": (COPA, "deep_prompt", 4),
    "copa-mean-head": (COPA, "head", 4),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A project with students of three tasks and four methods over one backbone."""
    return make_home(tmp_path_factory.mktemp("served"), tiny_model, FOLDERS)


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def some_rows(names: list[str], count: int, seed: int) -> list[tuple]:
    """Rows for some of the students, of many lengths, with and without a second sequence."""
    rng = np.random.default_rng(seed)

    def text(shortest: int = 1) -> str:
        return " ".join(rng.choice(TEXTS, rng.integers(shortest, 4)))

    rows = []
    for name in rng.choice(names, count):
        second = (text(), text()) if name.startswith("copa") else text() if rng.random() < 0.7 else None
        rows.append((str(name), text(), second))
    return rows


@pytest.fixture(scope="module")
def students(home: Path) -> dict[str, LoadedStudent]:
    """Each student loaded by itself."""
    return load_students(home)


@pytest.fixture(scope="module")
def doubles(home: Path) -> dict[str, LoadedStudent]:
    """The same in double precision."""
    found = load_students(home)
    for student in found.values():
        to_double(student)
    return found


def load_students(home: Path) -> dict[str, LoadedStudent]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        return {name: kdcache.load_student(name) for name in FOLDERS}


def one_by_one(rows: list[tuple], students: dict[str, LoadedStudent]) -> list[np.ndarray]:
    """Each row through its own student, in a batch of itself."""
    return [students[name].logits([text], [second])[0] for name, text, second in rows]


def gap(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """The largest difference of logits; all rows must have the shapes wanted."""
    assert [row.shape for row in found] == [row.shape for row in wanted]
    return max(np.abs(a - b).max() for a, b in zip(found, wanted, strict=True))


def to_double(student) -> None:
    student.student.double()
    student.student.backbone.encoder.double()


@pytest.mark.parametrize(
    ("names", "batch_size"),
    [
        (["wic-prefix"], 32),
        (["wic-head", "copa-head"], 3),
        (list(FOLDERS), 5),
        *(
            pytest.param(names, size, marks=pytest.mark.slow)
            for names, size in (
                (["wic-prefix", "cb-prefix"], 32),
                (["wic-prefix", "cb-prefix", "copa-prefix", "wic-head"], 7),
                (["wic-prompt", "cb-p_tuning", "copa-head"], 32),
                (["wic-head", "copa-mean-head", "cb-mean-deep", "copa-mean-deep", "cb-deep"], 32),
                (["wic-mean", "cb-mean", "wic-prefix"], 7),
            )
        ),
    ],
)
def test_mixed_batch_is_each_student_by_itself(names, batch_size, students, doubles):
    rows = some_rows(names, max(8, 2 * len(names)), seed=len(names))
    pool = kdcache.StudentPool(names)
    assert gap(pool.logits(rows, batch_size), one_by_one(rows, students)) <= 1e-5
    for student in pool.students.values():
        to_double(student)
    assert gap(pool.logits(rows, batch_size), one_by_one(rows, doubles)) <= 1e-10


@pytest.mark.parametrize(
    ("kind", "method", "pooling"),
    [
        ("deberta-v2", "prompt", "cls"),
        ("modernbert", "deep_prompt", "mean"),
        pytest.param("deberta-v2", "deep_prompt", "mean", marks=pytest.mark.slow),
        pytest.param("modernbert", "prompt", "cls", marks=pytest.mark.slow),
    ],
)
def test_prompts_of_two_lengths_share_a_batch_where_positions_are_distances(
    tmp_path, monkeypatch, kind, method, pooling
):
    monkeypatch.chdir(tmp_path)
    backbone = build_tiny_model(Path("backbone"), architecture=kind)
    names = ["a", "b", "c", "d"]
    for name, tokens in zip(names[:3], (3, 3, 8), strict=True):
        make_student(Path(name), backbone, WIC, method, tokens, tokens, pooling=pooling)
    make_student(Path("d"), backbone, CB, "head", 9, pooling=pooling)
    rows = some_rows(names, 12, seed=1)
    students = {name: kdcache.load_student(name) for name in names}
    assert gap(kdcache.StudentPool(names).logits(rows), one_by_one(rows, students)) <= 1e-5


def test_cls_students_keep_their_shortcut_beside_mean_pooled_ones(home):
    """One encoder serves both: the last layer gives as much as each reads."""
    pool = kdcache.StudentPool(["wic-prefix", "cb-mean-deep"])
    encoders = {id(student.student.backbone.encoder) for student in pool.students.values()}
    assert len(encoders) == 1
    last = pool.students["wic-prefix"].student.backbone.encoder.encoder.layer[1]
    seen = []
    last.output.register_forward_hook(lambda _module, _inputs, states: seen.append(states.shape[1]))
    text = "the bank"
    for name, tokens in (
        ("wic", [1]),
        ("cb", [4]),
        ("wic", [1]),
    ):  # [CLS], two words, [SEP]; no virtual token
        seen.clear()
        pool.predict([(name, text, None)])
        assert seen == tokens


def test_answers_follow_their_rows():
    pool = kdcache.StudentPool(FOLDERS)
    rows = some_rows(list(FOLDERS), 20, seed=3)
    answers = dict(zip(rows, pool.predict(rows), strict=True))
    for row, found in zip(rows[::-1], pool.predict(rows[::-1]), strict=True):
        assert found.probabilities == pytest.approx(answers[row].probabilities, abs=1e-6)
    assert pool.predict([]) == []


@pytest.mark.parametrize("name", ["cb-prefix", "wic-prompt", "copa-prefix"])
def test_a_students_logits_are_those_of_its_training(name, students):
    """The same rows through the path that distill scores students by."""
    student, about = load_folder(Path(name))
    task, n = about.task, about.task.num_choices
    texts = [text for text in TEXTS[: len(TEXTS) // n] for _ in range(n)]
    encoded = encode(load_tokenizer(Path("backbone")), texts, TEXTS, 32, task.truncate, n)
    wanted = predict(student, encoded, 4)
    rows = texts[::n], TEXTS if n == 1 else list(zip(TEXTS[::2], TEXTS[1::2], strict=True))
    loaded = students[name]
    assert (loaded.task, loaded.labels) == (task, task.labels)
    assert np.abs(loaded.logits(*rows) - wanted).max() <= 1e-5
    for prediction, logits in zip(loaded.predict(*rows), wanted, strict=True):
        assert prediction.label == task.labels[logits.argmax()]
        shares = torch.from_numpy(logits).softmax(0).tolist()
        assert prediction.probabilities == pytest.approx(
            dict(zip(task.labels, shares, strict=True)), abs=1e-5
        )


@pytest.mark.parametrize("method", ["lora", "full"])
def test_students_with_weights_of_their_own_are_served_by_themselves(method, tmp_path):
    folder = make_student(tmp_path / method, Path("backbone"), WIC, method)
    encoded = encode(load_tokenizer(Path("backbone")), TEXTS, TEXTS[::-1], 32)
    wanted = predict(load_folder(folder)[0], encoded, 4)
    assert np.abs(kdcache.load_student(folder).logits(TEXTS, TEXTS[::-1]) - wanted).max() <= 1e-5
    rows = [("wic", text, second) for text, second in zip(TEXTS, TEXTS[::-1], strict=True)]
    assert np.abs(np.stack(kdcache.StudentPool([folder]).logits(rows)) - wanted).max() <= 1e-5
    with pytest.raises(ModelError, match=f"{method} has weights of its own and cannot share") as refusal:
        kdcache.StudentPool(["wic-prefix", folder])
    assert str(refusal.value).startswith(f"{folder}: ")


def test_pool_refuses_two_backbones_and_none():
    shutil.copytree("backbone", "other", dirs_exist_ok=True)
    weights = load_file("other/model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 1
    save_file(weights, "other/model.safetensors", {"format": "pt"})
    make_student(Path("strange"), Path("other"), CB)
    with pytest.raises(ModelError, match=r"got backbone \(wic-prefix\) and other \(strange\)"):
        kdcache.StudentPool(["wic-prefix", "strange"])
    with pytest.raises(ModelError, match="at least one student"):
        kdcache.StudentPool([])


def test_elsewhere_the_missing_backbone_is_named(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "moved"
    shutil.copytree(home, moved, ignore=shutil.ignore_patterns("backbone"))
    for load in (kdcache.load_student, lambda folder: kdcache.StudentPool([folder])):
        with pytest.raises(ModelError, match=r"wic-head: its backbone must be at backbone, relative to the"):
            load(moved / "wic-head")
        with pytest.raises(ModelError, match=r"nowhere/student.json: a student's folder must hold it"):
            load("nowhere")


def test_a_student_answers_to_its_folder_and_to_a_task_of_its_own():
    pool = kdcache.StudentPool(["wic-prefix", "wic-head", Path("cb-prefix")])
    by_task, by_folder = pool.predict([("cb", "bank", None), ("cb-prefix", "bank", "")])
    assert by_task.label == by_folder.label
    assert by_task.probabilities == pytest.approx(by_folder.probabilities, abs=1e-6)
    for name, told in (
        ("wic", "wic-prefix, wic-head"), ("wicc", "Did you mean wic?"), (["wic"], "wic"), (None, "None"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=f"row 1: .*{re.escape(told)}"):
            pool.predict([(name, "bank", None)])


@pytest.mark.parametrize(
    ("name", "texts", "pairs", "told"),
    [
        ("wic-head", "bank", None, ["lists", "'bank'"]),
        ("wic-head", iter(["a"]), None, ["lists", "iterator"]),
        ("wic-head", pd.DataFrame({"text": ["a"]}), None, ["lists", "DataFrame"]),
        ("wic-head", ["a", "b"], ["c"], ["2 and 1"]),
        ("wic-head", ["a", " "], None, ["row 2: ", "text", "empty", "' '"]),
        ("wic-head", ["a"], [5], ["row 1: ", "text_pair", "5"]),
        ("wic-head", ["a\ud800"], None, ["row 1: ", "text", "half", "'\\ud800'"]),
        ("copa-head", ["a"], None, ["row 1: ", "copa", "2 texts in choices", "None"]),
        ("copa-head", ["a"], ["ab"], ["row 1: ", "2 texts in choices", "'ab'"]),
        ("copa-head", ["a"], [("b", "")], ["row 1: ", "a choice", "empty", "''"]),
        ("cb-prefix", ["a", "b"], ["c", "bank " * 30], ["row 2: ", "text_pair", "32 tokens", "'bank bank "]),
    ],
)
def test_a_row_unlike_the_task_is_one_clear_line(name, texts, pairs, told, students):
    with pytest.raises(DataError) as refusal:
        students[name].predict(texts, pairs)
    message = str(refusal.value)
    assert len(message.splitlines()) == 1
    for part in told:
        assert part in message


def test_texts_come_as_any_sequence(students):
    wanted = students["wic-head"].predict(["bank", "bat"])
    for texts in (("bank", "bat"), pd.Series(["bank", "bat"], index=[7, 3]), np.array(["bank", "bat"])):
        assert students["wic-head"].predict(texts) == wanted


@pytest.mark.parametrize("value", [float("inf"), 1e38])
def test_logits_that_are_none_are_no_answer(value, home, tmp_path):
    shutil.copytree(home / "wic-head", tmp_path / "s")
    student = kdcache.load_student(tmp_path / "s")
    with torch.no_grad():
        for parameter in student.student.head.parameters():
            parameter.fill_(value)
    with pytest.raises(ModelError, match="finite"):
        student.predict(["bank"], ["the river"])


def test_loading_is_quiet_and_leaves_the_noise_as_it_was(capfd):
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    kdcache.load_student("wic-prefix").predict(["bank"])
    kdcache.StudentPool(["wic-prefix"]).predict([("wic", "bank", None)])
    assert capfd.readouterr() == ("", "")
    after = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    assert after == before
