"""The frozen encoder that all students share, and how prompts enter it.

Prompts enter in one of two places. *Deep* ones (prefix tuning) are keys and values that every
layer's attention sees before the text's own. *Input* ones (prompt tuning, p-tuning) are
embeddings between [CLS] and the text. Either way the first state is the true [CLS], which is
what heads read; PEFT's own forward puts input prompts before [CLS], so that heads read a prompt.

Each row of a batch may carry another student's prompt, of another length: that is how K
students train in one pass, and how many tasks are served in one batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from kdcache.encoder.last_layer import finish_only_cls
from kdcache.encoder.load import COUNT_FROM_PADDING, load_classifier
from kdcache.errors import ModelError

Place = Literal["deep", "input"]

# PEFT's prefixes need an encoder that takes keys and values from outside.
DEEP = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
INPUT = (*DEEP, "deberta", "deberta-v2", "modernbert")
# Positions are told by distance alone, so that there is no table to run out of.
WITHOUT_TABLE = ("modernbert",)

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class RowPrompts:
    """A prompt for each row of a batch.

    Args:
        place: where they enter.
        values: of shape (batch, virtual_tokens, width); width is layers · 2 · dim for deep ones
            (per layer key, then value, as PEFT has it), the embeddings' dim for input ones.
        mask: int64 of shape (batch, virtual_tokens), 0 where a shorter prompt is padded.
    """

    place: Place
    values: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, place: Place, prompts: Sequence[torch.Tensor | None], counts: Sequence[int]) -> "RowPrompts":
        """Give each of some consecutive groups of rows its prompt.

        Args:
            place: where they enter.
            prompts: one per group, of shape (virtual_tokens, width); None for rows without.
            counts: rows per group.
        """
        some = next(prompt for prompt in prompts if prompt is not None)
        lengths = [0 if prompt is None else len(prompt) for prompt in prompts]
        longest = max(lengths)
        padded = [
            some.new_zeros(longest, some.shape[1]) if prompt is None
            else nn.functional.pad(prompt, (0, 0, 0, longest - len(prompt)))
            for prompt in prompts
        ]  # fmt: skip
        # Expanded, not gathered: threads add up the gradient of a gather in any order, to other bits.
        values = torch.cat([p.expand(count, -1, -1) for p, count in zip(padded, counts, strict=True)])
        mask = (
            torch.arange(longest)[None]
            < torch.tensor(lengths).repeat_interleave(torch.tensor(counts))[:, None]
        )
        return cls(place, values, mask.long().to(some.device))


class Backbone:
    """An encoder without a head; frozen and in eval mode unless it is a student's own.

    Args:
        encoder: from transformers; a pooler in it is not used.
        dtype: ``bfloat16`` computes under autocast; states come out as float32 all the same.
        dropout: within the encoder while students train; otherwise there is none.
    """

    def __init__(self, encoder: PreTrainedModel, dtype: Dtype = "float32", dropout: float = 0.0) -> None:
        self.encoder = encoder.eval()
        self.config: Any = encoder.config
        self.dtype = dtype
        self.dropout = dropout
        for module in encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        if self.config.model_type not in INPUT:
            raise ModelError(
                f"students: the backbone must be one of {', '.join(INPUT)}, got {self.config.model_type}. "
                "Choose another model for student_backbone.model."
            )
        if getattr(self.config, "classifier_pooling", "cls") != "cls":
            raise ModelError(
                "students: the backbone's config must have classifier_pooling cls, which heads read, "
                f"got {self.config.classifier_pooling}. Write it by: kdcache shrink"
            )
        finish_only_cls(encoder)

    @classmethod
    def load(cls, folder: Path, dtype: Dtype = "float32", dropout: float = 0.0) -> "Backbone":
        """Load a plain transformers folder, frozen.

        Args:
            folder: the backbone.
            dtype: see the class.
            dropout: see the class.

        Raises:
            ModelError: no encoder there, or of an architecture without a readable [CLS].
        """
        encoder: Any = take_apart(load_classifier(folder, num_labels=2, seed=0))[0]
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # each head has its own
        return cls(encoder.requires_grad_(False), dtype, dropout)

    def to(self, device: torch.device) -> "Backbone":
        """Move the encoder, in place."""
        self.encoder.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return self.encoder.device

    def train(self, training: bool) -> None:
        """Turn dropout on or off, if there is any."""
        self.encoder.train(training and self.dropout > 0)

    def check(self, place: Place | None, num_virtual_tokens: int, max_length: int) -> None:
        """Refuse prompts that this encoder cannot carry.

        Raises:
            ModelError: the architecture takes no deep prompts, or its positions run out.
        """
        kind = self.config.model_type
        if place == "deep" and kind not in DEEP:
            raise ModelError(
                f"distill.method: the backbone of prefix must be one of {', '.join(DEEP)}, got {kind}, "
                "which takes no keys and values. Use prompt or p_tuning."
            )
        # RoBERTa's position ids start behind the padding index.
        table = 0 if kind in WITHOUT_TABLE else self.config.max_position_embeddings
        table -= self.config.pad_token_id + 1 if kind in COUNT_FROM_PADDING else 0
        tokens = max_length + (num_virtual_tokens if place else 0)
        if table and tokens > table:
            raise ModelError(
                f"distill: max_length + num_virtual_tokens must be at most the {table} positions of "
                f"the backbone, got {tokens}. Lower distill.max_length or distill.num_virtual_tokens."
            )

    def cls_states(
        self, batch: Mapping[str, torch.Tensor], prompts: RowPrompts | None = None
    ) -> torch.Tensor:
        """Return the last layer's state of [CLS], of shape (batch, dim).

        Args:
            batch: ``input_ids``, ``attention_mask``, perhaps ``token_type_ids``, of shape
                (batch, tokens), [CLS] first.
            prompts: one per row.
        """
        inputs: dict[str, Any] = dict(batch)
        if prompts is not None:
            inputs = (self._with_deep if prompts.place == "deep" else self._with_input)(batch, prompts)
        half = self.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            states = self.encoder(**inputs).last_hidden_state[:, 0]
        return states.float() if half else states

    def _with_deep(self, batch: Mapping[str, torch.Tensor], prompts: RowPrompts) -> dict[str, Any]:
        rows, tokens = prompts.mask.shape
        heads = self.config.num_attention_heads
        per_layer = prompts.values.view(rows, tokens, self.config.num_hidden_layers, 2, heads, -1)
        layers = per_layer.permute(2, 3, 0, 4, 1, 5)  # layer, key or value, row, head, token, dim
        return {
            **batch,
            "attention_mask": torch.cat([prompts.mask, batch["attention_mask"]], dim=1),
            "past_key_values": DynamicCache([(layer[0], layer[1]) for layer in layers]),
            "position_ids": self._positions(batch["attention_mask"], prompts.mask.sum(1)),
        }

    def _with_input(self, batch: Mapping[str, torch.Tensor], prompts: RowPrompts) -> dict[str, Any]:
        embeddings = self.encoder.get_input_embeddings()(batch["input_ids"])
        mask = _after_cls(batch["attention_mask"], prompts.mask)
        # Padding of a short prompt goes behind the text: some architectures know places only.
        order = mask.argsort(dim=1, descending=True, stable=True)
        whole = _after_cls(embeddings, prompts.values.to(embeddings.dtype))
        inputs = {
            "inputs_embeds": whole.take_along_dim(order[:, :, None], dim=1),
            "attention_mask": mask.take_along_dim(order, dim=1),
        }
        if "token_type_ids" in batch:
            types = _after_cls(batch["token_type_ids"], torch.zeros_like(prompts.mask))
            inputs["token_type_ids"] = types.take_along_dim(order, dim=1)
        return inputs

    def _positions(self, mask: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """As the architecture counts them behind ``shift`` keys; PEFT shifts them too."""
        return (mask.cumsum(1) - 1).clamp(min=0) + shift[:, None] + self._first_position

    @property
    def _first_position(self) -> int:
        return self.config.pad_token_id + 1 if self.config.model_type in COUNT_FROM_PADDING else 0


def _after_cls(whole: torch.Tensor, inserted: torch.Tensor) -> torch.Tensor:
    return torch.cat([whole[:, :1], inserted, whole[:, 1:]], dim=1)


def take_apart(model: PreTrainedModel) -> tuple[PreTrainedModel, list[nn.Module]]:
    """Name the parts of a classifier; it stays whole.

    Returns:
        The encoder, and the modules from [CLS] state to logits, in order, dropout left out.
    """
    encoder: Any = getattr(model, model.base_model_prefix)
    after = [module for module in model.children() if module is not encoder and list(module.parameters())]
    pooler = getattr(encoder, "pooler", None)
    return encoder, after if pooler is None else [pooler, *after]


def head_names(model: PreTrainedModel) -> list[str]:
    """The names, in the whole classifier, of the modules from [CLS] state to logits, in order."""
    after = take_apart(model)[1]
    return [name for module in after for name, other in model.named_modules() if other is module]
