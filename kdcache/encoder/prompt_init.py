"""Where prompts start: tokens of real text, and what the layers of an encoder make of them.

PEFT starts prompts from N(0, 1), far from anything the encoder has seen. kdcache starts them from
the encoder's own states of separator tokens. Encoders attend to separators as a way to do nothing
(Clark et al., 2019), so a new prompt changes little, and the model starts close to the encoder
without a prompt. docs/log.md has the measurements.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from kdcache.encoder.batching import Encoded
from kdcache.encoder.parts import Classifier, encoder_layers
from kdcache.encoder.plans import permuted
from kdcache.errors import ModelError

Start = Literal["separators", "words"]
STARTS = ("separators", "words")
START_ROWS = 64

Picked = tuple[torch.Tensor, torch.Tensor]  # rows and positions in a batch, int64 of shape (tokens,) each


def pick_tokens(
    real_text: Encoded, num_tokens: int, seed: int, start: Start = "separators",
    device: torch.device | str = "cpu",
) -> tuple[dict[str, torch.Tensor], Picked]:  # fmt: skip
    """Pick tokens of real text for a prompt to start from.

    Args:
        real_text: rows to pick from; ``START_ROWS`` of them are looked at.
        num_tokens: how many; a token is picked twice only where there are too few.
        seed: of the choice.
        start: ``separators``, or ``words``: any token that is not special.
        device: of the batch.

    Returns:
        A batch of rows, and where in it the tokens are.

    Raises:
        ModelError: the rows looked at have no such token.
    """
    rng = np.random.default_rng(seed)
    batch = real_text.batch(permuted(rng, len(real_text))[:START_ROWS], device)
    ids, tokenizer = batch["input_ids"], real_text.tokenizer
    if start == "separators":
        wanted = torch.zeros_like(ids, dtype=torch.bool)
        if tokenizer.sep_token_id is not None:
            wanted = ids == tokenizer.sep_token_id
    else:
        wanted = ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))
    row, position = torch.nonzero(wanted, as_tuple=True)
    if not len(row):
        raise ModelError(
            f"prompts start from {start} in real rows, got none in {len(ids)} of them. Students can start "
            f"from {'words' if start == 'separators' else 'separators'}: distill.init."
        )
    picks = torch.from_numpy(rng.choice(len(row), num_tokens, replace=len(row) < num_tokens))
    return batch, (row[picks], position[picks])


@torch.no_grad()
def layer_states(encoder: PreTrainedModel, batch: Mapping[str, torch.Tensor], picked: Picked) -> torch.Tensor:
    """Compute the states that some tokens of a batch have before every layer.

    Args:
        encoder: without a head.
        batch: its inputs.
        picked: which tokens.

    Returns:
        Of shape (tokens, layers · dim).

    Raises:
        ModelError: the encoder has no single stack of layers.
    """
    seen: list[torch.Tensor] = []
    with _before_forward(encoder_layers(encoder), lambda _layer, inputs: seen.append(inputs[0][picked])):
        encoder(**batch)
    return torch.cat([states.float() for states in seen], dim=1)


@torch.no_grad()
def keys_and_values(
    model: Classifier, batch: Mapping[str, torch.Tensor], picked: Picked, section: str = "distill"
) -> torch.Tensor:
    """Compute the keys and values, at every layer, of some tokens of a batch.

    Args:
        model: an encoder with BERT's layers, or a classifier over one.
        batch: its inputs.
        picked: which tokens.
        section: of params.yaml, for the message.

    Returns:
        Of shape (tokens, layers · 2 · dim), as PEFT flattens prefixes: per layer key, then value.

    Raises:
        ModelError: the architecture has no key and value per layer.
    """
    attentions = [
        module for module in model.modules()
        if isinstance(getattr(module, "key", None), nn.Linear)
        and isinstance(getattr(module, "value", None), nn.Linear)
    ]  # fmt: skip
    if len(attentions) != model.config.num_hidden_layers:
        raise ModelError(
            f"{section}.method: prefix must have one key and one value Linear per layer, got "
            f"{model.config.model_type} without them. Use a BERT-, RoBERTa- or ELECTRA-like model."
        )
    seen: list[torch.Tensor] = []

    def keep(attention: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.extend([attention.key(inputs[0]), attention.value(inputs[0])])

    with _before_forward(attentions, keep):
        model(**batch)
    return torch.cat([states[picked].float() for states in seen], dim=1)


@contextmanager
def _before_forward(modules: Iterable[nn.Module], look: Callable[..., None]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(look) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
