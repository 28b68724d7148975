"""PEFT models over a classifier, by PEFT's own classes, started well: of students and of teachers.

PEFT's default start for prefixes is N(0, 1), far from anything the backbone has seen. Here a
prefix starts as the backbone's own keys and values for the separator tokens of real text.
Encoders attend to separators as a way to do nothing (Clark et al., 2019), so that the
student starts as the backbone it is, and not as one that reads sixteen words too many.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers import PreTrainedModel

from kdcache.batching import Encoded
from kdcache.errors import ModelError
from kdcache.models import load_classifier
from kdcache.shortcut import finish_only_cls

INIT_ROWS = 64


def build_student(
    method: str,
    backbone: Path,
    num_labels: int,
    num_virtual_tokens: int,
    max_length: int,
    real_text: Encoded,
    seed: int,
) -> PeftModel:
    """Build an untrained student.

    Args:
        method: a key of ``METHODS``.
        backbone: a plain transformers folder; its weights are frozen.
        num_labels: outputs of the new head, per sequence.
        num_virtual_tokens: length of the prompt, in tokens.
        max_length: of the inputs, in tokens.
        real_text: rows whose separators the prompt starts from.
        seed: of head and start.

    Returns:
        A PEFT model in eval mode (no dropout); only prompts, pooler and head require a gradient.

    Raises:
        ModelError: the method does not work on this architecture, or positions run out.
    """
    model = load_classifier(backbone, num_labels, seed)
    _check_positions(model, method, num_virtual_tokens, max_length, backbone)
    student = METHODS[method](model, num_virtual_tokens, real_text, seed)
    student.peft_config["default"].base_model_name_or_path = str(backbone)
    finish_only_cls(student)
    return student.eval()


def _build_head(model: PreTrainedModel, _tokens: int, _text: Encoded, _seed: int) -> PeftModel:
    """No prompts: PEFT's way to save trained modules alone is a LoRA without targets."""
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, target_modules=DUMMY_TARGET_MODULES, modules_to_save=_poolers(model)
    )
    return get_peft_model(model, config)


def _build_prefix(
    model: PreTrainedModel, num_virtual_tokens: int, real_text: Encoded, seed: int
) -> PeftModel:
    """P-tuning v2's deep prompts (Liu et al., 2022): keys and values of virtual tokens, per layer."""
    layers = _self_attentions(model)
    start = _separator_keys_and_values(model, layers, real_text, num_virtual_tokens, seed)
    config = PrefixTuningConfig(
        task_type=TaskType.SEQ_CLS, num_virtual_tokens=num_virtual_tokens, modules_to_save=_poolers(model)
    )
    with warnings.catch_warnings():
        # PEFT warns that prefix tuning does not know `modules_to_save`; the round-trip test says it does.
        warnings.simplefilter("ignore")
        student = get_peft_model(model, config)
    student.prompt_encoder["default"].load_prompt_embeddings(start)  # type: ignore[operator]
    return student


def _poolers(model: PreTrainedModel) -> list[str] | None:
    """Beside the head, which PEFT saves by itself: a pooler fits the layer it was trained on, if any."""
    has_pooler = any(name.rpartition(".")[2] == "pooler" for name, _ in model.named_modules())
    return ["pooler"] if has_pooler else None


METHODS: dict[str, Callable[[PreTrainedModel, int, Encoded, int], PeftModel]] = {
    "head": _build_head,
    "prefix": _build_prefix,
}


def _check_positions(
    model: PreTrainedModel, method: str, num_virtual_tokens: int, max_length: int, backbone: Path
) -> None:
    table = getattr(model.config, "max_position_embeddings", None)
    tokens = max_length + (num_virtual_tokens if method != "head" else 0)
    if table is not None and tokens > table:
        raise ModelError(
            f"distill: max_length + num_virtual_tokens must be at most the {table} positions of "
            f"{backbone}, got {tokens}. Lower distill.max_length or distill.num_virtual_tokens."
        )


def _self_attentions(model: PreTrainedModel) -> list[nn.Module]:
    """The modules with ``key`` and ``value``, in layer order (BERT, RoBERTa, ELECTRA and their kin)."""
    found = [
        module for module in model.modules()
        if isinstance(getattr(module, "key", None), nn.Linear)
        and isinstance(getattr(module, "value", None), nn.Linear)
    ]  # fmt: skip
    if len(found) != model.config.num_hidden_layers:
        raise ModelError(
            f"distill.method: prefix must have one key and one value Linear per layer, got "
            f"{model.config.model_type} without them. Use a BERT-, RoBERTa- or ELECTRA-like backbone."
        )
    return found


@torch.no_grad()
def _separator_keys_and_values(
    model: PreTrainedModel, layers: list[nn.Module], real_text: Encoded, num_virtual_tokens: int, seed: int
) -> torch.Tensor:
    """Keys and values, at every layer, of separator tokens drawn from real text.

    Returns:
        Of shape (virtual_tokens, layers · 2 · dim), as PEFT flattens it: per layer key, then value.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(real_text))[:INIT_ROWS]
    batch = real_text.batch(rows)
    seen: list[torch.Tensor] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, output: seen.append(output))
        for layer in layers
        for module in (layer.get_submodule("key"), layer.get_submodule("value"))
    ]
    try:
        model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    row, position = torch.nonzero(batch["input_ids"] == real_text.tokenizer.sep_token_id, as_tuple=True)
    picks = torch.from_numpy(rng.choice(len(row), num_virtual_tokens, replace=len(row) < num_virtual_tokens))
    return torch.cat([states[row[picks], position[picks]] for states in seen], dim=1)
