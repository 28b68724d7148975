"""Gradient shares of an arm's terms and fidelity to the teacher, measured now and then on a fixed batch."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from kdcache.losses import gram, kl

IDLE_SHARE = 0.01  # a term below this share of the gradient does nothing
WANTED_SHARE = 0.1


class Watch:
    """Measures the same rows at every look, in every arm and seed of a task.

    Args:
        num_rows: of the training split.
        batch_size: rows to look at: those of a step, since relations depend on it.
    """

    def __init__(self, num_rows: int, batch_size: int) -> None:
        self.batch = np.sort(np.random.default_rng(0).permutation(num_rows)[:batch_size])

    def see(
        self,
        terms: Mapping[str, torch.Tensor],
        parameters: Sequence[nn.Parameter],
        student: torch.Tensor,
        teacher: torch.Tensor,
    ) -> dict[str, float]:
        """Measure once.

        Args:
            terms: name → weighted value on the fixed batch, with its graph.
            parameters: those whose gradient is shared: prompts, or the head where there are none.
            student: its logits on the batch, of shape (batch, num_labels).
            teacher: of the same rows.

        Returns:
            Per term ``fixed_…``, its value, and ``share_…``, its share of the sum of gradient
            norms; ``agreement``, the share of rows with the teacher's argmax; ``kl_to_teacher``
            in nats; ``gram_to_teacher``, the distance of the relation matrices.
        """
        # A single term has all of the gradient. Measuring it would cost a backward pass.
        single = len(terms) == 1
        norms = {name: 1.0 if single else _gradient_norm(v, parameters) for name, v in terms.items()}
        total = sum(norms.values())
        seen = {f"fixed_{name}": value.item() for name, value in terms.items()}
        seen |= {f"share_{name}": norm / total if total else 0.0 for name, norm in norms.items()}
        return seen | {
            "agreement": (student.argmax(1) == teacher.argmax(1)).double().mean().item(),
            "kl_to_teacher": kl(student, teacher).item(),
            "gram_to_teacher": gram(student, teacher).item(),
        }


def _gradient_norm(value: torch.Tensor, parameters: Sequence[nn.Parameter]) -> float:
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return float(sum(g.square().sum().item() for g in gradients if g is not None) ** 0.5)


def idle_terms(history: Sequence[Mapping[str, float]]) -> list[str]:
    """Say which terms did nothing, and what weight would change that.

    Args:
        history: what ``Watch`` saw, one entry per look.

    Returns:
        A sentence per term whose mean share of the gradient is under 1%.

    >>> idle_terms([{"share_ce": 0.996, "share_sp": 0.004}])
    ['sp has 0.4% of the gradient and does next to nothing: a weight 28 times as large would give it 10%.']
    """
    sentences = []
    for key in [key for key in history[-1] if key.startswith("share_")] if history else []:
        share = float(np.mean([entry[key] for entry in history]))
        if share < IDLE_SHARE:
            name = key.removeprefix("share_")
            what = f"{name} has {100 * share:.1f}% of the gradient and does next to nothing"
            factor = WANTED_SHARE / (1 - WANTED_SHARE) * (1 - share) / share if share else None
            cure = (
                f"a weight {factor:.0f} times as large would give it 10%" if factor else "it has no gradient"
            )
            sentences.append(f"{what}: {cure}.")
    return sentences
