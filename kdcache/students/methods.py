"""The methods: what each trains beside the head, where its prompt enters, and what else loads its folder."""

from dataclasses import dataclass
from typing import Literal

from kdcache.encoder.architectures import Place

Method = Literal["head", "prefix", "prompt", "p_tuning", "lora", "full"]


@dataclass(frozen=True)
class MethodFacts:
    """What differs between methods.

    Args:
        place: where the prompt enters the backbone; None without a prompt.
        own_weights: whether it trains weights of a backbone of its own. Such students are
            references, trained one at a time; all others share a frozen backbone.
        loader: the library that loads a student's folder to the same logits without kdcache;
            None where there is none.
    """

    place: Place | None = None
    own_weights: bool = False
    loader: Literal["peft", "transformers"] | None = "peft"


# PEFT's own forward puts input prompts before [CLS], so that its head would read a virtual token.
METHODS: dict[str, MethodFacts] = {
    "head": MethodFacts(),
    "prefix": MethodFacts(place="deep"),
    "prompt": MethodFacts(place="input", loader=None),
    "p_tuning": MethodFacts(place="input", loader=None),
    "lora": MethodFacts(own_weights=True),
    "full": MethodFacts(own_weights=True, loader="transformers"),
}
