"""PEFT models over a classifier, by PEFT's own classes, started well; what prefixes start from.

PEFT's default start for prefixes is N(0, 1), far from anything the backbone has seen. Here a
prefix starts as the backbone's own keys and values for the separator tokens of real text.
Encoders attend to separators as a way to do nothing (Clark et al., 2019), so that the
student starts as the backbone it is, and not as one that reads sixteen words too many.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from kdcache.encoder.batching import Encoded
from kdcache.encoder.load import COUNT_FROM_PADDING, load_classifier, resolve
from kdcache.errors import ModelError

INIT_ROWS = 64
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def add_prefix(
    model: PreTrainedModel, num_virtual_tokens: int, real_text: Encoded, seed: int, section: str = "distill"
) -> PeftModel:
    """P-tuning v2's deep prompts (Liu et al., 2022): keys and values of virtual tokens, per layer.

    Args:
        model: a classifier, freshly loaded; pooler and head stay trainable, all else is frozen.
        num_virtual_tokens: length of the prompt, in tokens.
        real_text: rows whose separators the prompt starts from.
        seed: of the start.
        section: of params.yaml, for messages.

    Raises:
        ModelError: the architecture has no keys and values to put prompts beside.
    """
    rng = np.random.default_rng(seed)
    batch = real_text.batch(rng.permutation(len(real_text))[:INIT_ROWS])
    row, position = torch.nonzero(batch["input_ids"] == real_text.tokenizer.sep_token_id, as_tuple=True)
    picks = torch.from_numpy(rng.choice(len(row), num_virtual_tokens, replace=len(row) < num_virtual_tokens))
    start = keys_and_values(model, batch, (row[picks], position[picks]), section)
    config = PrefixTuningConfig(
        task_type=TaskType.SEQ_CLS, num_virtual_tokens=num_virtual_tokens, modules_to_save=_poolers(model)
    )
    with warnings.catch_warnings():
        # PEFT warns that prefix tuning does not know `modules_to_save`; the round-trip test says it does.
        warnings.simplefilter("ignore")
        student = get_peft_model(model, config)
    student.prompt_encoder["default"].load_prompt_embeddings(start)  # type: ignore[operator]
    return student


def add_lora(model: PreTrainedModel, rank: int, alpha: int) -> PeftModel:
    """LoRA (Hu et al., 2022) on every linear layer below pooler and head, which are trained whole.

    Args:
        model: a classifier, freshly loaded.
        rank: of the update of each layer's weight.
        alpha: the update counts alpha / rank times.
    """
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=rank, lora_alpha=alpha,
        target_modules="all-linear", modules_to_save=_poolers(model),
    )  # fmt: skip
    return get_peft_model(model, config)


def save_adapter(model: PeftModel, folder: Path, base: str) -> None:
    """Write weights (safetensors) and a canonical adapter_config.json: the same model, the same bytes.

    Args:
        model: trained; its ``base_model_name_or_path`` is a local folder.
        folder: where to; made here.
        base: reference of the model it adapts, as the file is to name it (see ``kdcache.encoder.load``).
    """
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink()  # PEFT's card is an empty form
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    for key, value in config.items():
        if isinstance(value, list):  # PEFT fills these from sets, and some names twice
            config[key] = sorted(set(value))
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def load_teacher(folder: Path, num_labels: int) -> PreTrainedModel | PeftModel:
    """Load a trained teacher: a transformers folder, or an adapter and the model that it names.

    Args:
        folder: as ``train_teacher`` wrote it.
        num_labels: outputs of the head, per sequence.

    Raises:
        ModelError: the adapter's base does not resolve, or one of them does not load.
    """
    if not is_adapter(folder):
        return load_classifier(folder, num_labels, seed=0)
    base = load_classifier(resolve(base_of(folder)), num_labels, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same as in add_prefix
        return PeftModel.from_pretrained(base, str(folder)).eval()


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a whole model."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """Reference of the model that an adapter adapts."""
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]


def _poolers(model: PreTrainedModel) -> list[str] | None:
    """Beside the classifier, which PEFT saves by itself: what is below it fits the states of one layer."""
    there = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return [name for name in ("pooler", "head") if name in there] or None


def check_positions(
    model: PreTrainedModel, num_virtual_tokens: int, max_length: int, folder: Path, section: str = "distill"
) -> None:
    """Refuse prompts and inputs that together are longer than the model's table of positions.

    Args:
        model: the classifier.
        num_virtual_tokens, max_length: in tokens.
        folder, section: of the model and of params.yaml, for messages.

    Raises:
        ModelError: they are; past the table the forward pass fails deep inside.
    """
    table = getattr(model.config, "max_position_embeddings", None)
    if table is not None and model.config.model_type in COUNT_FROM_PADDING:
        table -= model.config.pad_token_id + 1
    tokens = max_length + num_virtual_tokens
    if table is not None and tokens > table:
        raise ModelError(
            f"{section}: max_length + num_virtual_tokens must be at most the {table} positions of "
            f"{folder}, got {tokens}. Lower {section}.max_length or {section}.num_virtual_tokens."
        )


@torch.no_grad()
def keys_and_values(
    model: PreTrainedModel,
    batch: Mapping[str, torch.Tensor],
    picked: tuple[torch.Tensor, torch.Tensor],
    section: str = "distill",
) -> torch.Tensor:
    """Keys and values, at every layer, of some tokens of a batch.

    Args:
        model: an encoder of the BERT kind, or a classifier over one.
        batch: its inputs.
        picked: (rows, positions) of the tokens, int64 of shape (tokens,) each.
        section: of params.yaml, for messages.

    Returns:
        Of shape (tokens, layers · 2 · dim), as PEFT flattens prefixes: per layer key, then value.

    Raises:
        ModelError: the architecture has no keys and values to look at.
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

    def see(attention: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.extend([attention.key(inputs[0]), attention.value(inputs[0])])

    handles = [attention.register_forward_pre_hook(see) for attention in attentions]
    try:
        model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([states[picked].float() for states in seen], dim=1)
