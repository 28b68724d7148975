"""Soft prompts: the vectors that are trained in front of a frozen backbone.

``kdcache.encoder.prompt_init`` says where they start.
"""

import torch
from torch import nn

from kdcache.encoder.architectures import Place
from kdcache.encoder.batching import Encoded
from kdcache.encoder.prompt_init import Start, keys_and_values, layer_states, pick_tokens
from kdcache.errors import ModelError
from kdcache.students.prompted_backbone import Backbone

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
        self.weight = nn.Parameter(start.to(torch.promote_types(start.dtype, torch.float32), copy=True))

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
    Differs: the MLP adds to a start from real text, and at first it adds 0, as in residual prompt
    tuning (Razdaibiedina et al., 2023). A student's folder holds the sum, without the MLP.
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


@torch.no_grad()
def build_prompt(
    method: str,
    place: Place,
    backbone: Backbone,
    num_virtual_tokens: int,
    real_text: Encoded,
    seed: int,
    start: Start = "separators",
    late_layers: int = 0,
) -> Prompt:
    """Build an untrained prompt.

    Args:
        method: one with a prompt.
        place: where it enters.
        backbone: the frozen encoder.
        num_virtual_tokens: its length, in tokens.
        real_text: rows whose tokens it starts from.
        seed: of which tokens, and of p-tuning's MLP.
        start: which tokens of real text it starts from.
        late_layers: how many of the last layers a late prompt enters.
    """
    batch, picked = pick_tokens(real_text, num_virtual_tokens, seed, start, backbone.device)
    if place in ("deep", "late"):
        values = keys_and_values(backbone.encoder, backbone.inputs(batch), picked)
        values = values[:, -backbone.prompt_width(place, late_layers) :]
    elif place == "states":
        values = layer_states(backbone.encoder, backbone.inputs(batch), picked)
    else:
        values = backbone.encoder.get_input_embeddings()(batch["input_ids"][picked])
    torch.manual_seed(seed)
    return (PTuning if method == "p_tuning" else Prompt)(place, values)
