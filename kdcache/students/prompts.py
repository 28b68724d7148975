"""Soft prompts: what is trained in front of a frozen backbone, and where it starts.

PEFT's default start is N(0, 1), far from anything the backbone has seen. Here prompts start
as the backbone's own states for separators in real text, which encoders attend to as a way to
do nothing (Clark et al., 2019), so that the student starts near the backbone it is and not as
one that reads sixteen words too many (docs/log.md has the measurements).
"""

from typing import Literal

import numpy as np
import torch
from torch import nn

from kdcache.encoder.adapters import INIT_ROWS, keys_and_values
from kdcache.encoder.batching import Encoded
from kdcache.errors import ModelError
from kdcache.students.frozen import Backbone, Place

Start = Literal["separators", "words"]
STARTS = ("separators", "words")

MLP_DIM = 128


class Prompt(nn.Module):
    """A trained prompt.

    Args:
        place: where it enters the backbone.
        start: of shape (virtual_tokens, width), see ``RowPrompts``.
    """

    def __init__(self, place: Place, start: torch.Tensor) -> None:
        super().__init__()
        self.place = place
        self.weight = nn.Parameter(start.clone())

    def forward(self) -> torch.Tensor:
        """The prompt, of shape (virtual_tokens, width)."""
        return self.weight

    @torch.no_grad()
    def start_from(self, other: "Prompt | None") -> None:
        """Take another student's prompt as the start (prompt transfer, Vu et al., 2022, SPoT).

        Raises:
            ModelError: it has none, or one of another place or size.
        """
        if other is None or (other.place, other().shape) != (self.place, self.weight.shape):
            got = "none" if other is None else f"{' × '.join(map(str, other().shape))} ({other.place})"
            raise ModelError(
                f"distill.init: the other student's prompt must be {' × '.join(map(str, self.weight.shape))} "
                f"({self.place}), virtual tokens × width, got {got}. Start from a student of the same "
                "method, backbone and num_virtual_tokens."
            )
        self.weight.copy_(other())


class PTuning(Prompt):
    """An input prompt re-parametrised by an MLP: prompt = weight + MLP(code).

    Reference: Liu et al., 2021, GPT understands, too.
    Differs: the MLP adds to a start from real words and adds nothing at first, as in residual
    prompt tuning (Razdaibiedina et al., 2023); it is not kept: what is saved is the sum.
    """

    def __init__(self, place: Place, start: torch.Tensor) -> None:
        super().__init__(place, start)
        width = start.shape[1]
        self.code = nn.Parameter(torch.randn(len(start), MLP_DIM))
        last = nn.Linear(MLP_DIM, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(MLP_DIM, MLP_DIM), nn.ReLU(), last)

    def forward(self) -> torch.Tensor:
        """The prompt, of shape (virtual_tokens, width)."""
        return self.weight + self.mlp(self.code)


# Method → the class of its prompt, and where it enters.
PROMPTS: dict[str, tuple[type[Prompt], Place]] = {
    "prefix": (Prompt, "deep"),
    "prompt": (Prompt, "input"),
    "p_tuning": (PTuning, "input"),
}


def build_prompt(
    method: str,
    backbone: Backbone,
    num_virtual_tokens: int,
    real_text: Encoded,
    seed: int,
    start: Start = "separators",
) -> Prompt:
    """Build an untrained prompt.

    Args:
        method: a key of ``PROMPTS``.
        backbone: the frozen encoder.
        num_virtual_tokens: its length, in tokens.
        real_text: rows whose tokens it starts from.
        seed: of which tokens, and of p-tuning's MLP.
        start: which tokens of real text it starts from.
    """
    cls, place = PROMPTS[method]
    rng = np.random.default_rng(seed)
    batch = real_text.batch(rng.permutation(len(real_text))[:INIT_ROWS], backbone.device)
    row, position = torch.nonzero(_tokens_of(start, batch, real_text), as_tuple=True)
    picks = torch.from_numpy(rng.choice(len(row), num_virtual_tokens, replace=len(row) < num_virtual_tokens))
    picked = row[picks], position[picks]
    torch.manual_seed(seed)
    if place == "input":
        return cls(place, _embeddings(backbone, batch["input_ids"][picked]))
    return cls(place, keys_and_values(backbone.encoder, batch, picked))


def _tokens_of(start: Start, batch: dict[str, torch.Tensor], real_text: Encoded) -> torch.Tensor:
    """Which tokens of a batch a prompt may start from: bool of shape (batch, tokens)."""
    ids = batch["input_ids"]
    if start == "separators":
        return ids == real_text.tokenizer.sep_token_id
    special = torch.tensor(real_text.tokenizer.all_special_ids, device=ids.device)
    return ~torch.isin(ids, special)


@torch.no_grad()
def _embeddings(backbone: Backbone, ids: torch.Tensor) -> torch.Tensor:
    return backbone.encoder.get_input_embeddings()(ids)
