"""The linear probe: a multinomial logistic regression on frozen features, fitted until it converges.

It is the control that every student must beat, and where every head starts. Features are what the
last Linear of a classifier reads. They are standardised dim by dim, and the standardisation is
folded into the weights, so that a plain Linear holds the result. scikit-learn's
``LogisticRegression`` solves the same problem by the same solver, but knows neither tasks of
choices nor soft targets.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import nn

from kdcache.on_disk import release

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of C, weakest fit first
MAX_ITERATIONS = 2000
GRADIENT_TOLERANCE = 1e-5  # largest entry of the gradient of the mean loss
NUM_FOLDS = 5
LEAST_SIZE = 1e-3  # of a dim's standard deviation, as a share of that of all dims (root mean square)

# Numbers of all rows up to which they are held in float64, and of the blocks in which more rows are read
# again at each evaluation. What is summed over blocks differs from what is summed at once in the last bits.
HELD, BLOCK = 2**23, 2**20

Score = Callable[[np.ndarray], float]
Block = torch.Tensor | slice
AsShares = Callable[[torch.Tensor], torch.Tensor]


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
    as_shares: AsShares = torch.Tensor.double,
) -> LinearProbe:
    """Fit a probe for each C of ``STRENGTHS``, and return the one of the highest score on held-out rows.

    Args:
        features: of shape (rows, choices, dim); one choice in tasks that have none.
        targets: of shape (rows, num_labels): probabilities, one-hot for labels; or what ``as_shares`` makes
            such of. With one choice the probe has num_labels outputs, else one output per choice.
        held_out: features of other rows, on which C is chosen.
        score: of the held-out rows' logits, float64 of shape (rows, num_labels); higher is better.
            Of equal scores, the smaller C wins.
        seed: of the folds. Without ``held_out``, C is chosen by likelihood over 5 folds of ``features``.
        as_shares: targets of a block of rows → probabilities, such as ``soft``.
    """
    rows = _Rows(features, targets, as_shares)
    with threadpool_limits(1, user_api="blas"):  # of scipy: more threads only wait for each other
        if held_out is None or score is None:
            scores = _cross_validate(rows, seed)
            return _path(rows, None, STRENGTHS[: int(np.argmax(scores)) + 1])[-1]
        probes = _path(rows, None, STRENGTHS)
    scores = [score(probe.logits(held_out).cpu().numpy()) for probe in probes]
    return probes[int(np.argmax(scores))]


@dataclass(frozen=True)
class _Rows:
    """Features and targets, of which a block of rows at a time is made float64; see ``fit_probe``."""

    features: torch.Tensor
    targets: torch.Tensor
    as_shares: AsShares

    @property
    def num_labels(self) -> int:
        return self.as_shares(self.targets[:1]).shape[1]

    def blocks(self, which: torch.Tensor | None) -> list[Block]:
        """Cut numbers of rows, or all rows, into blocks: many are sorted, as they may lie on disk."""
        width = max(self.features[0].numel(), self.num_labels)
        count = len(self.features) if which is None else len(which)
        size = count if count * width <= HELD else max(1, BLOCK // width)
        if which is None:
            return [slice(start, start + size) for start in range(0, count, size)]
        return [which] if size == count else list(which.sort().values.split(size))

    def read(self, blocks: Sequence[Block]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield features and targets of each block."""
        for block in blocks:
            yield self.features[block].double(), self.as_shares(self.targets[block])
            release()


def _cross_validate(rows: _Rows, seed: int) -> list[float]:
    """Return each C's mean log-likelihood of rows under probes fitted without them."""
    device, count = rows.features.device, len(rows.features)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count)).to(device)
    found = np.zeros(len(STRENGTHS))
    for fold in range(NUM_FOLDS):
        out = order[fold::NUM_FOLDS]
        kept = torch.cat([order[other::NUM_FOLDS] for other in range(NUM_FOLDS) if other != fold])
        if not len(out) or not len(kept):  # there are hardly any rows
            continue
        for k, probe in enumerate(_path(rows, kept, STRENGTHS)):
            for inputs, targets in rows.read(rows.blocks(out)):
                found[k] += float((probe.logits(inputs).log_softmax(1) * targets).sum())
    return list(found / count)


def _path(rows: _Rows, which: torch.Tensor | None, strengths: Sequence[float]) -> list[LinearProbe]:
    """Fit one C after another to some rows, each from the weights of the one before."""
    blocks, count = rows.blocks(which), len(rows.features) if which is None else len(which)
    centre, size = _moments(rows, blocks)
    choices, dim = rows.features.shape[1:]
    outputs = rows.num_labels // choices
    device, shape = rows.features.device, (outputs, dim + 1)

    def standardised() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return (((inputs - centre) / size, targets) for inputs, targets in rows.read(blocks))

    held = list(standardised()) if len(blocks) == 1 else None

    def loss(flat_weights: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        both = torch.from_numpy(flat_weights).to(device).view(shape)
        weight, bias = both[:, :-1], both[:, -1]
        value, to_weight, to_bias = both.new_zeros(()), torch.zeros_like(weight), torch.zeros_like(bias)
        for inputs, targets in held or standardised():
            logits = (inputs @ weight.T + bias).flatten(1)
            log_shares = logits.log_softmax(1)
            value -= (targets * log_shares).sum()
            to_logits = (log_shares.exp() * targets.sum(1, keepdim=True) - targets) / count
            to_logits = to_logits.view(-1, choices, outputs)
            to_weight += torch.einsum("rco,rcd->od", to_logits, inputs)
            to_bias += to_logits.sum((0, 1))
        value = value / count + penalty / 2 * weight.square().sum()
        gradient = torch.cat([to_weight + penalty * weight, to_bias[:, None]], dim=1)
        return float(value), gradient.flatten().cpu().numpy()

    found, weights = [], np.zeros(outputs * (dim + 1))
    options = {"maxiter": MAX_ITERATIONS, "gtol": GRADIENT_TOLERANCE, "ftol": 64 * np.finfo(float).eps}
    for strength in strengths:
        # scikit-learn has one vector for two classes; ours are its halves, penalised half as much.
        penalty = (2 if outputs == 2 else 1) / (strength * count)
        weights = minimize(loss, weights, (penalty,), method="L-BFGS-B", jac=True, options=options).x
        both = torch.from_numpy(weights).to(device).view(shape)
        weight = both[:, :-1] / size
        found.append(LinearProbe(weight, both[:, -1] - weight @ centre, strength))
    return found


def _moments(rows: _Rows, blocks: Sequence[Block]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of each dim, and its size: the standard deviation of what differs between choices."""
    seen, centre, size = 0, torch.zeros(()), torch.zeros(())
    for inputs, _ in rows.read(blocks):
        # What the choices of a row have in common moves none of them above another.
        varying = inputs - inputs.mean(1, keepdim=True) if inputs.shape[1] > 1 else inputs
        mean, own = inputs.mean((0, 1)), varying.std((0, 1), correction=0)
        if not seen:
            seen, centre, size = len(inputs), mean, own
            continue
        seen += len(inputs)
        share = len(inputs) / seen
        apart = mean - centre if inputs.shape[1] == 1 else torch.zeros_like(mean)  # within a row, all mean 0
        size = ((1 - share) * size**2 + share * own**2 + share * (1 - share) * apart**2).sqrt()
        centre = centre + share * (mean - centre)
    # Some encoders have dims that hardly vary. In full size they would get weights that no training survives.
    size = size.clamp(min=LEAST_SIZE * float(size.square().mean().sqrt()))
    return centre, torch.where(size > 0, size, torch.ones_like(size))


def soft(logits: torch.Tensor) -> torch.Tensor:
    """Targets of ``fit_probe`` for the logits of a teacher, of shape (rows, num_labels)."""
    return logits.double().softmax(1)


def one_hot(labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Targets of ``fit_probe`` for labels of shape (rows,)."""
    return nn.functional.one_hot(labels, num_labels).double()
