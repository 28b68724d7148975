"""Values: against loops written from the formula, and against an independent implementation."""

from importlib.util import find_spec

import pytest
import slow_losses as slow
import torch

from kdcache import losses
from kdcache.errors import ParamsError
from kdcache.losses import LOSSES
from kdcache.losses.linear_time import joint_sum

WITH_TEMPERATURE = [name for name, loss in LOSSES.items() if loss.temperature]
LINEAR = [name for name, loss in LOSSES.items() if loss.linear]
ON_FEATURES = [name for name, loss in LOSSES.items() if "feature" in loss.families and not loss.projected]
RELATIONS_WITHOUT = [
    name for name, loss in LOSSES.items() if "inter_instance" in loss.families and not loss.temperature
]


def logits(seed: int, batch: int = 7, classes: int = 3, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64)


LABELS = torch.tensor([0, 2, 1, -1, 1, 0, -1])


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
@pytest.mark.parametrize("classes", [3, 11])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_value_equals_the_formula(name, classes, temperature, scale):
    s, t = logits(0, classes=classes), logits(1, classes=classes, scale=scale)
    options = {"labels": LABELS} if LOSSES[name].labels else {}
    plain = {"labels": LABELS.tolist()} if options else {}
    fast = LOSSES[name].function(s, t, temperature=temperature, **options).item()
    wanted = getattr(slow, name)(s.tolist(), t.tolist(), temperature, **plain)
    assert fast == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", RELATIONS_WITHOUT)
@pytest.mark.parametrize("classes", [3, 11])
def test_relation_equals_the_formula(name, classes):
    s, t = logits(0, classes=classes), logits(1, classes=classes)
    fast = LOSSES[name].function(s, t).item()
    assert fast == pytest.approx(getattr(slow, name)(s.tolist(), t.tolist()), rel=1e-9)


@pytest.mark.parametrize("name", ["kl", "gram"])
def test_two_classes_too(name):
    s, t = logits(0, classes=2), logits(1, classes=2)
    wanted = getattr(slow, name)(s.tolist(), t.tolist(), 2.0)
    assert LOSSES[name].function(s, t, 2.0).item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_features_of_other_dims_are_compared_as_they_are(name):
    s, t = logits(0, classes=5), logits(1, classes=9)
    wanted = getattr(slow, name)(s.tolist(), t.tolist(), prepare=list)
    assert LOSSES[name].function(s, t, on="features").item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", ["feature_mse", "feature_cosine"])
def test_feature_losses_equal_the_formula(name):
    s, t = logits(0, classes=5), logits(1, classes=5)
    wanted = getattr(slow, name)(s.tolist(), t.tolist())
    assert LOSSES[name].function(s, t).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", LINEAR)
def test_relations_beyond_the_batch_equal_the_formula(name):
    s, t, more_s, more_t = logits(0), logits(1), logits(2, 4), logits(3, 4)
    given = [z.tolist() for z in (s, t)] + ([1.0] if LOSSES[name].temperature else [])
    wanted = getattr(slow, name)(*given, more_s=more_s.tolist(), more_t=more_t.tolist())
    fast = LOSSES[name].function(s, t, others=(more_s, more_t)).item()
    assert fast == pytest.approx(wanted, rel=1e-9)
    assert fast != pytest.approx(LOSSES[name].function(s, t).item(), rel=1e-3)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_dkd_on_two_classes_is_alpha_kl_and_on_more_it_is_not(classes):
    s, t = logits(0, classes=classes), logits(1, classes=classes)
    labels = torch.arange(7) % classes
    same = losses.dkd(s, t, labels, 2.0, alpha=0.5).item() == pytest.approx(0.5 * losses.kl(s, t, 2.0).item())
    assert same == (classes == 2)


def test_joint_sum_of_one_process_is_the_tensor_itself():
    x = logits(0)
    assert joint_sum(x, None) is x


class TestAgainstTorchdistill:
    """An independent implementation, where it has the loss; it does not centre rows.

    Not in the test extra: its dependency torchvision comes for CUDA and breaks beside a CPU build of
    torch. .ci/run installs it alone.
    """

    pytestmark = pytest.mark.skipif(find_spec("torchdistill") is None, reason="torchdistill is not installed")

    s, t = logits(0), logits(1)
    centred = tuple(z - z.mean(1, keepdim=True) for z in (logits(0), logits(1)))

    @staticmethod
    def outputs(student, teacher):
        return {"m": {"output": student}}, {"m": {"output": teacher}}

    def test_kl(self):
        from torchdistill.losses.mid_level import KDLoss

        theirs = KDLoss("m", "output", "m", "output", temperature=3.0, alpha=0.0)
        wanted = 9 * theirs(*self.outputs(self.s, self.t)).item()  # alone, theirs leaves T² out
        assert losses.kl(self.s, self.t, 3.0).item() == pytest.approx(wanted, rel=1e-9)

    def test_dist(self):
        from torchdistill.losses.mid_level import DISTLoss

        both = self.outputs(self.s, self.t)
        for beta, gamma, ours in ((1.0, 0.0, losses.dist_inter), (0.0, 1.0, losses.dist_intra)):
            theirs = DISTLoss("m", "output", "m", "output", beta=beta, gamma=gamma, tau=2.0)
            assert ours(self.s, self.t, 2.0).item() == pytest.approx(theirs(*both).item(), rel=1e-6)

    @pytest.mark.parametrize(("distance", "angle"), [(1.0, 0.0), (0.0, 1.0)])
    def test_rkd(self, distance, angle):
        from torchdistill.losses.mid_level import RKDLoss

        theirs = RKDLoss("m", "m", dist_factor=distance, angle_factor=angle, reduction="mean")
        wanted = theirs(*self.outputs(*self.centred)).item()
        ours = losses.rkd_distance if distance else losses.rkd_angle
        assert ours(self.s, self.t).item() == pytest.approx(wanted, rel=1e-6)

    def test_pkt(self):
        from torchdistill.losses.mid_level import PKTLoss

        theirs = PKTLoss("m", "output", "m", "output")
        wanted = theirs(*(self.outputs(*(z.clone() for z in self.centred)))).item()
        assert losses.pkt(self.s, self.t).item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_softmax_cannot_take_is_refused(name, temperature):
    labels = (LABELS,) if LOSSES[name].labels else ()
    with pytest.raises(ParamsError, match=r"^temperature: "):
        LOSSES[name].function(logits(0), logits(1), *labels, temperature=temperature)


def test_a_label_that_the_teacher_rules_out_counts_nothing():
    student, teacher = logits(0).requires_grad_(), logits(1)
    teacher[:, 1] = -float("inf")
    value = losses.kl(student, teacher)
    value.backward()
    p = teacher.softmax(1)[:, [0, 2]]
    wanted = (p * (p.log() - student.detach().log_softmax(1)[:, [0, 2]])).sum(1).mean()
    assert value.item() == pytest.approx(wanted.item())
    assert torch.isfinite(student.grad).all()
    assert torch.isnan(losses.kl(logits(0), teacher * float("nan")))
