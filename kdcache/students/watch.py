"""Gradient shares of an arm's terms and fidelity to the teacher, measured now and then on a fixed batch."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from kdcache.encoder.plans import permuted
from kdcache.losses import gram, kl

IDLE_SHARE = 0.01  # a term below this share of the gradient does nothing
WANTED_SHARE = 0.1


class Watch:
    """Measures the same rows at every look, and in all students of as many rows and one batch size.

    Args:
        num_rows: of the training split.
        batch_size: rows to look at: those of a step, since relations depend on it.
    """

    def __init__(self, num_rows: int, batch_size: int) -> None:
        self.batch = np.sort(permuted(np.random.default_rng(0), num_rows)[:batch_size]).astype(np.int64)

    def see(
        self,
        terms: Mapping[str, torch.Tensor],
        norms: Mapping[str, float],
        student: torch.Tensor,
        teacher: torch.Tensor,
        compared: torch.Tensor,
    ) -> dict[str, float]:
        """Measure once.

        Args:
            terms: name → weighted value on the fixed batch.
            norms: of their gradients, see ``gradient_norms``.
            student: its logits on the batch, of shape (batch, num_labels).
            teacher: of the same rows.
            compared: the student's logits as losses compare them with the teacher's, see ``Objective``.

        Returns:
            Per term ``fixed_…``, its value, and ``share_…``, its share of the sum of gradient
            norms; ``agreement``, the share of rows with the teacher's argmax; ``kl_to_teacher``
            in nats; ``gram_to_teacher``, the distance of the relation matrices.
        """
        total = sum(norms.values())
        seen = {f"fixed_{name}": value.item() for name, value in terms.items()}
        seen |= {f"share_{name}": norm / total if total else 0.0 for name, norm in norms.items()}
        return seen | {
            "agreement": (student.argmax(1) == teacher.argmax(1)).double().mean().item(),
            "kl_to_teacher": kl(compared, teacher).item(),
            "gram_to_teacher": gram(compared, teacher).item(),
        }


def gradient_norms(
    terms: Sequence[Mapping[str, torch.Tensor]], parameters: Sequence[Sequence[nn.Parameter]]
) -> list[dict[str, float]]:
    """Return the norm of the gradient of each term of some students, which share no parameter.

    The backward passes of all students are one.

    Args:
        terms: of each student, name → value with its graph.
        parameters: of each student, those whose gradient is shared: prompts, or the head where there is none.

    Returns:
        name → norm, of each student. A single term has all of the gradient. Measuring it would cost a
        backward pass, so it is 1.
    """
    norms = [dict.fromkeys(some, 1.0) for some in terms]
    several = [k for k, some in enumerate(terms) if len(some) > 1]
    for number in range(max((len(terms[k]) for k in several), default=0)):
        having = [k for k in several if len(terms[k]) > number]
        names = [list(terms[k])[number] for k in having]
        total = torch.stack([terms[k][name] for k, name in zip(having, names, strict=True)]).sum()
        watched = [p for k in having for p in parameters[k]]
        gradients = iter(torch.autograd.grad(total, watched, retain_graph=True, allow_unused=True))
        for k, name in zip(having, names, strict=True):
            own = [g for g in itertools.islice(gradients, len(parameters[k])) if g is not None]
            norms[k][name] = float(sum(g.square().sum().item() for g in own) ** 0.5)
    return norms


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
