"""The losses as pure functions ``loss(student, teacher, …) → scalar``, for any training loop.

The teacher comes second and is detached. Logits have the shape (batch, num_labels), features (batch, dim),
labels (batch,), with −1 for an unlabelled row. T is the temperature, P(T) = softmax(Z / T), Z̄ is Z with
each row centred, and C is the number of classes. ``LOSSES`` lists all losses. ``Objective`` adds up the
terms of an arm.
"""

from kdcache.losses.feature import feature_cosine, feature_mse
from kdcache.losses.inputs import collapse
from kdcache.losses.inter_class import cross_entropy, dist_inter, dkd, kl
from kdcache.losses.inter_instance import cka, gram, gram_centred, sp
from kdcache.losses.objective import Objective, Targets
from kdcache.losses.quadratic_time import dist_intra, pkt, rkd_angle, rkd_distance
from kdcache.losses.table import LOSSES, Loss
from kdcache.losses.terms import Ramp, Term, check_terms

__all__ = [
    "LOSSES", "Loss", "Objective", "Ramp", "Targets", "Term", "check_terms",
    "cka", "collapse", "cross_entropy", "dist_inter", "dist_intra", "dkd", "feature_cosine", "feature_mse",
    "gram", "gram_centred", "kl", "pkt", "rkd_angle", "rkd_distance", "sp",
]  # fmt: skip
