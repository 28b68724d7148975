"""Students that read the mean: passes, checkpoints and the grid as for [CLS]; refusals."""

import json
from pathlib import Path

import pytest
import torch
from conftest import build_tiny_model, fails, run
from engine import KL_GRAM, TEXTS, build_rows, build_run, fit, gap, values
from save_every import save_every
from transformers import AutoTokenizer

from kdcache.encoder.load import load_tokenizer
from kdcache.encoder.pooling import check_cls_token, write_pooling
from kdcache.errors import ModelError
from kdcache.project import Project
from kdcache.students import loop
from kdcache.students.grid import Grid
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.run import Run

METHODS = ["deep_prompt", *(pytest.param(m, marks=pytest.mark.slow) for m in ("prefix", "prompt"))]


def start(folder: Path, method: str) -> list[Run]:
    backbone = Backbone.load(folder, "mean")
    rows = build_rows(folder, backbone)
    plans = ({"seed": 0}, {"seed": 1, "num_virtual_tokens": 2}, {"seed": 2, "terms": KL_GRAM})
    return [build_run(folder, backbone, rows, method, lr=0.01, epochs=1, **plan) for plan in plans]


@pytest.mark.parametrize("method", METHODS)
def test_students_of_one_pass_are_each_as_if_alone(tiny_model: Path, method):
    together, alone = start(tiny_model, method), start(tiny_model, method)
    before = values(together[0])
    fit(*together)
    for one in alone:
        fit(one)
    assert max(gap(values(a), values(b)) for a, b in zip(alone, together, strict=True)) <= 1e-5
    assert gap(values(together[0]), before) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_resumed_equals_uninterrupted_bit_for_bit(tiny_model: Path, method, tmp_path, monkeypatch):
    whole = start(tiny_model, method)
    fit(*whole)
    save_every(2, loop, monkeypatch.setattr)
    taken = []

    def kill(students: int) -> None:
        taken.append(students)
        if len(taken) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(*start(tiny_model, method), checkpoint=tmp_path / "pass.pt", after_step=kill)
    resumed = start(tiny_model, method)
    loop.restore_runs(resumed, tmp_path / "pass.pt")
    assert [one.step for one in resumed] == [2, 2, 2]
    fit(*resumed)
    for one, other in zip(whole, resumed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(values(one), values(other), strict=True))


def about(folder: Path) -> dict:
    return json.loads((folder / "student.json").read_text())


def test_auto_reads_the_backbones_folder(cached_project):
    """And what it resolves to is part of the key under which unfinished work is found."""
    project = cached_project(distill={"seeds": [0]})
    grids = {}
    for said in ("cls", "mean"):
        write_pooling(project / "models" / "backbone", said, 16)
        grids[said] = Grid(Project.load(), "cb")
        assert {spec.pooling for spec in grids[said].specs.values()} == {said}
    assert grids["cls"].scratch != grids["mean"].scratch
    assert run("distill", "--task", "cb", "--arm", "head")[0] == 0
    folder = project / "runs" / "cb" / "head-0"
    assert about(folder)["pooling"] == "mean"
    assert "| pooling | mean |" in (folder / "README.md").read_text()
    assert (folder / "head.safetensors").is_file()


def test_a_tuned_encoder_leaves_no_states_to_others(cached_project):
    """The first arm reads otherwise, so the states that ``head`` reads are made after ``full`` was scored."""
    folder = cached_project(distill={"seeds": [0], "students_per_pass": 1})
    command = ["distill", "--task", "cb", "--set", "distill.epochs=null", "--set", "distill.steps=8", "--set"]
    arms = {
        "ce": "{pooling: cls}", "full": "{method: full, pooling: mean, lr: 1e-2}",
        "head": "{method: head, pooling: mean}",
    }  # fmt: skip
    found = []
    for names in (["ce", "head"], ["ce", "full", "head"]):
        chosen = ", ".join(f"{name}: {arms[name]}" for name in names)
        code, _, error = run(*command, f"distill.arms={{{chosen}}}", "--set", "distill.workers=1")
        assert code == 0, error
        found.append((folder / "runs" / "cb" / "head-0" / "validation.parquet").read_bytes())
    assert found[0] == found[1]


def test_a_prefix_becomes_a_deep_prompt_where_no_keys_and_values_enter(cached_project):
    project = cached_project(distill={"seeds": [0]})
    build_tiny_model(project / "models" / "backbone", num_layers=1, architecture="mpnet")
    code, _, error = run("distill", "--task", "cb", "--arm", "ce", "--arm", "head")
    assert code == 0
    (told,) = [line for line in error.splitlines() if "becomes" in line]
    assert told.startswith(
        "distill: mpnet takes no keys and values from outside, so prefix becomes deep_prompt"
    )
    assert "ce, kl" in told
    folder = project / "runs" / "cb" / "ce-0"
    result = json.loads((folder / "result.json").read_text())
    assert about(folder)["method"] == result["method"] == "deep_prompt"


def test_cls_is_refused_where_the_tokenizer_puts_none_first(cached_project):
    project = cached_project()
    backbone = project / "models" / "backbone"
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(backbone)
    told = fails("distill", "--task", "cb", "--arm", "head", "--set", "distill.pooling=cls")
    assert told.startswith("distill.arms.head.pooling: with cls, the tokenizer must put [CLS] first, got ['")
    with pytest.raises(ModelError, match="Set it to mean"):
        check_cls_token("cls", load_tokenizer(backbone), "here")
    check_cls_token("mean", load_tokenizer(backbone), "here")


def test_a_pair_with_an_empty_second_text_is_the_first_alone(tiny_model: Path):
    """And padding to the longest row of a batch moves nothing."""
    backbone = Backbone.load(tiny_model, "mean")
    tokenizer = load_tokenizer(tiny_model)
    alone = [backbone.pooled(dict(tokenizer([text], return_tensors="pt")))[0] for text in TEXTS]
    padded = backbone.pooled(build_rows(tiny_model, backbone).encoded.tokenizer(
        TEXTS, padding=True, return_tensors="pt"))  # fmt: skip
    assert max((a - b).abs().max() for a, b in zip(alone, padded, strict=True)) < 1e-5
