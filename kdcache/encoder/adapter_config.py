"""adapter_config.json, read against a schema of ours: PEFT gets what the weights bear out and no more."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftType, PrefixTuningConfig, TaskType

from kdcache.errors import ModelError, shorten
from kdcache.plain_json import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLAIN_MODULE = re.compile(r"\w+(\.\w+)*")
# What else changes a LoRA's values. None of it is used here, so each must be PEFT's default.
OF_LORA = (
    "alpha_pattern", "bias", "exclude_modules", "fan_in_fan_out", "layer_replication", "layers_pattern",
    "layers_to_transform", "lora_bias", "megatron_config", "rank_pattern", "target_parameters",
    "trainable_token_indices", "use_dora", "use_qalora", "use_rslora",
)  # fmt: skip


def read_adapter_config(
    folder: Path, kind: PeftType, weights: Mapping[str, torch.Tensor], modules: list[str] | None
) -> LoraConfig | PrefixTuningConfig:
    """Read the config of an adapter, and check what it claims against the adapter's weights.

    Args:
        folder: of the adapter.
        kind: which it must be: LORA or PREFIX_TUNING.
        weights: of the adapter, by their names in its file.
        modules: names of the modules that are trained whole: those of the head, if the adapter holds it.

    Raises:
        ModelError: it is no JSON, or a field has another type or value than the weights.
    """
    found = _read(folder)

    def refuse(name: str, wanted: str) -> ModelError:
        return ModelError(
            f"{folder / CONFIG}: {name} must be {wanted}, got {shorten(found.get(name))}. "
            "Train the model again, or copy its whole folder."
        )

    if found.get("peft_type") != kind.value:
        raise refuse("peft_type", kind.value)
    task_type = TaskType.SEQ_CLS if modules else TaskType.FEATURE_EXTRACTION
    common: dict[str, Any] = {"task_type": task_type, "modules_to_save": modules}
    if kind == PeftType.PREFIX_TUNING:
        prompt = weights.get("prompt_embeddings", torch.empty(0))
        tokens = len(prompt) if prompt.ndim == 2 else 0
        if not tokens or found.get("num_virtual_tokens") != tokens or found["num_virtual_tokens"] is True:
            raise refuse("num_virtual_tokens", f"{tokens}, as in {WEIGHTS}")
        if found.get("prefix_projection", False) is not False:
            raise refuse("prefix_projection", "false")
        return PrefixTuningConfig(num_virtual_tokens=tokens, **common)
    ranks = {len(value) for name, value in weights.items() if ".lora_A." in name and value.ndim == 2}
    if type(found.get("r")) is not int or ranks != {found["r"]}:
        raise refuse("r", f"{', '.join(map(str, sorted(ranks))) or 'none'}, as in {WEIGHTS}")
    targets: Any = found.get("target_modules")
    alpha: Any = found.get("lora_alpha")
    if not _are_modules(targets) or not targets:
        raise refuse("target_modules", "a list of names of modules")
    if type(alpha) not in (int, float) or not 0 < alpha < 1e6:
        raise refuse("lora_alpha", "a number between 0 and 1000000")
    plain = LoraConfig()
    for name in OF_LORA:
        if found.get(name) and found[name] != getattr(plain, name, None):
            raise refuse(name, f"{getattr(plain, name, None)!r}, as PEFT has it by default")
    return LoraConfig(r=found["r"], lora_alpha=alpha, target_modules=targets, **common)


def read_base(folder: Path) -> str:
    """Return the reference of the model that an adapter adapts.

    Raises:
        ModelError: the config names none.
    """
    base = _read(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{folder / CONFIG}: base_model_name_or_path must be the model's reference, got {shorten(base)}."
        )
    return base


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / CONFIG)
        if not isinstance(found, dict):
            raise ValueError(f"{shorten(found)}")
    except ValueError as error:
        raise ModelError(f"{folder / CONFIG}: it must be a JSON object, got: {error}.") from None
    return found


def _are_modules(names: Any) -> bool:
    return isinstance(names, list) and len(names) <= 1000 and all(
        isinstance(name, str) and len(name) <= 200 and PLAIN_MODULE.fullmatch(name) for name in names
    )  # fmt: skip
