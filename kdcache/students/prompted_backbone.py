"""The encoder that students share, and how each row's prompt enters it.

Prompts enter in one of two places. *Deep* ones (prefix tuning) are keys and values that every
layer's attention sees before the text's own. *Input* ones (prompt tuning, p-tuning) are
embeddings between [CLS] and the text. Either way the first state is the true [CLS], which is
what heads read. PEFT's own forward puts input prompts before [CLS], so that heads read a prompt.

Each row of a batch may carry another student's prompt, of another length. This is how K students
train in one pass, and how many tasks are served in one batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from kdcache.encoder.architectures import ARCHITECTURES, Place, check_positions, first_position
from kdcache.encoder.batching import Encoded, Padded
from kdcache.encoder.forward import Dtype, cls_states
from kdcache.encoder.last_layer import finish_only_cls
from kdcache.encoder.load import load_classifier
from kdcache.encoder.parts import take_apart
from kdcache.errors import ModelError

STATES_BATCH_SIZE = 128


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
        # Expanded, not gathered: threads add up a gather's gradient in any order, which changes bits.
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
        if self.config.model_type not in ARCHITECTURES:
            raise ModelError(
                f"students: the backbone must be one of {', '.join(ARCHITECTURES)}, got "
                f"{self.config.model_type}. Choose another model for student_backbone.model."
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
        if place and place not in ARCHITECTURES[kind].places:
            able = ", ".join(name for name, facts in ARCHITECTURES.items() if place in facts.places)
            raise ModelError(
                f"distill.method: the backbone of prefix must be one of {able}, got {kind}, "
                "which takes no keys and values. Use prompt or p_tuning."
            )
        check_positions(self.config, max_length, num_virtual_tokens if place else 0, "the backbone")

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
        # Padding of a short prompt goes behind the text, since some architectures ignore the mask
        # where they count positions.
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
        """Position ids of the text behind ``shift`` keys; PEFT shifts them too."""
        return (mask.cumsum(1) - 1).clamp(min=0) + shift[:, None] + first_position(self.config)


def _after_cls(whole: torch.Tensor, inserted: torch.Tensor) -> torch.Tensor:
    return torch.cat([whole[:, :1], inserted, whole[:, 1:]], dim=1)


class FrozenInputs:
    """Rows as the frozen backbone reads them, computed once for all students on its device.

    Args:
        backbone: the shared one.
        encoded: the rows.
    """

    def __init__(self, backbone: Backbone, encoded: Encoded) -> None:
        self.backbone, self.encoded = backbone, encoded

    @cached_property
    def padded(self) -> Padded:
        """The rows as tensors."""
        return Padded.of(self.encoded, self.backbone.device)

    @cached_property
    def states(self) -> torch.Tensor:
        """[CLS] states without a prompt, of shape (rows, choices, dim): what linear probes read."""
        backbone = self.backbone
        return cls_states(backbone.cls_states, self.encoded, STATES_BATCH_SIZE, backbone.device)
