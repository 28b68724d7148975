"""The losses, as pure functions ``loss(student, teacher, …) → scalar``; usable in anyone's own loop.

The teacher is always detached and second. Logits are (batch, num_labels), features (batch, dim),
labels (batch,) with −1 for a row without one; T is the temperature, P(T) = softmax(Z / T), Z̄ is
Z with each row centred, C the number of classes. ``LOSSES`` is the table of all, ``Objective``
adds up those of an arm.
"""

from kdcache.losses.feature import feature_cosine, feature_mse
from kdcache.losses.inter_class import cross_entropy, dist_inter, dkd, kl
from kdcache.losses.inter_instance import cka, gram, gram_centred, sp
from kdcache.losses.objective import Objective, Targets
from kdcache.losses.pairwise import dist_intra, pkt, rkd_angle, rkd_distance
from kdcache.losses.table import LOSSES, Loss
from kdcache.losses.terms import Ramp, Term, check_terms

__all__ = [
    "LOSSES", "Loss", "Objective", "Ramp", "Targets", "Term", "check_terms",
    "cka", "cross_entropy", "dist_inter", "dist_intra", "dkd", "feature_cosine", "feature_mse",
    "gram", "gram_centred", "kl", "pkt", "rkd_angle", "rkd_distance", "sp",
]  # fmt: skip
