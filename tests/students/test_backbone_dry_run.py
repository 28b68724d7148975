"""What a backbone cannot read is found before the first step of any student, in whatever split it stands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_tiny_model, fails
from engine import build_rows
from specs import tiny_spec

from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_tokenizer
from kdcache.encoder.pooling import write_pooling
from kdcache.errors import ModelError
from kdcache.students.dry_run import check_backbone, check_poolings
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.run import Run

SHORT, LONG = ["the bank", "a bat flew"], ["the bank", "the river " * 60]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_the_longest_row_of_any_split_is_tried(tmp_path: Path, architecture: str):
    folder = build_tiny_model(tmp_path, architecture=architecture, max_position_embeddings=64)
    backbone, tokenizer = Backbone.load(folder), load_tokenizer(folder)
    rows = {name: encode(tokenizer, texts, None, 512) for name, texts in (("train", SHORT), ("tune", LONG))}
    check_backbone(backbone, {"train": rows["train"]}, "models/backbone")
    with pytest.raises(ModelError, match=r"^models/backbone: .*tune, \d+ tokens") as error:
        check_backbone(backbone, rows, "models/backbone")
    assert len(str(error.value).splitlines()) == 1


def test_tokens_without_an_embedding_are_named(tmp_path: Path):
    tokenizer = load_tokenizer(build_tiny_model(tmp_path / "m"))
    backbone = Backbone.load(build_tiny_model(tmp_path / "small", vocab_size=20))
    rows = encode(tokenizer, SHORT, None, 64)
    with pytest.raises(ModelError, match="validation"):
        check_backbone(backbone, {"validation": rows}, "models/backbone")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_states_that_are_not_finite_are_refused(tmp_path: Path, pooling: str):
    folder = build_tiny_model(tmp_path)
    backbone, rows = Backbone.load(folder, pooling), encode(load_tokenizer(folder), SHORT, None, 64)
    check_backbone(backbone, {"train": rows}, "models/backbone")
    with torch.no_grad():
        backbone.encoder.encoder.layer[0].output.dense.bias[0] = torch.inf
    with pytest.raises(ModelError, match="finite"):
        check_backbone(backbone, {"train": rows}, "models/backbone")


def test_prompts_read_by_a_pooling_that_hardly_depends_on_the_text_are_refused(tmp_path: Path):
    folder = build_tiny_model(tmp_path)
    write_pooling(folder, "mean", 16)
    backbone = Backbone.load(folder, "mean")
    arms = [tiny_spec(pooling="cls"), tiny_spec(pooling="mean")]
    rows = build_rows(folder)
    check_poolings(backbone, arms, {"train": rows}, folder)
    with torch.no_grad():
        for layer in backbone.encoder.encoder.layer:  # [CLS] hears nothing of the text
            for part in (layer.attention.output.dense, layer.output.dense):
                part.weight.zero_()
    alike, wide = rows.take(np.zeros(2, int)), {"unlabelled": rows}
    for reader in (backbone, backbone.read_by("cls")):
        for splits in ({"train": rows}, wide, wide | {"train": alike}):
            with pytest.raises(ModelError, match=r"read by cls, .*0\.00%"):
                check_poolings(reader, arms, splits, folder)
            check_poolings(reader, arms[1:], splits, folder)
            others = [tiny_spec(method, pooling="cls") for method in ("head", "full", "lora")]
            check_poolings(reader, others, splits, folder)
    check_poolings(backbone, arms, {"train": alike}, folder)
    path = folder / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"word_embedding_dimension": 16, "pooling_mode_max_tokens": True}))
    check_poolings(backbone, arms, {"train": rows}, folder)  # it says nothing of ours


def test_no_arm_takes_a_step_before_all_of_them_fit(cached_project, monkeypatch):
    cached_project(distill={"seeds": [0]})
    monkeypatch.setattr(Run, "next_batch", None)
    settings = ["--set", "distill.arms.kl.num_virtual_tokens=90"]
    error = fails("distill", "--task", "cb", "--arm", "ce", "--arm", "kl", *settings)
    assert "96 positions" in error
