"""What matrix products are computed in: float32, TF32 or bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

Dtype = Literal["float32", "tf32", "bfloat16"]
SHORT_ROWS = 256  # tokens: measured were 128, which is short, and 512, which is not


def set_products(dtype: Dtype) -> None:
    """Set what products of float32 matrices are computed in on a GPU, whatever was set before."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")


def hold_in_bfloat16(model: nn.Module) -> None:
    """Round a model's weights to bfloat16; its buffers, such as the frequencies of positions, stay exact."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


def choose_attention(model: PreTrainedModel, dtype: Dtype, max_length: int = 0) -> None:
    """Set how a model in training attends: on CPUs, torch's fused attention is slow backward in bfloat16.

    Args:
        model: an encoder.
        dtype: of matrix products.
        max_length: of its rows. Long ones are faster, and take less memory, with the fused attention.
    """
    if dtype == "bfloat16" and max_length <= SHORT_ROWS and not torch.cuda.is_available():
        model.set_attn_implementation("eager")


@contextmanager
def computing_in(dtype: Dtype, device: torch.device) -> Iterator[None]:
    """Compute in a dtype inside the block: bfloat16 under autocast."""
    before = torch.get_float32_matmul_precision()
    set_products(dtype)
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
