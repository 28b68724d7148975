"""Attention to a text computed beforehand: the same states and gradients, of every architecture it is for."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from kdcache.encoder.architectures import ARCHITECTURES
from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_tokenizer
from kdcache.students.frozen_inputs import FrozenInputs
from kdcache.students.prompted_backbone import TEXT, Backbone
from kdcache.students.row_prompts import RowPrompts

BERT_LIKE = [name for name, facts in ARCHITECTURES.items() if facts.bert_layers]
TEXTS = ["the bank", "we sat on the bank of the river and looked", "a bat", "the match was long"]
VIRTUAL_TOKENS = 5


def build(kind: str, pooling, attention: str = "sdpa", layers: int = 2) -> Backbone:
    """A tiny backbone in double precision, with weights far from their gentle start."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=9000, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=96, initializer_range=0.2,
        attn_implementation=attention,
    )  # fmt: skip
    return Backbone(AutoModel.from_config(config).double().requires_grad_(False), pooling)


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("groups", [[4], [1, 3]])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(("kind", "attention"), [*((kind, "sdpa") for kind in BERT_LIKE), ("bert", "eager")])
def test_states_and_gradients_are_those_of_the_whole_attention(
    tiny_model: Path, kind, attention, pooling, groups, layers, monkeypatch
):
    monkeypatch.setattr("kdcache.encoder.text_attention.SCORES_AT_ONCE", 3 * 2 * 20**2)  # a part of the rows
    backbone = build(kind, pooling, attention, layers)
    encoded = encode(load_tokenizer(tiny_model), TEXTS, [text[::-1] for text in TEXTS], max_length=32)
    width = backbone.prompt_width("deep")
    prompts = [torch.randn(VIRTUAL_TOKENS, width).double().requires_grad_() for _ in groups]
    towards = torch.randn(16).double()
    for rows in ([2, 1, 0, 3], [1] * 4):  # with padding, and without: then there is no mask
        batch = encoded.batch(rows)
        shared, inputs = len(groups) == 1, FrozenInputs(backbone, encoded)
        one = inputs.with_text(batch, torch.tensor(rows), VIRTUAL_TOKENS, shared=False)
        cut = inputs.with_text(batch, torch.tensor(rows), VIRTUAL_TOKENS, shared)
        assert len(one[TEXT].groups.shapes) == 1
        assert len(cut[TEXT].groups.shapes) == (len(set(encoded.lengths[rows])) if shared else 1)
        found = []
        for known in ({}, one, cut):
            states = backbone.pooled(batch | known, RowPrompts.of("deep", prompts, groups))
            found.append([states, *torch.autograd.grad((states * towards).sum(), prompts)])
        assert all(one.abs().max() > 1e-4 for one in found[0])
        for others in found[1:]:
            for one, other in zip(found[0], others, strict=True):
                assert (one - other).abs().max() < 1e-9 * one.abs().max()


def test_no_token_of_the_first_layer_is_projected_again(tiny_model: Path):
    backbone = Backbone.load(tiny_model, "mean")
    encoded = encode(load_tokenizer(tiny_model), TEXTS, None, max_length=32)
    batch = encoded.batch(range(4))
    known = FrozenInputs(backbone, encoded).with_text(batch, torch.arange(4), VIRTUAL_TOKENS, shared=True)
    attention = backbone.encoder.encoder.layer[0].attention.self
    for linear in (attention.query, attention.key, attention.value):
        linear.weight.fill_(torch.nan)
    prompt = torch.randn(VIRTUAL_TOKENS, backbone.prompt_width("deep"))
    prompts = RowPrompts.of("deep", [prompt], [4])
    assert backbone.pooled(batch, prompts).isnan().all()
    assert backbone.pooled(known, prompts).isfinite().all()
