"""A classifier that reads the mean of its encoder's states: a Linear over it, and its folder.

transformers has such a head for a few architectures only. The folder holds an encoder, whole or
as a PEFT adapter for feature extraction, and the Linear in ``head.safetensors``, so that plain
transformers or peft and a few lines load it (docs/reference/students.md).
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from kdcache.encoder.pooling import pool
from kdcache.encoder.weights import check_weights, read_weights

HEAD = "head.safetensors"
INITIAL_STD = 0.02


class MeanPooledClassifier(nn.Module):
    """An encoder and a Linear over the mean of its states.

    The mean is over the text's own tokens. Segment ids (``token_type_ids``) are not read: sentence
    encoders are trained without, and PEFT's feature extraction drops them.

    Args:
        encoder: from transformers, without a pooler, or PEFT's model for feature extraction.
        num_labels: logits per sequence.
        seed: of the Linear's start.
    """

    def __init__(self, encoder: PreTrainedModel | PeftModel, num_labels: int, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.config: Any = encoder.config
        self.dropout = nn.Dropout(_dropout_of(self.config))
        self.classifier = fresh_linear(self.config.hidden_size, num_labels, seed)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.classifier.weight.device

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **others: Any
    ) -> SequenceClassifierOutput:
        """Return logits of shape (batch, num_labels); with ``labels``, cross-entropy too."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        own = states[:, -attention_mask.shape[1] :]  # virtual tokens come first
        pooled = pool(own, attention_mask, "mean")
        logits = self.classifier(self.dropout(pooled).to(self.classifier.weight.dtype))
        labels = others.get("labels")
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def fresh_linear(dim: int, num_labels: int, seed: int) -> nn.Linear:
    """Return an untrained head over states of shape (batch, dim)."""
    linear = nn.Linear(dim, num_labels)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(linear.weight, std=INITIAL_STD, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


def _dropout_of(config: Any) -> float:
    """The probability of dropout before a classifier, by its name in some architecture's config."""
    names = ("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "hidden_dropout_prob")
    for name in names:
        if isinstance(value := getattr(config, name, None), float):
            return value
    return 0.0


def save_head(classifier: nn.Linear, folder: Path) -> None:
    """Write the Linear: ``weight`` of shape (num_labels, dim), ``bias`` of shape (num_labels,)."""
    weights = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
    save_file(weights, folder / HEAD)


def load_head(classifier: nn.Linear, folder: Path) -> None:
    """Read the Linear back, in place.

    Raises:
        ModelError: it is missing, broken, or of another shape.
    """
    found = read_weights(folder / HEAD)
    check_weights(folder / HEAD, found, classifier.state_dict())
    classifier.load_state_dict(found)
