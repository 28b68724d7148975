"""``kdcache shrink``: any text heals any model, what the cut keeps is told, mistakes are one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, fails, run
from encoders import TEXTS, build
from transformers import AutoModel

from kdcache.backbone.heal import StudentBackboneParams
from kdcache.encoder.load import resolve
from kdcache.encoder.pooling import read_pooling


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_stage_reports_what_the_cut_keeps(project):
    folder = project()
    assert run("prepare")[0] == 0
    code, out, _ = run("shrink")
    assert code == 0
    assert "healing: epoch 1, held-out loss" in out
    record = json.loads((folder / "models/backbone/shrink.json").read_text())
    assert record["layers"] == [0]
    assert record["of_layers"] == 2
    assert list(record["text"]) == ["cb", "wic"]
    assert len(record["held_out_loss"]) == 1
    assert set(record["probes"]) == {"cb", "wic"}
    for name, row in record["probes"].items():
        assert row["kept"] == pytest.approx(row["healed"] / row["full"], abs=1e-4)
        assert row["train_rows"] + row["tune_rows"] == 32
        assert f"{name:24}" in out
    assert str(folder) not in json.dumps(record)
    assert not list((folder / ".kdcache").glob("student_backbone-*"))

    first = bytes_of(folder / "models/backbone")
    assert run("shrink")[0] == 0
    assert bytes_of(folder / "models/backbone") == first


def test_no_epochs_leave_the_cut_raw(project):
    """The stress test of a study: layers as the full model has them, and `kept` is of these."""
    folder = project(student_backbone={"epochs": 0})
    assert run("prepare")[0] == 0
    code, out, _ = run("shrink")
    assert code == 0
    assert "healing" not in out
    record = json.loads((folder / "models/backbone/shrink.json").read_text())
    assert record["held_out_loss"] == []
    assert list(record["variation"]) == ["full", "raw"]
    for row in record["probes"].values():
        assert row["kept"] == pytest.approx(row["raw"] / row["full"], abs=1e-4)
    model = yaml.safe_load(Path("params.yaml").read_text())["student_backbone"]["model"]
    full = AutoModel.from_pretrained(resolve(model)).state_dict()
    cut = AutoModel.from_pretrained(folder / "models/backbone").state_dict()
    assert len(cut) < len(full)
    assert all(torch.equal(value, full[name]) for name, value in cut.items())  # layer 0 keeps its number


def test_interrupted_shrink_goes_on_and_equals_an_uninterrupted_one(project, monkeypatch):
    monkeypatch.setattr("kdcache.backbone.heal.HEALING_CHECKPOINT_STEPS", 1)
    folder = project()
    assert run("prepare")[0] == 0
    assert run("shrink")[0] == 0
    uninterrupted = bytes_of(folder / "models/backbone")
    step, steps = torch.optim.AdamW.step, []

    def kill(self: Any, *args: Any) -> Any:
        if steps:
            raise KeyboardInterrupt
        steps.append(1)
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", kill)
    assert run("shrink")[0] == 130
    assert bytes_of(folder / "models/backbone") == uninterrupted  # untouched
    assert list((folder / ".kdcache").glob("student_backbone-*/healing.pt"))
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert run("shrink")[0] == 0
    assert bytes_of(folder / "models/backbone") == uninterrupted


def test_any_text_heals_any_model_anywhere(project, tmp_path):
    """Files of lines and of columns; a task named with --probe; the pipeline's backbone stays untouched."""
    folder = project()
    assert run("prepare", "--task", "cb")[0] == 0
    Path("a.txt").write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    Path("b.csv").write_text("n,said\n" + "".join(f"{i},{t} again\n" for i, t in enumerate(TEXTS)))
    model = build("roberta", tmp_path / "roberta")
    out = tmp_path / "elsewhere" / "small"
    arguments = ["shrink", str(model), "--num-layers", "3", "--layers", "0,1,3", "--states", "all"]
    arguments += ["--column", "said", "--text", "a.txt", "--text", "b.csv", "--out", str(out)]
    assert run(*arguments, "--probe", "cb")[0] == 0
    record = json.loads((out / "shrink.json").read_text())
    assert record["layers"] == [0, 1, 3]
    assert {name: entry["rows"] for name, entry in record["text"].items()} == {"a.txt": 16, "b.csv": 16}
    assert record["rows"] == 32
    assert record["model"] == "roberta"
    assert set(record["probes"]) == {"cb"}
    assert AutoModel.from_pretrained(str(out)).config.num_hidden_layers == 3
    assert not (folder / "models").exists()
    assert fails(*arguments, "--probe", "wic").endswith("Run: kdcache prepare --task wic")


@pytest.mark.parametrize(
    ("kind", "choice", "pooling"),
    [("modernbert", "auto", "mean"), ("modernbert", "cls", "cls"), ("bert", "mean", "mean")],
)
def test_the_backbone_says_how_it_is_read(project, tmp_path, kind, choice, pooling):
    project()
    Path("a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    model = build(kind, tmp_path / "model")
    arguments = ["--num-layers", "2", "--layers", "spread", "--text", "a.txt", "--out", "small"]
    arguments += ["--pooling", choice]
    code, out, _ = run("shrink", str(model), *arguments)
    assert code == 0
    assert f"the state read by {pooling} varies" in out
    assert read_pooling(Path("small")) == pooling
    assert json.loads(Path("small/shrink.json").read_text())["pooling"] == pooling
    config = json.loads(Path("small/config.json").read_text())
    if kind == "modernbert":
        assert config["classifier_pooling"] == pooling
        assert config["layer_types"] == ["full_attention", "full_attention"]  # of layers 0 and 3


def test_all_layers_are_copied(project):
    folder = project()
    assert run("prepare")[0] == 0
    assert run("shrink", "--num-layers", "all")[0] == 0
    record = json.loads((folder / "models/backbone/shrink.json").read_text())
    assert record["layers"] == [0, 1]
    assert record["held_out_loss"] == []
    for row in record["probes"].values():
        assert (row["kept"], "raw" in row) == (1.0, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "none.txt"], "student_backbone.text: none.txt must be a text file, got no such file."),
        (["--text", "empty.txt"], "empty.txt: the file must hold at least one row, got none."),
        (["--text", "null.jsonl"], "null.jsonl:2: text must be text, got None. "),
        (["--text", "null.jsonl", "--column", "t"], "the column 't' must be there, got none of that name."),
        (["--num-layers", "3", "--text", "a.txt"], "it must be at most the model's 2 layers, got 3."),
        (["--num-layers", "x"], "num_layers: it must be a whole number or one of all, got 'x'."),
        (["--pooling", "max"], "student_backbone.pooling: it must be one of auto, cls, mean, got 'max'."),
        (["--layers", "last"], "student_backbone.layers: it must be "),
        (["--text", "a.txt", "--out", "full"], "--out: full must be new or a model's folder, got "),
        (
            ["--text", "a.txt", "--set", "student_backbone.max_length=94"],
            "position_shift must be at most the model's 96 positions, got 94 + 4.",
        ),
        (["--text", "a.txt", "--probe", "nope"], "tasks: it must list the task, got 'nope'."),
    ],
)  # fmt: skip
def test_refused_in_one_line(project, arguments, message):
    project()
    Path("a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    Path("empty.txt").write_text("\n\n", encoding="utf-8")
    Path("null.jsonl").write_text('{"text": "a"}\n{"text": null}\n', encoding="utf-8")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("keep me")
    assert message in fails("shrink", *arguments)
    assert Path("full/mine.txt").is_file()


def test_model_whose_tokenizer_puts_no_cls_first_is_refused_where_cls_is_read(project):
    project()
    Path("a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    path = Path("tiny/tokenizer_config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"cls_token": "[SEP]"}))
    assert "student_backbone.pooling: with cls, the tokenizer must" in fails("shrink", "--text", "a.txt")
    assert run("shrink", "--text", "a.txt", "--set", "student_backbone.pooling=mean")[0] == 0


def test_a_pooling_that_cannot_be_read_is_refused_before_anything_starts(project):
    project()
    Path("tiny/1_Pooling").mkdir()
    Path("tiny/1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')
    assert "max_tokens" in fails("shrink")
    assert not Path(".kdcache").exists()


def test_params_of_the_project_have_the_keys_that_shrink_documents():
    section = yaml.safe_load((ROOT / "params.yaml").read_text())["student_backbone"]
    assert set(section) == set(StudentBackboneParams.__dataclass_fields__)
