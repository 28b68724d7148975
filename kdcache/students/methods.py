"""The methods: what each trains beside the head, where its prompt enters, and what else loads its folder."""

from dataclasses import dataclass
from typing import Any, Literal

from kdcache.encoder.architectures import ARCHITECTURES, Place
from kdcache.encoder.pooling import Pooling

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
