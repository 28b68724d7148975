"""PEFT models over a classifier, by PEFT's own classes, started well: of students and of teachers.

PEFT's default start for prefixes is N(0, 1), far from anything the backbone has seen. Here a
prefix starts as the backbone's own keys and values for the separator tokens of real text.
Encoders attend to separators as a way to do nothing (Clark et al., 2019), so that the
student starts as the backbone it is, and not as one that reads sixteen words too many.
"""

import json
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
from kdcache.models import finish_only_cls, load_classifier, resolve

INIT_ROWS = 64
COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")  # position 0 is the padding token's index + 1
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


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
    check_positions(model, num_virtual_tokens if method != "head" else 0, max_length, backbone)
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
    layers = _self_attentions(model, section)
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
        base: reference of the model it adapts, as the file is to name it (see ``kdcache.models``).
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


METHODS: dict[str, Callable[[PreTrainedModel, int, Encoded, int], PeftModel]] = {
    "head": _build_head,
    "prefix": add_prefix,
}


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


def _self_attentions(model: PreTrainedModel, section: str) -> list[nn.Module]:
    """The modules with ``key`` and ``value``, in layer order (BERT, RoBERTa, ELECTRA and their kin)."""
    found = [
        module for module in model.modules()
        if isinstance(getattr(module, "key", None), nn.Linear)
        and isinstance(getattr(module, "value", None), nn.Linear)
    ]  # fmt: skip
    if len(found) != model.config.num_hidden_layers:
        raise ModelError(
            f"{section}.method: prefix must have one key and one value Linear per layer, got "
            f"{model.config.model_type} without them. Use a BERT-, RoBERTa- or ELECTRA-like model."
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
