"""Batches and forward passes: every row once, in its own place."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.encoder.batching import encode
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_classifier, load_tokenizer
from kdcache.encoder.parts import last_linear
from kdcache.encoder.plans import TrainingPlan, fixed_plan, num_batches
from kdcache.encoder.precision import hold_in_bfloat16
from kdcache.errors import ModelError, ParamsError

CPU = torch.device("cpu")
TEXTS = ["the bank", "we sat on the bank of the river and looked", "a bat", "the match was long"] * 5


@pytest.fixture
def encoded(tiny_model: Path):
    return encode(load_tokenizer(tiny_model), TEXTS, [t[::-1] for t in TEXTS], max_length=32)


def test_a_batch_has_at_least_a_row():
    for size in (0, -1):
        with pytest.raises(ParamsError, match=f"at least 1, got {size}"):
            fixed_plan(np.array([3, 2]), size)


@pytest.mark.parametrize("rows", [1, 16, 33, 300])
def test_every_plan_holds_every_row_once(rows):
    lengths = np.random.default_rng(0).integers(3, 60, rows)
    for plan in (fixed_plan(lengths, 8), TrainingPlan(lengths, 8, seed=0, epoch=3)):
        assert sorted(np.concatenate(plan)) == list(range(rows))
        assert len(plan) == num_batches(rows, 8)


def test_training_plan_depends_on_seed_and_epoch_only():
    lengths = np.random.default_rng(0).integers(3, 60, 100)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(TrainingPlan(lengths, 8, seed, epoch)).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_truncation_is_counted(tiny_model: Path):
    tokenizer = load_tokenizer(tiny_model)
    encoded = encode(tokenizer, ["the " * 50, "a bat"], None, max_length=16)
    assert encoded.truncated.tolist() == [True, False]
    assert encoded.lengths.tolist() == [16, 4]


def test_rows_come_back_in_their_own_order(tiny_model: Path, encoded):
    model = load_classifier(tiny_model, 3, seed=0)
    logits, features = extract(model, encoded, 3, batch_size=7, device=CPU)
    with torch.no_grad():
        for row in range(len(encoded)):
            alone = model(**encoded.batch([row])).logits[0].numpy()
            assert np.abs(logits[row] - alone).max() < 1e-5
    head = last_linear(model, 3)
    again = features @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    assert np.abs(again - logits).max() < 1e-5


def test_extract_restores_the_mode_and_leaves_no_hook(tiny_model: Path, encoded):
    model = load_classifier(tiny_model, 3, seed=0).train()
    extract(model, encoded, 3, batch_size=7, device=CPU)
    assert model.training
    assert not last_linear(model, 3)._forward_pre_hooks


def test_a_dtype_that_it_does_not_compute_in_is_refused(tiny_model: Path, encoded):
    model = load_classifier(tiny_model, 3, seed=0)
    exact, half = (extract(model, encoded, 3, 7, CPU, dtype)[0] for dtype in ("float32", "bfloat16"))
    assert 0 < np.abs(exact - half).max() < 0.1
    with pytest.raises(ModelError) as caught:
        extract(model, encoded, 3, 7, CPU, "float16")
    assert str(caught.value) == "extract: dtype must be one of float32, tf32, bfloat16, got 'float16'."


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_model_that_is_held_in_bfloat16_stays_near_float32(tiny_model: Path, encoded, pooling):
    model = load_classifier(tiny_model, 3, 0, pooling)
    exact = extract(model, encoded, 3, 7, CPU)[0]
    hold_in_bfloat16(model)
    half, features = extract(model, encoded, 3, 7, CPU, "bfloat16")
    assert half.dtype == features.dtype == np.float32
    assert 0 < np.abs(exact - half).max() < 0.1


def test_what_is_no_weight_is_not_rounded():
    """Frequencies of rotary positions, say: an angle is off by the distance times their error."""
    module = torch.nn.Linear(2, 2)
    module.register_buffer("frequency", torch.tensor([1.001]))
    hold_in_bfloat16(module)
    assert module.weight.dtype == torch.bfloat16
    assert module.frequency.item() == torch.tensor(1.001).item()
