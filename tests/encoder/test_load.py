"""Models load from folders, whole and without noise, or fail in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from kdcache.encoder.load import (
    UNNAMED,
    config_digest,
    load_classifier,
    load_encoder,
    save_model,
    setup,
)
from kdcache.encoder.parts import last_linear
from kdcache.errors import ModelError


def test_numbers_that_slow_a_cpu_down_become_0():
    """A softmax that is sure of its class has such gradients; a moment of AdamW that decays becomes one."""
    torch.set_flush_denormal(False)
    small = torch.full((64,), 1e-39)
    assert (small * 1.5 > 0).all()
    setup(torch.get_num_threads())
    assert (small * 1.5 == 0).all()


def test_folder_that_is_no_encoder_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    for load in (load_encoder, lambda folder: load_classifier(folder, 2, seed=0)):
        with pytest.raises(ModelError, match="it must hold an encoder that transformers loads") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [2, 5])
def test_a_head_of_another_size_is_replaced_and_said(tiny_model: Path, tmp_path: Path, size: int, capsys):
    classifier = load_classifier(tiny_model, size, seed=7)
    save_model(classifier, None, tmp_path, [f"c{k}" for k in range(size)])
    fresh = load_classifier(tmp_path, 3, seed=0)
    assert fresh.classifier.weight.shape[0] == 3
    assert "classifier.weight" in capsys.readouterr().err
    assert torch.equal(fresh.bert.pooler.dense.weight, classifier.bert.pooler.dense.weight)
    same = load_classifier(tmp_path, size, seed=0)
    assert torch.equal(same.classifier.weight, classifier.classifier.weight)
    with pytest.raises(ModelError, match="classifier"):
        load_classifier(tmp_path, 3, seed=0, complete=True)
    with pytest.raises(ModelError, match="classifier"):
        load_classifier(tiny_model, 3, seed=0, complete=True)


def test_weights_that_are_not_finite_are_refused(tiny_model: Path, tmp_path: Path):
    model = load_encoder(tiny_model)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[3, 2] = torch.nan
    save_model(model, None, tmp_path)
    for load in (load_encoder, lambda folder: load_classifier(folder, 2, seed=0)):
        with pytest.raises(ModelError, match="word_embeddings"):
            load(tmp_path)


def test_head_depends_on_the_seed_alone(tiny_model: Path):
    heads = [load_classifier(tiny_model, 3, seed=s).classifier.weight for s in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_last_linear_makes_the_logits(tiny_model: Path):
    model = load_classifier(tiny_model, 5, seed=0)
    assert last_linear(model, 5) is model.classifier
    with pytest.raises(ModelError, match="must end in a Linear of 9 outputs"):
        last_linear(model, 9)


@pytest.mark.parametrize(
    ("stale", "outputs"),
    [
        ({"0": "yes", "1": "no"}, ("no", "yes")),
        ({"0": "yes", "1": "no"}, UNNAMED),  # of a backbone, which belongs to no task
        ({"0": "yes", "1": "no"}, ("LABEL_0",)),
        ({"0": "x", "1": "y", "2": "z"}, ("no", "yes")),
    ],
)
def test_a_saved_model_names_its_own_outputs(tiny_model: Path, tmp_path: Path, stale, outputs):
    shutil.copytree(tiny_model, tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    label2id = {name: int(k) for k, name in stale.items()}
    kept = {"id2label": stale, "label2id": label2id, "problem_type": "regression"}
    path.write_text(json.dumps(json.loads(path.read_text()) | kept))
    save_model(load_encoder(tmp_path / "base"), None, tmp_path / "encoder", outputs)
    save_model(load_classifier(tmp_path / "base", len(outputs), 0), None, tmp_path / "whole", outputs)
    for name in ("encoder", "whole"):
        config = AutoConfig.from_pretrained(tmp_path / name)
        assert config.id2label == dict(enumerate(outputs))
        assert config.label2id == {label: k for k, label in enumerate(outputs)}
        assert config.problem_type is None


def test_config_digest_ignores_the_library_version_only(tiny_model: Path, tmp_path: Path):
    shutil.copytree(tiny_model, tmp_path / "copy")
    config = tmp_path / "copy" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"transformers_version": "', '"transformers_version": "9'))
    assert config_digest(tmp_path / "copy") == config_digest(tiny_model)
    config.write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    assert config_digest(tmp_path / "copy") != config_digest(tiny_model)
