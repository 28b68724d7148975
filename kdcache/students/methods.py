"""The methods: what each trains beside the head, where its prompt enters, and what else loads its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kdcache.encoder.architectures import ARCHITECTURES, Place
from kdcache.encoder.pooling import Pooling
from kdcache.errors import ParamsError
from kdcache.losses.terms import Term

if TYPE_CHECKING:
    from kdcache.students.arms import Arm

Method = Literal["head", "prefix", "late_prefix", "deep_prompt", "prompt", "p_tuning", "lora", "full"]
Library = Literal["peft", "transformers", "kdcache"]


@dataclass(frozen=True)
class MethodFacts:
    """What differs between methods.

    Args:
        cls: the library that loads the folder of a student that reads [CLS], to the same logits.
        mean: the same of one that reads the mean.
        place: where the prompt enters the backbone; None without a prompt.
        own_weights: whether it trains weights of a backbone of its own. Such students are
            references, trained one at a time; all others share a frozen backbone.
    """

    cls: Library
    mean: Library
    place: Place | None = None
    own_weights: bool = False

    def loader(self, pooling: Pooling) -> Library:
        """The library that loads a student's folder; ``kdcache`` where nothing else does."""
        return self.cls if pooling == "cls" else self.mean


# PEFT's own forward puts input prompts before [CLS], so that a head on the first state would read a
# virtual token; and it has no prompts that are states, or of some layers only.
METHODS: dict[str, MethodFacts] = {
    "head": MethodFacts("peft", "transformers"),
    "prefix": MethodFacts("peft", "peft", place="deep"),
    "late_prefix": MethodFacts("kdcache", "kdcache", place="late"),
    "deep_prompt": MethodFacts("kdcache", "kdcache", place="states"),
    "prompt": MethodFacts("kdcache", "peft", place="input"),
    "p_tuning": MethodFacts("kdcache", "peft", place="input"),
    "lora": MethodFacts("peft", "peft", own_weights=True),
    "full": MethodFacts("transformers", "transformers", own_weights=True),
}


# Keys of an arm that mean nothing to some methods.
OF_STEPS = ("lr", "steps", "epochs", "batch_size")
OF_PROMPT = ("num_virtual_tokens", "init")


def method_on(method: Method, config: Any) -> Method:
    """Return the method that an encoder can carry: without keys and values, ``prefix`` is ``deep_prompt``.

    Args:
        method: as asked for.
        config: the encoder's.
    """
    takes = "deep" in ARCHITECTURES[config.model_type].places
    return "deep_prompt" if method == "prefix" and not takes else method


def late_layers_on(config: Any, late_layers: int | None) -> int:
    """Return how many of an encoder's last layers late prompts enter: half of all, if no number is given."""
    return late_layers or -(-config.num_hidden_layers // 2)


def check_method(arm: "Arm", name: str, method: Method, default: Method, terms: Mapping[str, Term]) -> None:
    """Refuse values of an arm that its method cannot have, or that would do nothing.

    Args:
        arm: as written.
        name: its own.
        method: its own or the section's.
        default: the section's.
        terms: family → term of the teacher.

    Raises:
        ParamsError: names the key.
    """
    where = f"distill.arms.{name}"
    if arm.targets != "cached" and all(term.weight == 0 for term in terms.values()):
        raise ParamsError(
            f"{where}.targets: with {arm.targets}, the arm must have a teacher's term, got none. "
            "Add inter_class, or remove targets."
        )
    if method == "head" and arm.ce_weight != 0 and (terms or arm.label_smoothing):
        raise ParamsError(
            f"{where}: method head must have no loss but ce_weight, got others. It is a linear "
            "probe of the labels. Remove them, or set ce_weight to 0 for a probe of the teacher."
        )
    if method == "head" and terms and (*terms.values(),) != (Term("kl"),):
        raise ParamsError(
            f"{where}: method head with ce_weight 0 must have inter_class kl of weight and "
            "temperature 1 and no other loss, got others. It is a linear probe of the teacher's "
            "probabilities. Remove them."
        )
    means_nothing: tuple[str, ...] = ()
    if METHODS[method].place is None:
        means_nothing = OF_PROMPT + (() if METHODS[method].own_weights else OF_STEPS)
    if idle := [key for key in means_nothing if getattr(arm, key) is not None]:
        raise ParamsError(
            f"{where}.{idle[0]}: it must be left out of method {method}, to which it means nothing, got "
            f"{getattr(arm, idle[0])}. Remove it."
        )
    if arm.late_layers and method != "late_prefix":
        raise ParamsError(
            f"{where}.late_layers: the method must be late_prefix, got {method}. Remove one of the two."
        )
    if arm.lr is None and method != default and METHODS[method].own_weights:
        raise ParamsError(
            f"{where}.lr: method {method} must have a learning rate of its own, got none; "
            "distill.lr is that of prompts. Set one, such as 1e-4."
        )
