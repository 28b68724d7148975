"""The last layer for [CLS] alone: the same logits and gradients, of every architecture it is for."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, TaskType, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from kdcache.encoder.architectures import ARCHITECTURES
from kdcache.encoder.batching import encode
from kdcache.encoder.forward import extract
from kdcache.encoder.last_layer import finish_only_cls
from kdcache.encoder.load import load_classifier, load_tokenizer

BERT_LIKE = [name for name, facts in ARCHITECTURES.items() if facts.bert_layers]
TEXTS = ["the bank", "we sat on the bank of the river and looked", "a bat", "the match was long"]


@pytest.fixture
def encoded(tiny_model: Path):
    return encode(load_tokenizer(tiny_model), TEXTS, [text[::-1] for text in TEXTS], max_length=32)


def build(kind: str, wrap: str, attention: str = "sdpa") -> torch.nn.Module:
    """A tiny classifier in double precision, with weights far from their gentle start, perhaps in PEFT."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=9000, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_labels=3,
        intermediate_size=32, max_position_embeddings=96, initializer_range=0.5,
        attn_implementation=attention,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    if wrap == "prefix":
        model = get_peft_model(model, PrefixTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=5))
    elif wrap == "lora":
        lora = LoraConfig(task_type=TaskType.SEQ_CLS, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, lora)
    return model.double().eval()


def logits_and_gradients(model: torch.nn.Module, batch: dict) -> list[torch.Tensor]:
    model.zero_grad()
    logits = model(**batch).logits
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("wrap", ["plain", "prefix", "lora"])
@pytest.mark.parametrize(("kind", "attention"), [*((kind, "sdpa") for kind in BERT_LIKE), ("bert", "eager")])
def test_logits_and_gradients_are_those_of_the_whole_layer(kind, wrap, attention, encoded):
    model = build(kind, wrap, attention)
    for rows in (range(4), [0], [1, 1]):  # with padding and without: then there is no mask
        batch = {key: value for key, value in encoded.batch(rows).items() if key != "token_type_ids"}
        whole = logits_and_gradients(model, batch)
        with finish_only_cls(model):
            short = logits_and_gradients(model, batch)
        assert len(short) == len(whole) > 2
        assert whole[0].abs().max() > 0.1
        for one, other in zip(short, whole, strict=True):
            assert (one - other).abs().max() < 1e-10


def test_the_last_layer_computes_one_token_and_then_all_again(tiny_model: Path, encoded):
    model = load_classifier(tiny_model, 3, seed=0)
    batch = encoded.batch(range(4))

    def tokens() -> list[int]:
        return [states.shape[1] for states in model(**batch, output_hidden_states=True).hidden_states]

    whole = tokens()
    with finish_only_cls(model):
        assert tokens() == [*whole[:-1], 1]
    assert tokens() == whole
    extract(model, encoded, 3, 8, torch.device("cpu"))
    assert tokens() == whole
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_no_token_of_the_last_layer_has_a_key(tiny_model: Path, encoded):
    """What it saves: the projections of that layer but [CLS]'s query, and all but one row of the scores."""
    model = load_classifier(tiny_model, 3, seed=0)
    called = []
    attention = model.bert.encoder.layer[1].attention.self
    for name in ("query", "key", "value"):
        attention.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: called.append((name, output.numel()))
        )
    with finish_only_cls(model):
        model(**encoded.batch(range(4)))
    assert called == [("query", 4 * 16)]


def test_dropout_of_the_attention_acts(tiny_model: Path, encoded):
    model = load_classifier(tiny_model, 3, seed=0)
    batch = encoded.batch(range(4))
    attention = model.bert.encoder.layer[1].attention.self
    with finish_only_cls(model):
        calm = model(**batch).logits
        attention.train()
        attention.dropout.p = 0.5
        assert (model(**batch).logits - calm).abs().max() > 1e-4


def test_an_architecture_whose_head_may_read_more_is_left_alone(tiny_model: Path):
    model = load_classifier(tiny_model, 3, seed=0)
    model.config.model_type = "mean-pooler"
    finish_only_cls(model)
    assert not any("forward" in m.__dict__ or m._forward_pre_hooks for m in model.modules())
