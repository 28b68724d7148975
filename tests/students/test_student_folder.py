"""Folders: canonical, without pickle, and read back to the same logits by whom the card says."""

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_tiny_model
from engine import TEXTS, build_rows, build_run, fit, share_off
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, pipeline

from kdcache.data.task import Task
from kdcache.errors import ModelError
from kdcache.students import folder as student_folder
from kdcache.students.folder import RELOAD_TOLERANCE, load_folder, save_student
from kdcache.students.methods import METHODS
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.student import Student, predict
from kdcache.students.training_rows import StudentRows

TASK = Task("t", ("a", "b", "c"), "t/1", ("accuracy",))
CARD = {"task": "t", "arm": "ce", "seed": "0"}
ABOUT = {"max_length": 32, "task": TASK}
LIBRARIES = ("peft", "transformers", "kdcache")


@pytest.fixture(scope="module")
def built(tiny_model: Path) -> StudentRows:
    return build_rows(tiny_model)


@pytest.fixture
def rows(built: StudentRows, tiny_model: Path, monkeypatch) -> StudentRows:
    monkeypatch.chdir(tiny_model.parent)
    return built


def trained(folder: Path, rows: StudentRows, method: str, pooling: str = "cls") -> Student:
    backbone = rows.inputs.backbone.read_by(pooling)
    run = build_run(folder, backbone, rows, method, lr=1e-2, epochs=1)
    fit(run)
    return run.student


def code_of(folder: Path) -> str:
    """The Python code of a folder's model card, of this folder."""
    code = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    return code.replace('"PATH"', repr(str(folder)))


def card_logits(code: str) -> np.ndarray:
    """What a card's code computes of these texts, where it may import kdcache only if it says so."""
    names: dict = {}
    exec(code.replace('["a text"], None', repr((TEXTS, TEXTS[::-1]))), names)
    if "student" in names:
        return names["student"].logits(TEXTS, TEXTS[::-1])
    if "model" in names:
        tokenizer = AutoTokenizer.from_pretrained("model")
        batch = tokenizer(TEXTS, TEXTS[::-1], padding=True, return_tensors="pt")
        with torch.no_grad():
            names["logits"] = names["model"].eval()(**batch).logits
    return names["logits"].numpy()


BY_DEFAULT = [
    ("deep_prompt", "cls"), ("prompt", "cls"), ("head", "mean"), ("prompt", "mean"), ("full", "mean")
]  # fmt: skip
OTHERS = [(m, p) for m in METHODS for p in ("cls", "mean") if (m, p) not in BY_DEFAULT]


@pytest.mark.filterwarnings("ignore:PrefixTuning")  # peft, of prefixes and modules_to_save
@pytest.mark.parametrize(
    ("method", "pooling"), BY_DEFAULT + [pytest.param(*cell, marks=pytest.mark.slow) for cell in OTHERS]
)
def test_a_folder_gives_the_students_logits_to_the_code_of_its_card(
    tiny_model: Path, rows, method, pooling, tmp_path
):
    student, folder = trained(tiny_model, rows, method, pooling), tmp_path / "s"
    assert save_student(student, folder, tiny_model, ABOUT, CARD, rows.encoded) == {}
    again, about = load_folder(folder)
    ours = predict(student, rows.encoded, len(TEXTS))
    assert share_off(predict(again, rows.encoded, 4), ours) <= 1e-5
    assert (about.method, about.backbone, about.task, about.pooling) == (method, "model", TASK, pooling)
    assert again.backbone.pooling == pooling
    code = code_of(folder)
    assert {name for name in LIBRARIES if f" {name}" in code} >= {METHODS[method].loader(pooling)}
    assert ("import kdcache" in code) == (METHODS[method].loader(pooling) == "kdcache")
    assert f"library_name: {METHODS[method].loader(pooling)}\n" in (folder / "README.md").read_text()
    assert share_off(card_logits(code), ours) <= 1e-5


@pytest.mark.slow
def test_the_code_of_the_cards_runs_where_there_is_no_kdcache(tiny_model: Path, rows, tmp_path):
    wanted = {}
    for pooling in ("cls", "mean"):
        for method, facts in METHODS.items():
            if facts.loader(pooling) != "kdcache":
                student, folder = trained(tiny_model, rows, method, pooling), tmp_path / f"{method}-{pooling}"
                save_student(student, folder, tiny_model, ABOUT, CARD, rows.encoded)
                wanted[code_of(folder)] = predict(student, rows.encoded, len(TEXTS))
    (tmp_path / "cards.json").write_text(json.dumps(list(wanted)))
    needed = f"import json, numpy as np, torch\nfrom transformers import AutoTokenizer\nTEXTS = {TEXTS}\n"
    script = (
        "import sys, warnings\nsys.modules['kdcache'] = None\nwarnings.simplefilter('ignore')\n"
        f"{needed}{inspect.getsource(card_logits)}"
        "codes = json.load(open(sys.argv[1]))\nprint(json.dumps([card_logits(c).tolist() for c in codes]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "cards.json")],
        capture_output=True, text=True, check=True, cwd=tiny_model.parent,
    )  # fmt: skip
    found = json.loads(out.stdout.splitlines()[-1])
    assert len(found) == 4 + 6
    for logits, ours in zip(found, wanted.values(), strict=True):
        assert share_off(np.array(logits), ours) <= 1e-5


STALE = [
    {"id2label": {"0": "c", "1": "b", "2": "a"}, "label2id": {"c": 0, "b": 1, "a": 2}},
    {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}, "problem_type": "regression"},
    {"label2id": {"a": 2, "b": 1, "c": 0}, "problem_type": "multi_label_classification"},
]


@pytest.mark.filterwarnings("ignore:PrefixTuning")
@pytest.mark.parametrize("stale", STALE)
@pytest.mark.parametrize("method", ["full", "head"])
def test_the_labels_are_the_tasks_whatever_the_base_was_trained_for(
    tiny_model: Path, tmp_path, monkeypatch, method, stale
):
    shutil.copytree(tiny_model, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | stale))
    monkeypatch.chdir(tmp_path)
    rows, folder = build_rows(Path("model")), tmp_path / "s"
    student = trained(Path("model"), rows, method)
    save_student(student, folder, Path("model"), ABOUT, CARD, rows.encoded)
    names: dict = {}
    exec(code_of(folder), names)
    known = names["model"].config
    assert (known.id2label, known.label2id) == ({0: "a", 1: "b", 2: "c"}, {"a": 0, "b": 1, "c": 2})
    if method == "full":
        AutoTokenizer.from_pretrained("model").save_pretrained(folder)
        ask = pipeline("text-classification", str(folder), device="cpu")
        ours = predict(student, rows.encoded, len(TEXTS))
        found = [ask({"text": a, "text_pair": b}) for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
        assert [one["label"] for one in found] == [TASK.labels[k] for k in ours.argmax(1)]
        p = np.exp(ours) / np.exp(ours).sum(1, keepdims=True)
        assert np.allclose([one["score"] for one in found], p.max(1), atol=1e-5)


@pytest.mark.parametrize("method", ["prefix", "prompt", "lora"])
def test_folder_is_canonical_and_holds_no_pickle(tiny_model: Path, rows, tmp_path, method):
    bytes_ = []
    for name in ("a", "b"):
        student = trained(tiny_model, rows, method)
        save_student(student, tmp_path / name, tiny_model, ABOUT, CARD, rows.encoded)
        files = sorted(path for path in (tmp_path / name).iterdir())
        assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}
        bytes_.append([path.read_bytes() for path in files])
    assert bytes_[0] == bytes_[1]
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "model"
    assert config["modules_to_save"] == ["classifier", "pooler", "score"]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_student_whose_folder_gives_other_logits_is_kept_and_marked(
    tiny_model: Path, rows, pooling, tmp_path, capsys
):
    student, folder = trained(tiny_model, rows, "prefix", pooling), tmp_path / "x"
    student.head.chain[-1].register_forward_hook(lambda _m, _i, output: output + 1.0)
    gap = save_student(student, folder, tiny_model, ABOUT, CARD, rows.encoded)["reload_gap"]
    assert 0.01 < gap <= 1
    assert f"| reload_gap | {gap:.2g} of" in (folder / "README.md").read_text()
    assert load_folder(folder)[1].method == "prefix"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("x: ")]
    assert "plain peft must give the student's logits within 1e-05" in line
    assert f"{gap:.2g}" in line


@pytest.mark.parametrize("shape", [(), (0,), (4,), (4, 16), (4, 200)])
def test_a_late_prompt_of_another_shape_is_refused(tiny_model: Path, rows, shape, tmp_path):
    student, folder = trained(tiny_model, rows, "late_prefix"), tmp_path / "x"
    assert save_student(student, folder, tiny_model, ABOUT, CARD, rows.encoded) == {}
    save_file({"prompt_embeddings": torch.zeros(shape)}, folder / "prompt.safetensors")
    with pytest.raises(ModelError):
        load_folder(folder)


@pytest.mark.parametrize("method", ["prefix", "deep_prompt", "full"])  # read by peft, kdcache, transformers
def test_a_student_whose_folder_does_not_load_is_kept_and_marked(
    tiny_model: Path, rows, method, tmp_path, capsys, monkeypatch
):
    def fail(*_arguments, **_options):
        raise OSError("no such model\nsecond line")

    student, folder = trained(tiny_model, rows, method), tmp_path / "x"
    with monkeypatch.context() as broken:
        for reader in ("load_folder", "_plain_logits"):
            broken.setattr(student_folder, reader, fail)
        found = save_student(student, folder, tiny_model, ABOUT, CARD, rows.encoded)
    assert found == {"reload_error": "OSError"}
    assert "| reload_error | OSError |" in (folder / "README.md").read_text()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("x: ")]
    assert "got OSError: no such model second line." in line
    assert "kept" in line
    assert share_off(predict(load_folder(folder)[0], rows.encoded), predict(student, rows.encoded)) <= 1e-5


def test_the_reload_check_allows_for_the_precision_of_training(tiny_model: Path, rows, tmp_path):
    """bfloat16 is off by what it rounds, which no reload in float32 can be blamed for."""
    student = trained(tiny_model, rows, "prefix", "mean")
    student.backbone = Backbone(student.backbone.encoder, "mean", "bfloat16")
    assert student.backbone.precision == "bfloat16"
    assert save_student(student, tmp_path / "x", tiny_model, ABOUT, CARD, rows.encoded) == {}
    exact, half = (
        predict(load_folder(tmp_path / "x", Backbone.load(tiny_model, "mean", dtype))[0], rows.encoded)
        for dtype in ("float32", "bfloat16")
    )
    assert RELOAD_TOLERANCE["float32"] < share_off(half, exact) < RELOAD_TOLERANCE["bfloat16"]


def test_a_student_made_before_pooling_existed_reads_cls(tiny_model: Path, rows, tmp_path):
    student = trained(tiny_model, rows, "prefix")
    save_student(student, tmp_path, tiny_model, ABOUT, CARD, rows.encoded)
    about = json.loads((tmp_path / "student.json").read_text())
    assert about.pop("pooling") == "cls"
    (tmp_path / "student.json").write_text(json.dumps(about))
    again, about = load_folder(tmp_path, Backbone.load(tiny_model, "mean"))
    assert (again.backbone.pooling, about.pooling) == ("cls", "cls")
    assert share_off(predict(again, rows.encoded), predict(student, rows.encoded)) <= 1e-5


def test_plain_peft_reads_cls_of_a_modernbert_that_says_mean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = build_tiny_model(Path("model"), architecture="modernbert", classifier_pooling="mean")
    rows = build_rows(model)
    for pooling in ("cls", "mean"):
        student = trained(model, rows, "lora", pooling)
        assert save_student(student, tmp_path / pooling, model, ABOUT, CARD, rows.encoded) == {}
        assert ("classifier_pooling='cls'" in code_of(tmp_path / pooling)) == (pooling == "cls")


WHOLE = [
    ("full", "cls"), ("full", "mean"), ("lora", "cls"), ("lora", "mean"), ("head", "cls"),
    ("head", "mean"), ("prefix", "cls"), ("deep_prompt", "cls"), ("prompt", "mean"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:PrefixTuning")
@pytest.mark.parametrize(("method", "pooling"), WHOLE)
def test_a_student_that_is_not_whole_is_refused(tiny_model: Path, rows, tmp_path, method, pooling):
    """A missing weight would be random, and a prompt that is not read would be dropped."""
    student = trained(tiny_model, rows, method, pooling)
    save_student(student, tmp_path / "whole", tiny_model, ABOUT, CARD, rows.encoded)
    files = [path.name for path in sorted((tmp_path / "whole").glob("*.safetensors"))]
    assert files

    def refused(change) -> str:
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "s")
        change(tmp_path / "s")
        with pytest.raises(ModelError) as error:
            load_folder(tmp_path / "s")
        assert len(str(error.value).splitlines()) == 1
        return str(error.value)

    def changed(name: str, edit) -> str:
        def change(folder: Path) -> None:
            weights = load_file(folder / name)
            edit(weights)
            save_file(weights, folder / name, {"format": "pt"})

        return refused(change)

    for name in files:
        keys = list(load_file(tmp_path / "whole" / name))
        for key in keys[::9] + keys[-2:]:
            assert key.removeprefix("base_model.").removeprefix("model.") in changed(
                name, lambda w, k=key: w.pop(k)
            )
        assert key.removeprefix("base_model.").removeprefix("model.") in changed(
            name, lambda w, k=key: w.update({k: torch.full_like(w[k], torch.nan)})
        )
        assert name in changed(name, lambda w, k=key: w.update({k: w[k].flatten()[1:].clone()}))
        refused(lambda folder, n=name: (folder / n).write_bytes(b"x" * 50))
        assert name in refused(lambda folder, n=name: (folder / n).unlink())


def test_a_student_of_another_method_is_refused(tiny_model: Path, rows, tmp_path):
    save_student(trained(tiny_model, rows, "prompt"), tmp_path / "s", tiny_model, ABOUT, CARD, rows.encoded)
    path = tmp_path / "s" / "student.json"
    about = json.loads(path.read_text())
    other_length = about | {"num_virtual_tokens": about["num_virtual_tokens"] + 1}
    claims = [
        {**about, name: value}
        for name in ("num_virtual_tokens", "max_length")
        for value in (-1, -(2**31), 10**9, 2**63)
    ]
    for changed in (
        *({**about, "method": m} for m in ("soft", "", "HEAD", "head", "prefix", "lora")),
        other_length, {**about, "num_virtual_tokens": 10**6}, {**about, "max_length": 0}, *claims,
    ):  # fmt: skip
        path.write_text(json.dumps(changed))
        with pytest.raises(ModelError) as error:
            load_folder(tmp_path / "s")
        assert len(str(error.value).splitlines()) == 1
    for broken in (b"", b"{", b"[]", b"\xff", b"null"):
        path.write_bytes(broken)
        with pytest.raises(ModelError, match=r"student\.json"):
            load_folder(tmp_path / "s")


def test_a_folder_without_its_backbone_is_one_line(tiny_model: Path, rows, tmp_path, monkeypatch):
    save_student(trained(tiny_model, rows, "prefix"), tmp_path / "s", tiny_model, ABOUT, CARD, rows.encoded)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"its backbone must be at model, relative to the current folder"):
        load_folder(tmp_path / "s")
    with pytest.raises(ModelError, match=r"student.json: a student's folder must hold it"):
        load_folder(tmp_path)
