"""Facts about each supported encoder architecture: where prompts can enter, and how positions are counted."""

from dataclasses import dataclass
from typing import Any, Literal

from kdcache.errors import ModelError

# Prompts of place "deep" are keys and values, of place "states" hidden states, both of every layer;
# those of place "late" are keys and values of the last layers, those of place "input" embeddings.
Place = Literal["deep", "late", "states", "input"]


@dataclass(frozen=True)
class Architecture:
    """What differs between architectures.

    Args:
        bert_layers: whether its layers are BERT's. They accept keys and values from outside,
            which deep and late prompts are; they mask padding wherever it stands; and the last one can be
            computed for [CLS] only (``last_layer``).
        positions: where the position ids of a text start, or ``relative`` where no table of
            positions can run out.
    """

    bert_layers: bool
    positions: Literal["from_zero", "after_padding_id", "relative"] = "from_zero"

    @property
    def places(self) -> tuple[Place, ...]:
        """Where prompts can enter."""
        return ("deep", "late", "states", "input") if self.bert_layers else ("states", "input")


# By ``model_type`` of the config.
ARCHITECTURES = {
    "bert": Architecture(bert_layers=True),
    "roberta": Architecture(bert_layers=True, positions="after_padding_id"),
    "xlm-roberta": Architecture(bert_layers=True, positions="after_padding_id"),
    "camembert": Architecture(bert_layers=True, positions="after_padding_id"),
    "electra": Architecture(bert_layers=True),
    "deberta": Architecture(bert_layers=False),
    "deberta-v2": Architecture(bert_layers=False),
    "modernbert": Architecture(bert_layers=False, positions="relative"),
    "mpnet": Architecture(bert_layers=False, positions="after_padding_id"),
    "distilbert": Architecture(bert_layers=False),
    "albert": Architecture(bert_layers=False),
}


def has_bert_layers(config: Any) -> bool:
    """Whether an encoder is known to have BERT's layers.

    Args:
        config: the model's.
    """
    known = ARCHITECTURES.get(config.model_type)
    return known is not None and known.bert_layers


def first_position(config: Any) -> int:
    """Return the position id of the first token.

    Args:
        config: the model's; an unknown architecture counts from 0.
    """
    known = ARCHITECTURES.get(config.model_type)
    return config.pad_token_id + 1 if known and known.positions == "after_padding_id" else 0


def check_positions(
    config: Any, max_length: int, num_virtual_tokens: int, model: str, section: str = "distill"
) -> None:
    """Refuse inputs and prompts that together need more positions than the model has.

    Past its table of positions, the forward pass would fail with an index error.

    Args:
        config: the model's.
        max_length, num_virtual_tokens: in tokens; 0 virtual tokens for a method without a prompt.
        model: what the message calls the model.
        section: of params.yaml, for the message.

    Raises:
        ModelError: the positions run out.
    """
    known = ARCHITECTURES.get(config.model_type)
    table = getattr(config, "max_position_embeddings", None)
    if table is None or (known and known.positions == "relative"):
        return
    table -= first_position(config)
    tokens = max_length + num_virtual_tokens
    if tokens > table:
        names = ("max_length", "num_virtual_tokens") if num_virtual_tokens else ("max_length",)
        raise ModelError(
            f"{section}: {' + '.join(names)} must be at most the {table} positions of {model}, got {tokens}. "
            f"Lower {' or '.join(f'{section}.{name}' for name in names)}."
        )
