"""Folders: canonical, without pickle, and read back to the same logits by whom the card says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engine import TEXTS, build_rows, build_run, fit

from kdcache.data.task import Task
from kdcache.errors import ModelError
from kdcache.students.export import load_folder, save_student
from kdcache.students.methods import METHODS
from kdcache.students.student import Student, predict
from kdcache.students.training_rows import StudentRows

TASK = Task("t", ("a", "b", "c"), "t/1", ("accuracy",))
CARD = {"task": "t", "arm": "ce", "seed": "0"}
ABOUT = {"max_length": 32, "task": TASK}


@pytest.fixture(scope="module")
def built(tiny_model: Path) -> StudentRows:
    return build_rows(tiny_model)


@pytest.fixture
def rows(built: StudentRows, tiny_model: Path, monkeypatch) -> StudentRows:
    monkeypatch.chdir(tiny_model.parent)
    return built


def trained(folder: Path, rows: StudentRows, method: str) -> Student:
    run = build_run(folder, rows.inputs.backbone, rows, method, lr=1e-2, epochs=1)
    fit(run)
    return run.student


AUTO = {
    "peft": "AutoPeftModelForSequenceClassification",
    "transformers": "AutoModelForSequenceClassification",
}
PLAIN = """
import json, sys, warnings, torch
warnings.simplefilter("ignore")
sys.modules["kdcache"] = None
import peft, transformers
batch = torch.load(sys.argv[1], weights_only=True)
found = {}
for name in sys.argv[2:]:
    library, auto, folder = name.split("=")
    model = getattr(sys.modules[library], auto).from_pretrained(folder, num_labels=3).eval()
    found[folder] = model(**batch).logits.tolist()
print(json.dumps(found))
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_gives_the_students_logits_and_its_card_names_who_loads_it(
    tiny_model: Path, rows, method, tmp_path
):
    """Plain peft and transformers are tried by ``save_student`` itself."""
    student, facts = trained(tiny_model, rows, method), METHODS[method]
    save_student(student, tmp_path / "s", tiny_model, ABOUT, CARD, rows.encoded)
    again, about = load_folder(tmp_path / "s")
    ours, _ = predict(student, rows.encoded, len(TEXTS))
    assert np.abs(predict(again, rows.encoded, 4)[0] - ours).max() <= 1e-5
    assert (about.method, about.backbone, about.task) == (method, "model", TASK)
    loader = "import kdcache" if facts.loader is None else f"from {facts.loader} import {AUTO[facts.loader]}"
    assert loader in (tmp_path / "s" / "README.md").read_text()


@pytest.mark.slow
def test_whoever_the_card_names_loads_it_where_there_is_no_kdcache(tiny_model: Path, rows, tmp_path):
    wanted, plain = {}, []
    for method, facts in METHODS.items():
        if facts.loader:
            student, folder = trained(tiny_model, rows, method), tmp_path / method
            save_student(student, folder, tiny_model, ABOUT, CARD, rows.encoded)
            wanted[str(folder)] = predict(student, rows.encoded, len(TEXTS))[0]
            plain.append(f"{facts.loader}={AUTO[facts.loader]}={folder}")
    torch.save(rows.encoded.batch(range(len(TEXTS))), tmp_path / "batch.pt")
    out = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "batch.pt"), *plain],
        capture_output=True, text=True, check=True, cwd=tiny_model.parent,
    )  # fmt: skip
    found = json.loads(out.stdout.splitlines()[-1])
    assert set(found) == set(wanted)
    for folder, logits in wanted.items():
        assert np.abs(np.array(found[folder]) - logits).max() <= 1e-5


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


def test_a_folder_that_gives_other_logits_is_refused(tiny_model: Path, rows, tmp_path):
    student = trained(tiny_model, rows, "prefix")
    student.head.chain[-1].register_forward_hook(lambda _m, _i, output: output + 1.0)
    with pytest.raises(ModelError, match=r"must give the student's logits within 1e-05 of their size"):
        save_student(student, tmp_path / "x", tiny_model, ABOUT, CARD, rows.encoded)


def test_a_folder_without_its_backbone_is_one_line(tiny_model: Path, rows, tmp_path, monkeypatch):
    save_student(trained(tiny_model, rows, "prefix"), tmp_path / "s", tiny_model, ABOUT, CARD, rows.encoded)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"its backbone must be at model, relative to the current folder"):
        load_folder(tmp_path / "s")
    with pytest.raises(ModelError, match=r"student.json: a student's folder must hold it"):
        load_folder(tmp_path)
