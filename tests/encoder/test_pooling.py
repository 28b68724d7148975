"""What folders say of pooling, the mean itself, and classifiers that read it."""

import json

import pytest
import torch
from conftest import build_tiny_model
from transformers import AutoModel, AutoTokenizer

from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_classifier, load_tokenizer
from kdcache.encoder.mean_pooled import load_head, save_head
from kdcache.encoder.parts import encoder_layers, last_linear, take_apart
from kdcache.encoder.pooling import FILE, pool, read_pooling, resolve_pooling, write_pooling
from kdcache.errors import DataError, ModelError

MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "word_embedding_dimension": 16}
TEXTS = ["the bank", "the river bank was long", "a bat"]


def write(folder, config):
    (folder / FILE).parent.mkdir(exist_ok=True)
    (folder / FILE).write_text(json.dumps(config))


def test_a_folder_that_says_nothing_is_read_by_cls(tmp_path):
    assert read_pooling(build_tiny_model(tmp_path)) == "cls"


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (MEAN, "mean"),
        ({**MEAN, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "mean", "embedding_dimension": 16}, "mean"),
    ],
)
def test_the_pooling_of_sentence_transformers_is_read(tmp_path, config, wanted):
    write(build_tiny_model(tmp_path), config)
    assert resolve_pooling("auto", tmp_path) == wanted
    assert resolve_pooling("cls", tmp_path) == "cls"


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernberts_config_is_read(tmp_path, pooling):
    build_tiny_model(tmp_path, architecture="modernbert", classifier_pooling=pooling)
    assert read_pooling(tmp_path) == pooling


@pytest.mark.parametrize("mode", ["max_tokens", "lasttoken", "weightedmean_tokens"])
def test_another_pooling_is_refused_but_can_be_overruled(tmp_path, mode):
    write(
        build_tiny_model(tmp_path), {**MEAN, "pooling_mode_mean_tokens": False, f"pooling_mode_{mode}": True}
    )
    with pytest.raises(ModelError, match=mode):
        resolve_pooling("auto", tmp_path)
    assert resolve_pooling("mean", tmp_path) == "mean"


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_what_is_written_is_read(tmp_path, pooling):
    build_tiny_model(tmp_path)
    write_pooling(tmp_path, pooling, 16)
    assert read_pooling(tmp_path) == pooling


def test_the_mean_leaves_padding_out_and_is_float32():
    states = torch.randn(2, 5, 4).bfloat16()
    own = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    pooled = pool(states, own, "mean")
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled[0], states[0, :3].float().mean(0))
    assert torch.equal(pooled[1], states[1].float().mean(0))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2", "modernbert", "mpnet", "albert"])
def test_a_mean_pooled_classifier_is_an_encoder_and_a_linear(tmp_path, architecture):
    build_tiny_model(tmp_path, architecture=architecture)
    model = load_classifier(tmp_path, 3, seed=0, pooling="mean")
    batch = encode(load_tokenizer(tmp_path), TEXTS, TEXTS[::-1], 32).batch(range(3))
    with torch.no_grad():
        logits = model(**batch).logits
        # what a user of plain transformers would write
        plain = AutoModel.from_pretrained(tmp_path)
        mask = batch["attention_mask"]
        states = plain(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        assert torch.allclose(logits, model.classifier(mean), atol=1e-5)
    encoder, chain = take_apart(model)
    assert (encoder, chain) == (model.encoder, [last_linear(model, 3)])
    assert getattr(encoder, "pooler", None) is None


def test_heads_differ_by_seed_and_come_back_from_disk(tmp_path):
    build_tiny_model(tmp_path)
    one, other = (load_classifier(tmp_path, 3, seed=seed, pooling="mean") for seed in (0, 1))
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    save_head(one.classifier, tmp_path)
    load_head(other.classifier, tmp_path)
    assert torch.equal(one.classifier.weight, other.classifier.weight)
    with pytest.raises(ModelError, match="others for bias, weight"):
        load_head(load_classifier(tmp_path, 2, seed=0, pooling="mean").classifier, tmp_path)


@pytest.mark.parametrize("architecture", ["distilbert", "albert", "bert", "roberta", "electra", "modernbert"])
def test_the_parts_of_a_cls_classifier_put_together_are_the_classifier(tmp_path, architecture):
    build_tiny_model(tmp_path, architecture=architecture)
    model = load_classifier(tmp_path, 3, seed=0)
    batch = encode(load_tokenizer(tmp_path), TEXTS, None, 32).batch(range(3))
    encoder, chain = take_apart(model)
    with torch.no_grad():
        hidden = encoder(**batch).last_hidden_state[:, :1]
        for module in chain:
            hidden = module(hidden)
        assert torch.allclose(hidden.flatten(0, -2), model(**batch).logits, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "deberta", "modernbert", "mpnet", "distilbert"])
def test_the_stack_of_layers_is_found(tmp_path, architecture):
    build_tiny_model(tmp_path, architecture=architecture)
    encoder, _ = take_apart(load_classifier(tmp_path, 2, seed=0, pooling="mean"))
    assert len(encoder_layers(encoder)) == 2


def test_a_tokenizer_that_pads_left_pads_right_here(tmp_path):
    build_tiny_model(tmp_path)
    path = tmp_path / "tokenizer_config.json"  # save_pretrained does not write the side down
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    assert AutoTokenizer.from_pretrained(tmp_path).padding_side == "left"
    assert (
        encode(load_tokenizer(tmp_path), TEXTS, None, 16).batch(range(3))["attention_mask"][0].tolist()[0]
        == 1
    )


def test_a_text_without_a_token_is_refused(tmp_path):
    build_tiny_model(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(DataError, match="row 2"):
        encode(tokenizer, ["the bank", " "], None, 16)
