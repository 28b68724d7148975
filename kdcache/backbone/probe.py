"""What an encoder's [CLS] states are worth to a head: do they vary, and what can be read off them."""

import numpy as np
import torch
from transformers import PreTrainedModel

from kdcache.encoder.batching import Encoded, fixed_plan, iterate
from kdcache.encoder.last_layer import finish_only_cls
from kdcache.errors import ModelError

BLIND_BELOW = 0.01
REGULARISATION = 0.1  # C of the probe, the same for all models: a middle for tasks of 2 to 77 classes


@torch.no_grad()
def cls_states(model: PreTrainedModel, encoded: Encoded, batch_size: int, device: torch.device) -> np.ndarray:
    """Run rows through an encoder and keep the state of each sequence's first token.

    Args:
        model: an encoder without a head, in eval mode.
        encoded: the rows.
        batch_size: rows per forward pass.
        device: where to compute.

    Returns:
        float64 array of shape (rows, choices · dim), in the order of the rows.
    """
    model.to(device)  # type: ignore[arg-type]
    plan = fixed_plan(encoded.lengths, batch_size)
    with finish_only_cls(model):
        states = [
            encoded.by_row(model(**batch).last_hidden_state[:, 0]).double().cpu().numpy()
            for _, batch in iterate(plan, encoded, device)
        ]
    stacked = np.concatenate(states)
    in_order = np.empty_like(stacked)
    in_order[np.concatenate(plan)] = stacked
    return in_order


def variation(states: np.ndarray) -> float:
    """How much [CLS] states depend on the input: standard deviation over inputs ÷ size.

    Args:
        states: shape (rows, dim).

    Returns:
        Root mean square over dims of the standard deviation over rows, divided by the root mean
        square of the states: 0 for a blind encoder, at most 1.

    >>> variation(np.array([[1.0, 1.0], [1.0, -1.0]]))
    0.7071067811865476
    """
    return float(np.sqrt(states.var(axis=0).mean() / np.square(states).mean()))


def refuse_blind(variation: float, what: str) -> None:
    """Raise ModelError if a [CLS] state varies by less than ``BLIND_BELOW`` of its size."""
    if variation < BLIND_BELOW:
        raise ModelError(
            f"student_backbone: the [CLS] state of {what} must vary over inputs by at least "
            f"{BLIND_BELOW:.1%} of its size, got {variation:.2%}: no prompt can make it see. "
            "Raise student_backbone.epochs or num_layers, or give it more text."
        )


def probe_accuracy(
    states: np.ndarray, labels: np.ndarray, held_out_states: np.ndarray, held_out_labels: np.ndarray
) -> float:
    """Fit a logistic regression on states of size 1, score it on other rows.

    Centred, and divided by one number, the root mean square of all states; not standardised
    dim by dim, which would magnify the last traces in a blind encoder's states beyond what any
    head trained by gradient descent can use (docs/shrink.md).

    Args:
        states: shape (rows, dim), of a task's training rows.
        labels: shape (rows,), at least two classes.
        held_out_states: shape (held-out rows, dim).
        held_out_labels: shape (held-out rows,).

    Returns:
        Accuracy on the held-out rows, 0 … 1.
    """
    from sklearn.linear_model import LogisticRegression  # slow import

    centre, size = states.mean(axis=0), np.sqrt(np.square(states).mean())
    reader = LogisticRegression(C=REGULARISATION, max_iter=2000).fit((states - centre) / size, labels)
    return float(reader.score((held_out_states - centre) / size, held_out_labels))
