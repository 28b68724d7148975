"""The encoder that students share, and how each row's prompt enters it.

Prompts enter in one of four places. *Deep* ones (prefix tuning) are keys and values that every
layer's attention sees before the text's own. *Late* ones are the same in the last layers only; what is
below those, the trunk, reads the text alone. *States* (deep prompts) are hidden states that virtual
tokens have before every layer. *Input* ones (prompt tuning, p-tuning) are embeddings.

Virtual tokens of states and inputs stand behind [CLS] where heads read [CLS], so that its position is
its own. Where heads read the mean, they stand before the text, where PEFT puts them, and are no
part of the mean.

Each row of a batch may carry another student's prompt, of another length. This is how K students
train in one pass, and how many tasks are served in one batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from kdcache.encoder.architectures import ARCHITECTURES, Place, check_positions, first_position
from kdcache.encoder.last_layer import attend_from_cls, finish_without_first, last_attention
from kdcache.encoder.load import load_encoder
from kdcache.encoder.parts import encoder_layers
from kdcache.encoder.pooling import Pooling, pool
from kdcache.encoder.precision import Dtype, choose_attention, hold_in_bfloat16
from kdcache.encoder.prefixed_layers import PrefixedLayers
from kdcache.encoder.text_attention import TextAttention, attend_to_text
from kdcache.errors import ModelError
from kdcache.students.row_prompts import Insertion, RowPrompts, before_each_layer, passing

TRUNK = "trunk"  # in a batch: the states below late prompts
TEXT = "text"  # in a batch: the first layer's attention to the text


class Backbone:
    """An encoder without a head; frozen and in eval mode unless it is a student's own.

    Args:
        encoder: from transformers; a pooler in it is not used.
        pooling: how its states are read.
        dtype: of matrix products; pooled states are float32 all the same.
        dropout: within the encoder while students train; otherwise there is none.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        pooling: Pooling = "cls",
        dtype: Dtype = "float32",
        dropout: float = 0.0,
    ) -> None:
        self.encoder = encoder.eval()
        choose_attention(encoder, dtype)
        self.config: Any = encoder.config
        self.pooling = pooling
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
        self._last_attention = last_attention(encoder)

    @classmethod
    def load(
        cls, folder: Path, pooling: Pooling = "cls", dtype: Dtype = "float32", dropout: float = 0.0
    ) -> "Backbone":
        """Load a plain transformers folder, frozen.

        Args:
            folder: the backbone.
            pooling: see the class.
            dtype: see the class.
            dropout: see the class.

        Raises:
            ModelError: no encoder there, or of an unknown architecture.
        """
        encoder: Any = load_encoder(folder)
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # each head has its own
        if dtype == "bfloat16":  # weights that nothing trains are held in it, not cast at every step
            hold_in_bfloat16(encoder)
        return cls(encoder.requires_grad_(False), pooling, dtype, dropout)

    def read_by(self, pooling: Pooling) -> "Backbone":
        """Return the same encoder, read in this way."""
        return self if pooling == self.pooling else Backbone(self.encoder, pooling, self.dtype, self.dropout)

    def to(self, device: torch.device) -> "Backbone":
        """Move the encoder, in place."""
        self.encoder.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return self.encoder.device

    @property
    def precision(self) -> str:
        """What matrix products are computed in: ``float32``, ``tf32`` or ``bfloat16``."""
        if self.dtype == "bfloat16":
            return "bfloat16"
        exact = self.device.type != "cuda" or torch.get_float32_matmul_precision() == "highest"
        return "float32" if exact else "tf32"

    def train(self, training: bool) -> None:
        """Turn dropout on or off, if there is any."""
        training = training and self.dropout > 0
        if training != self.encoder.training:  # at each step, a walk over all modules takes time
            self.encoder.train(training)

    def check(
        self, place: Place | None, num_virtual_tokens: int, max_length: int, late_layers: int | None = None
    ) -> None:
        """Refuse prompts that this encoder cannot carry.

        Raises:
            ModelError: the architecture takes no keys and values, has fewer layers, or its positions run out.
        """
        kind = self.config.model_type
        if place and place not in ARCHITECTURES[kind].places:
            able = ", ".join(name for name, facts in ARCHITECTURES.items() if place in facts.places)
            method = "late_prefix" if place == "late" else "prefix"
            raise ModelError(
                f"distill.method: the backbone of {method} must be one of {able}, got {kind}, "
                "which takes no keys and values. Use deep_prompt."
            )
        if place == "late" and (late_layers or 0) > self.config.num_hidden_layers:
            raise ModelError(
                f"distill.arms: late_layers must be at most the {self.config.num_hidden_layers} layers of "
                f"the backbone, got {late_layers}. Lower it."
            )
        check_positions(self.config, max_length, num_virtual_tokens if place else 0, "the backbone")

    def prompt_width(self, place: Place, late_layers: int = 0) -> int:
        """Numbers per virtual token of a prompt at a place: see ``RowPrompts``."""
        if place == "input":
            return int(self.encoder.get_input_embeddings().weight.shape[1])
        layers = late_layers if place == "late" else self.config.num_hidden_layers
        return layers * self.config.hidden_size * (1 if place == "states" else 2)

    def layers_entered(self, width: int) -> int:
        """Return how many layers, the last ones, keys and values of some width enter."""
        return width // self.prompt_width("late", 1)

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return a batch as the encoder reads it: no segments where heads read the mean."""
        return {
            key: value for key, value in batch.items()
            if key not in (TRUNK, TEXT) and (self.pooling == "cls" or key != "token_type_ids")
        }  # fmt: skip

    def pooled(self, batch: Mapping[str, Any], prompts: RowPrompts | None = None) -> torch.Tensor:
        """Return the pooled states of the last layer, float32 of shape (batch, dim).

        Args:
            batch: ``input_ids``, ``attention_mask``, perhaps ``token_type_ids``, of shape
                (batch, tokens); with ``cls``, [CLS] first. For late prompts perhaps ``trunk``, the states
                below them, of shape (batch, tokens, dim); for deep ones of one length perhaps ``text``,
                a ``KnownText``.
            prompts: one per row.
        """
        inputs, own = self.inputs(batch), batch["attention_mask"]
        if prompts is None:
            return self._read(inputs, own)
        if prompts.place == "deep":
            if TEXT in batch:
                return self._prefixed_layers.pooled(batch[TEXT], self._prefix_layers(prompts))
            return self._read(inputs | self._prefix(own, prompts), own)
        if prompts.place == "late":
            layers = self.layers_entered(prompts.values.shape[2])
            states = batch[TRUNK] if TRUNK in batch else self.trunk(batch, layers)
            with self._above(states, layers):
                return self._read(inputs | self._prefix(own, prompts), own)
        values = prompts.values.expand(own.shape[0], -1, -1)  # len() would be a constant of an exported graph
        among = Insertion(prompts, own, 1 if self.pooling == "cls" else 0)
        inputs["attention_mask"] = among.put(own, prompts.mask)
        own = among.put(own, torch.zeros_like(prompts.mask))
        if "token_type_ids" in inputs:
            inputs["token_type_ids"] = among.put(inputs["token_type_ids"], torch.zeros_like(prompts.mask))
        ids = inputs.pop("input_ids")
        if prompts.place == "input":
            embeddings = self.encoder.get_input_embeddings()(ids)
            inputs["inputs_embeds"] = among.put(embeddings, values.to(embeddings.dtype))
            return self._read(inputs, own, prompts.shortest)
        # Whatever token stands there; padding where there is none, since some count positions by it.
        inputs["input_ids"] = among.put(ids, ids[:, :1].where(prompts.mask.bool(), self.config.pad_token_id))
        each = values.unflatten(2, (self.config.num_hidden_layers, -1)).unbind(2)
        with before_each_layer(self._layers, [among.replace(one) for one in each]):
            return self._read(inputs, own, prompts.shortest)

    @torch.no_grad()
    def trunk(self, batch: Mapping[str, torch.Tensor], layers: int) -> torch.Tensor:
        """Return the states of a batch before the last ``layers`` layers, of shape (batch, tokens, dim).

        There is no dropout below late prompts: what is computed once must be what is computed anew.
        """
        training = self.encoder.training
        self.encoder.eval()
        try:
            with passing(self._layers[-layers:]):
                return self._states(self.inputs(batch))
        finally:
            self.encoder.train(training)

    @torch.no_grad()
    def text(self, batch: Mapping[str, torch.Tensor], virtual_tokens: int) -> TextAttention:
        """Return the first layer's attention to the text of a batch, behind a prefix of so many tokens."""
        own = batch["attention_mask"]
        shift = torch.full_like(own[:, 0], virtual_tokens)
        inputs = self.inputs(batch) | {"position_ids": self._positions(own, shift)}
        with passing(self._layers):
            states = self._states(inputs)
        first: Any = self._layers[0]
        return attend_to_text(first.attention.self, states, own)

    @contextmanager
    def _above(self, states: torch.Tensor, layers: int) -> Iterator[None]:
        """Let the last ``layers`` layers read these states; those below compute nothing."""
        first = nn.ModuleList([self._layers[-layers]])
        with passing(self._layers[:-layers]), before_each_layer(first, [lambda _: states]):
            yield

    def _states(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        cast = self.dtype == "bfloat16" and self.encoder.dtype == torch.float32  # a reference's own weights
        with torch.autocast(self.device.type, torch.bfloat16, enabled=cast):
            return self.encoder(**inputs).last_hidden_state

    def _read(self, inputs: Mapping[str, Any], own: torch.Tensor, virtual: int = 0) -> torch.Tensor:
        """Pool what the encoder gives for inputs whose first ``virtual`` tokens, under mean, nobody reads."""
        if self.pooling == "cls":
            shortcut = attend_from_cls(self._last_attention)
        else:
            shortcut = finish_without_first(self._last_attention, virtual)
        with shortcut:
            states = self._states(inputs)
        return pool(states, own[:, -states.shape[1] :], self.pooling)

    @cached_property
    def _layers(self) -> nn.ModuleList:
        return encoder_layers(self.encoder)

    @cached_property
    def _prefixed_layers(self) -> PrefixedLayers:
        return PrefixedLayers(self._layers, self.pooling, fused=self.dtype != "bfloat16")

    def _prefix_layers(self, prompts: RowPrompts) -> list[torch.Tensor]:
        values = prompts.values.to(self.encoder.dtype)
        shape = (self.layers_entered(values.shape[2]), 2, self.config.num_attention_heads, -1)
        # layer, key or value, row, head, token, dim
        return list(values.unflatten(2, shape).permute(2, 3, 0, 4, 1, 5))

    def _prefix(self, own: torch.Tensor, prompts: RowPrompts) -> dict[str, Any]:
        layers = self._prefix_layers(prompts)
        below = self.config.num_hidden_layers - len(layers)
        layers = [layers[0]] * below + layers  # nobody reads those of layers below
        return {
            "attention_mask": torch.cat([prompts.mask, own], dim=1),
            # len() would be a constant of an exported graph
            "past_key_values": _prefix_cache(
                [layer.expand(-1, own.shape[0], -1, -1, -1) for layer in layers]
            ),
            "position_ids": self._positions(own, prompts.mask.sum(1)),
        }

    def _positions(self, mask: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Position ids of the text behind ``shift`` keys; PEFT shifts them too."""
        return (mask.cumsum(1) - 1).clamp(min=0) + shift[:, None] + first_position(self.config)


def _prefix_cache(layers: Sequence[torch.Tensor]) -> DynamicCache:
    """Return what transformers reads keys and values of a prefix from; its own way there copies them.

    Args:
        layers: each of shape (2, batch, heads, tokens, size of a head), keys first.
    """
    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        layer.dtype, layer.device = keys.dtype, keys.device
        cache.layers.append(layer)
    return cache
