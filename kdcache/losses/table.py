"""The table of losses: the names that an arm may use, and what each loss needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from kdcache.losses.feature import feature_cosine, feature_mse
from kdcache.losses.inter_class import dist_inter, dkd, kl
from kdcache.losses.inter_instance import cka, gram, gram_centred, sp
from kdcache.losses.quadratic_time import dist_intra, pkt, rkd_angle, rkd_distance

Family = Literal["inter_class", "inter_instance", "feature"]


@dataclass(frozen=True)
class Loss:
    """One loss.

    Args:
        function: the loss. Its docstring is its card.
        families: the keys of an arm under which it may stand.
        temperature: whether it takes a temperature.
        labels: whether it takes labels.
        linear: whether it has a linear-time form, and so takes ``others`` and ``group``.
        projected: whether the student's features must first be projected to the teacher's dim.
        two_classes: whether it has a gradient on the logits of two classes.
        ignores_slots: whether swapping exchangeable classes (COPA's two choices) leaves it unchanged.
        tells_classes_apart: whether permuting the student's classes changes it.
        min_rows: the smallest batch that it works on.
    """

    function: Callable[..., torch.Tensor]
    families: tuple[Family, ...]
    temperature: bool = False
    labels: bool = False
    linear: bool = False
    projected: bool = False
    two_classes: bool = True
    ignores_slots: bool = False
    tells_classes_apart: bool = False
    min_rows: int = 2


_RELATION: tuple[Family, ...] = ("inter_instance",)
_RELATION_OR_FEATURE: tuple[Family, ...] = ("inter_instance", "feature")

LOSSES = {
    "kl": Loss(kl, ("inter_class",), temperature=True, tells_classes_apart=True, min_rows=1),
    "dist_inter": Loss(
        dist_inter, ("inter_class",), temperature=True, two_classes=False, tells_classes_apart=True,
        min_rows=1,
    ),
    "dkd": Loss(
        dkd, ("inter_class",), temperature=True, labels=True, tells_classes_apart=True, min_rows=1
    ),
    "gram": Loss(gram, _RELATION, temperature=True, linear=True, ignores_slots=True),
    "gram_centred": Loss(gram_centred, _RELATION, linear=True, two_classes=False),
    "sp": Loss(sp, _RELATION_OR_FEATURE, linear=True, ignores_slots=True),
    "dist_intra": Loss(dist_intra, _RELATION, temperature=True, tells_classes_apart=True, min_rows=3),
    "rkd_distance": Loss(rkd_distance, _RELATION_OR_FEATURE),
    "rkd_angle": Loss(rkd_angle, _RELATION_OR_FEATURE, two_classes=False, min_rows=3),
    "pkt": Loss(pkt, _RELATION_OR_FEATURE, two_classes=False),
    "cka": Loss(cka, _RELATION_OR_FEATURE, linear=True),
    "feature_mse": Loss(feature_mse, ("feature",), projected=True, min_rows=1),
    "feature_cosine": Loss(feature_cosine, ("feature",), projected=True, min_rows=1),
}  # fmt: skip
