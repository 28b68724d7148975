"""Served students: a mixed batch gives what each student gives alone, whatever is in it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_tiny_model
from served import CB, COPA, TEXTS, WIC, make_home, make_student
from transformers.utils import logging as transformers_logging

import kdcache
from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_tokenizer
from kdcache.errors import DataError, ModelError
from kdcache.students.export import load_folder
from kdcache.students.student import predict

FOLDERS = {
    "wic-prefix": (WIC, "prefix", 4),
    "cb-prefix": (CB, "prefix", 7),
    "copa-prefix": (COPA, "prefix", 3),
    "wic-prompt": (WIC, "prompt", 5),
    "cb-p_tuning": (CB, "p_tuning", 2),
    "wic-head": (WIC, "head", 4),
    "copa-head": (COPA, "head", 4),
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


def alone(rows: list[tuple], double: bool = False) -> list[np.ndarray]:
    """Each row through its own student, in a batch of itself."""
    students = {name: kdcache.load_student(name) for name in {row[0] for row in rows}}
    for student in students.values() if double else ():
        to_double(student)
    return [students[name].logits([text], [second])[0] for name, text, second in rows]


def to_double(student) -> None:
    student.student.double()
    student.student.backbone.encoder.double()


@pytest.mark.parametrize(
    ("names", "batch_size"),
    [
        (["wic-prefix"], 32),
        (["wic-prefix", "cb-prefix"], 32),
        (["wic-prefix", "cb-prefix", "copa-prefix", "wic-head"], 7),
        (["wic-prompt", "cb-p_tuning", "copa-head"], 32),
        (["wic-head", "copa-head"], 3),
        (list(FOLDERS), 5),
    ],
)
def test_mixed_batch_is_each_student_alone(names, batch_size):
    rows = some_rows(names, 24, seed=len(names))
    pool = kdcache.StudentPool(names)
    for found, wanted in zip(pool.logits(rows, batch_size), alone(rows), strict=True):
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 1e-5
    for student in pool.students.values():
        to_double(student)
    for found, wanted in zip(pool.logits(rows, batch_size), alone(rows, double=True), strict=True):
        assert np.abs(found - wanted).max() <= 1e-10


@pytest.mark.parametrize("kind", ["deberta-v2", "modernbert"])
def test_backbones_that_count_padding_as_distance_serve_mixed_batches_too(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    backbone = build_tiny_model(Path("backbone"), architecture=kind)
    names = ["a", "b", "c", "d"]
    for name, tokens in zip(names[:3], (3, 3, 8), strict=True):
        make_student(Path(name), backbone, WIC, "prompt", tokens, tokens)
    make_student(Path("d"), backbone, CB, "head", 9)
    rows = some_rows(names, 16, seed=1)
    found = kdcache.StudentPool(names).logits(rows)
    assert max(np.abs(a - b).max() for a, b in zip(found, alone(rows), strict=True)) <= 1e-5


def test_answers_follow_their_rows():
    pool = kdcache.StudentPool(FOLDERS)
    rows = some_rows(list(FOLDERS), 20, seed=3)
    answers = dict(zip(rows, pool.predict(rows), strict=True))
    for row, found in zip(rows[::-1], pool.predict(rows[::-1]), strict=True):
        assert found.probabilities == pytest.approx(answers[row].probabilities, abs=1e-6)
    assert pool.predict([]) == []


@pytest.mark.parametrize("name", ["cb-prefix", "wic-prompt", "copa-prefix"])
def test_a_students_logits_are_those_of_its_training(name):
    """The same rows through the path that distill scores students by."""
    student, about = load_folder(Path(name))
    task, n = about.task, about.task.num_choices
    texts = [text for text in TEXTS[: len(TEXTS) // n] for _ in range(n)]
    encoded = encode(load_tokenizer(Path("backbone")), texts, TEXTS, 32, task.truncate, n)
    wanted = predict(student, encoded, 4)[0]
    rows = texts[::n], TEXTS if n == 1 else list(zip(TEXTS[::2], TEXTS[1::2], strict=True))
    loaded = kdcache.load_student(name)
    assert (loaded.task, loaded.labels) == (task, task.labels)
    assert np.abs(loaded.logits(*rows) - wanted).max() <= 1e-5
    for prediction, logits in zip(loaded.predict(*rows), wanted, strict=True):
        assert prediction.label == task.labels[logits.argmax()]
        shares = torch.from_numpy(logits).softmax(0).tolist()
        assert prediction.probabilities == pytest.approx(
            dict(zip(task.labels, shares, strict=True)), abs=1e-5
        )


@pytest.mark.parametrize("method", ["lora", "full"])
def test_references_are_served_alone_and_refused_in_a_pool(method, tmp_path):
    folder = make_student(tmp_path / method, Path("backbone"), WIC, method)
    encoded = encode(load_tokenizer(Path("backbone")), TEXTS, TEXTS[::-1], 32)
    wanted = predict(load_folder(folder)[0], encoded, 4)[0]
    assert np.abs(kdcache.load_student(folder).logits(TEXTS, TEXTS[::-1]) - wanted).max() <= 1e-5
    with pytest.raises(ModelError) as refusal:
        kdcache.StudentPool(["wic-prefix", folder])
    assert str(refusal.value) == (
        f"{folder}: a pool's students must have a prompt or a head alone, got one of method {method} with "
        "weights of its own. Serve it by kdcache.load_student."
    )


def test_pool_refuses_two_backbones_and_none():
    shutil.copytree("backbone", "other", dirs_exist_ok=True)
    make_student(Path("strange"), Path("other"), CB)
    with pytest.raises(ModelError) as refusal:
        kdcache.StudentPool(["wic-prefix", "strange"])
    assert str(refusal.value) == (
        "StudentPool: the students must share one backbone, got backbone (wic-prefix) and other (strange). "
        "Make a pool for each."
    )
    with pytest.raises(ModelError, match=r"must hold at least one student, got none. Name their folders."):
        kdcache.StudentPool([])


def test_elsewhere_the_missing_backbone_is_named(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for load in (kdcache.load_student, lambda folder: kdcache.StudentPool([folder])):
        with pytest.raises(ModelError, match=r"wic-head: its backbone must be at backbone, relative to the"):
            load(home / "wic-head")
        with pytest.raises(ModelError, match=r"nowhere/student.json: a student's folder must hold it"):
            load("nowhere")


def test_a_student_answers_to_its_folder_and_to_a_task_of_its_own():
    pool = kdcache.StudentPool(["wic-prefix", "wic-head", Path("cb-prefix")])
    by_task, by_folder = pool.predict([("cb", "bank", None), ("cb-prefix", "bank", "")])
    assert by_task == by_folder
    for name, message in (
        (
            "wic",
            "row 1: the task must have one student, got wic with wic-prefix, wic-head. "
            "Name one of these instead.",
        ),
        (
            "wicc",
            "row 1: the task or student must be one of the pool's, got 'wicc'. Did you mean wic?",
        ),
    ):
        with pytest.raises(DataError) as refusal:
            pool.predict([(name, "bank", None)])
        assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("name", "texts", "pairs", "message"),
    [
        (
            "wic-head", "bank", None,
            "predict: texts and pairs must be lists, got the text 'bank'. Put it in a list.",
        ),
        ("wic-head", ["a", "b"], ["c"], "predict: pairs must be as many as texts, 2, got 1."),
        ("wic-head", ["a", " "], None, "row 2: text must be text, and not empty, got ' '."),
        ("wic-head", ["a"], [5], "row 1: text_pair must be text, got 5."),
        ("wic-head", ["a\ud800"], None, "row 1: text must be Unicode text, got half a character, '\\ud800'."),
        ("copa-head", ["a"], None, "row 1: choices must be 2 texts in copa, got None."),
        ("copa-head", ["a"], ["ab"], "row 1: choices must be 2 texts in copa, got 'ab'."),
        ("copa-head", ["a"], [("b", "")], "row 1: a choice must be text, and not empty, got ''."),
        (
            "cb-prefix", ["a", "b"], ["c", "bank " * 30],
            "row 2: text_pair must leave room in the 32 tokens that students of cb read, got "
            f"'{'bank ' * 11}b.... Shorten it.",
        ),
    ],
)  # fmt: skip
def test_a_row_unlike_the_task_is_one_clear_line(name, texts, pairs, message):
    with pytest.raises(DataError) as refusal:
        kdcache.load_student(name).predict(texts, pairs)
    assert str(refusal.value) == message


def test_loading_is_quiet_and_leaves_the_noise_as_it_was(capfd):
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    kdcache.load_student("wic-prefix").predict(["bank"])
    kdcache.StudentPool(["wic-prefix"]).predict([("wic", "bank", None)])
    assert capfd.readouterr() == ("", "")
    after = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    assert after == before
