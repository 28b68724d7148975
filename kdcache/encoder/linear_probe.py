"""The linear probe: a multinomial logistic regression on frozen features, fitted until it converges.

It is the control that every student must beat, and where every head starts. Features are what the
last Linear of a classifier reads. They are standardised dim by dim, and the standardisation is
folded into the weights, so that a plain Linear holds the result. scikit-learn's
``LogisticRegression`` solves the same problem by the same solver, but knows neither tasks of
choices nor soft targets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import nn

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of C, weakest fit first
MAX_ITERATIONS = 2000
GRADIENT_TOLERANCE = 1e-5  # largest entry of the gradient of the mean loss
NUM_FOLDS = 5
LEAST_SIZE = 1e-3  # of a dim's standard deviation, as a share of that of all dims (root mean square)

Score = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe.

    Args:
        weight: float64 of shape (outputs, dim), of features as they are.
        bias: float64 of shape (outputs,).
        strength: C, the inverse of the penalty, as scikit-learn has it.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    strength: float

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Compute float64 logits of shape (rows, choices · outputs) from features of (rows, choices, dim)."""
        return (features.double() @ self.weight.T + self.bias).flatten(1)

    @torch.no_grad()
    def copy_to(self, linear: nn.Linear) -> None:
        """Put the probe into a Linear of the same shape; one without a bias loses the probe's."""
        linear.weight.copy_(self.weight)
        if linear.bias is not None:
            linear.bias.copy_(self.bias)


def fit_probe(
    features: torch.Tensor,
    targets: torch.Tensor,
    held_out: torch.Tensor | None = None,
    score: Score | None = None,
    seed: int = 0,
) -> LinearProbe:
    """Fit a probe for each C of ``STRENGTHS``, and return the one of the highest score on held-out rows.

    Args:
        features: of shape (rows, choices, dim); one choice in tasks that have none.
        targets: of shape (rows, num_labels): probabilities, one-hot for labels. With one choice
            the probe has num_labels outputs, else one output per choice.
        held_out: features of other rows, on which C is chosen.
        score: of the held-out rows' logits, float64 of shape (rows, num_labels); higher is better.
            Of equal scores, the smaller C wins.
        seed: of the folds. Without ``held_out``, C is chosen by likelihood over 5 folds of ``features``.
    """
    with threadpool_limits(1, user_api="blas"):  # of scipy: more threads only wait for each other
        if held_out is None or score is None:
            scores = _cross_validate(features, targets, seed)
            return _path(features, targets, STRENGTHS[: int(np.argmax(scores)) + 1])[-1]
        probes = _path(features, targets, STRENGTHS)
    scores = [score(probe.logits(held_out).cpu().numpy()) for probe in probes]
    return probes[int(np.argmax(scores))]


def _cross_validate(features: torch.Tensor, targets: torch.Tensor, seed: int) -> list[float]:
    """Return each C's mean log-likelihood of rows under probes fitted without them."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(features))).to(features.device)
    found = np.zeros(len(STRENGTHS))
    for fold in range(NUM_FOLDS):
        out = order[fold::NUM_FOLDS]
        kept = torch.cat([order[other::NUM_FOLDS] for other in range(NUM_FOLDS) if other != fold])
        if not len(out) or not len(kept):  # there are hardly any rows
            continue
        for k, probe in enumerate(_path(features[kept], targets[kept], STRENGTHS)):
            found[k] += float((probe.logits(features[out]).log_softmax(1) * targets[out]).sum())
    return list(found / len(features))


def _path(features: torch.Tensor, targets: torch.Tensor, strengths: Sequence[float]) -> list[LinearProbe]:
    """Fit one C after another, each from the weights of the one before."""
    rows, choices, dim = features.shape
    inputs = features.double()
    # What the choices of a row have in common moves none of them above another.
    varying = inputs - inputs.mean(1, keepdim=True) if choices > 1 else inputs
    centre, size = inputs.mean((0, 1)), varying.std((0, 1), correction=0)
    # Some encoders have dims that hardly vary. In full size they would get weights that no training survives.
    size = size.clamp(min=LEAST_SIZE * float(size.square().mean().sqrt()))
    size = torch.where(size > 0, size, torch.ones_like(size))
    inputs = (inputs - centre) / size
    outputs = targets.shape[1] // choices
    targets = targets.to(inputs)
    device, shape = inputs.device, (outputs, dim + 1)

    def loss(flat_weights: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        both = torch.from_numpy(flat_weights).to(device).view(shape)
        weight, bias = both[:, :-1], both[:, -1]
        logits = (inputs @ weight.T + bias).flatten(1)
        log_shares = logits.log_softmax(1)
        value = -(targets * log_shares).sum() / rows + penalty / 2 * weight.square().sum()
        to_logits = (log_shares.exp() * targets.sum(1, keepdim=True) - targets) / rows
        to_logits = to_logits.view(rows, choices, outputs)
        to_weight = torch.einsum("rco,rcd->od", to_logits, inputs) + penalty * weight
        gradient = torch.cat([to_weight, to_logits.sum((0, 1))[:, None]], dim=1)
        return float(value), gradient.flatten().cpu().numpy()

    found, weights = [], np.zeros(outputs * (dim + 1))
    options = {"maxiter": MAX_ITERATIONS, "gtol": GRADIENT_TOLERANCE, "ftol": 64 * np.finfo(float).eps}
    for strength in strengths:
        # scikit-learn has one vector for two classes; ours are its halves, penalised half as much.
        penalty = (2 if outputs == 2 else 1) / (strength * rows)
        weights = minimize(loss, weights, (penalty,), method="L-BFGS-B", jac=True, options=options).x
        both = torch.from_numpy(weights).to(device).view(shape)
        weight = both[:, :-1] / size
        found.append(LinearProbe(weight, both[:, -1] - weight @ centre, strength))
    return found


def one_hot(labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Targets of ``fit_probe`` for labels of shape (rows,)."""
    return nn.functional.one_hot(labels, num_labels).double()
