"""The linear probe against scikit-learn, and what scikit-learn has not: choices, soft targets."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from kdcache.encoder import linear_probe
from kdcache.encoder.linear_probe import fit_probe, one_hot, soft


def make_rows(
    num_rows: int, num_labels: int, dim: int = 12, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of classes that overlap, of dims of very unequal size, and labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(num_labels, dim))
    labels = rng.integers(num_labels, size=num_rows)
    features = (centres[labels] + rng.normal(size=(num_rows, dim))) * np.logspace(-0.5, 2, dim) + 5
    return torch.from_numpy(features).float()[:, None], torch.from_numpy(labels)


def score_with(labels: torch.Tensor):
    return lambda logits: float(np.mean(logits.argmax(1) == labels.numpy()))


@pytest.mark.parametrize("num_labels", [2, 5])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_the_probe_is_scikit_learns_logistic_regression(monkeypatch, num_labels, strength):
    monkeypatch.setattr(linear_probe, "STRENGTHS", (strength,))
    features, labels = make_rows(200, num_labels)
    others, other_labels = make_rows(100, num_labels, seed=1)
    probe = fit_probe(features, one_hot(labels, num_labels), others, score_with(other_labels))
    scaler = StandardScaler().fit(features[:, 0])
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
    theirs.fit(scaler.transform(features[:, 0]), labels)
    wanted = theirs.predict_proba(scaler.transform(others[:, 0]))
    found = probe.logits(others).softmax(1).numpy()
    assert np.abs(found - wanted).max() < 1e-3


def test_c_is_chosen_on_held_out_rows_and_the_smaller_of_equals_wins():
    features, labels = make_rows(60, 3)
    others, other_labels = make_rows(300, 3, seed=1)
    scores = []

    def score(logits: np.ndarray) -> float:
        scores.append(score_with(other_labels)(logits))
        return scores[-1]

    probe = fit_probe(features, one_hot(labels, 3), others, score)
    assert len(scores) == len(linear_probe.STRENGTHS)
    assert probe.strength == linear_probe.STRENGTHS[int(np.argmax(scores))]
    assert (
        fit_probe(features, one_hot(labels, 3), others, lambda _: 0.5).strength == linear_probe.STRENGTHS[0]
    )


def test_without_held_out_rows_noise_gets_a_smaller_c_than_signal():
    features, labels = make_rows(300, 2)
    noise = torch.from_numpy(np.random.default_rng(3).normal(size=(80, 1, 40)))
    random_labels = torch.from_numpy(np.random.default_rng(4).integers(2, size=80))
    assert (
        fit_probe(noise, one_hot(random_labels, 2)).strength
        <= fit_probe(features, one_hot(labels, 2)).strength
    )


def test_choices_are_compared_within_the_row():
    rng = np.random.default_rng(0)
    direction = rng.normal(size=6)
    features = torch.from_numpy(rng.normal(size=(300, 3, 6)) + 10 * rng.normal(size=(300, 1, 6)))
    labels = (features.numpy() @ direction).argmax(1)
    probe = fit_probe(features[:200], one_hot(torch.from_numpy(labels[:200]), 3))
    assert probe.weight.shape == (1, 6)
    assert np.mean(probe.logits(features[200:]).argmax(1).numpy() == labels[200:]) > 0.95


def test_soft_targets_are_met_in_the_mean(monkeypatch):
    monkeypatch.setattr(linear_probe, "STRENGTHS", (1e4,))
    features, _ = make_rows(400, 3)
    targets = (features[:, 0] @ torch.randn(12, 3, generator=torch.Generator().manual_seed(0)) / 50).softmax(
        1
    )
    shares = fit_probe(features, targets).logits(features).softmax(1)
    assert torch.allclose(shares.mean(0), targets.double().mean(0), atol=1e-3)


def test_a_linear_holds_the_probe():
    features, labels = make_rows(80, 4)
    probe = fit_probe(features, one_hot(labels, 4))
    linear = nn.Linear(12, 4)
    probe.copy_to(linear)
    assert torch.allclose(linear(features[:, 0]).double(), probe.logits(features), atol=1e-3)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-9])
def test_a_dim_that_hardly_varies_gets_no_huge_weight(size):
    features, labels = make_rows(80, 2)
    traces = 1 + size * torch.randn(80, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probe = fit_probe(torch.cat([features.double(), traces], dim=2), one_hot(labels, 2))
    assert probe.weight[:, -1].abs().max() < 1


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_hardly_any_rows_still_give_a_probe(rows):
    features, _ = make_rows(rows, 2)
    probe = fit_probe(features, one_hot(torch.arange(rows) % 2, 2))
    assert torch.isfinite(probe.logits(features)).all()


@pytest.mark.parametrize("choices", [1, 3])
def test_many_rows_are_fitted_in_blocks_as_few_at_once(monkeypatch, choices):
    """To rounding, and with no more numbers in float64 than a block has."""
    rng, count, dim = np.random.default_rng(5), 240, 6
    features = torch.from_numpy(rng.normal(size=(count, choices, dim)) * np.logspace(-1, 2, dim) + 3).float()
    logits = torch.from_numpy(rng.normal(size=(count, 3))).float()
    whole = fit_probe(features, soft(logits))
    seen = []

    def counted(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        return soft(part)

    monkeypatch.setattr(linear_probe, "HELD", 0)
    monkeypatch.setattr(linear_probe, "BLOCK", 32 * choices * dim)
    blocks = fit_probe(features, logits, as_shares=counted)
    assert max(seen) == 32
    assert blocks.strength == whole.strength
    for found, wanted in ((blocks.weight, whole.weight), (blocks.bias, whole.bias)):
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5
