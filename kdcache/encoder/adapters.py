"""PEFT models over a classifier, made by PEFT's own classes, and their folders."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import LoraConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from transformers import PreTrainedModel

from kdcache.encoder.batching import Encoded
from kdcache.encoder.load import load_classifier, resolve
from kdcache.encoder.prompt_init import keys_and_values, pick_tokens

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def add_prefix(
    model: PreTrainedModel, num_virtual_tokens: int, real_text: Encoded, seed: int, section: str = "distill"
) -> PeftModel:
    """Add the deep prompts of P-tuning v2 (Liu et al., 2022): keys and values of virtual tokens, per layer.

    Args:
        model: a classifier, freshly loaded; pooler and head stay trainable, all else is frozen.
        num_virtual_tokens: length of the prompt, in tokens.
        real_text: rows whose separators the prompt starts from.
        seed: of the start.
        section: of params.yaml, for messages.

    Raises:
        ModelError: the architecture has no keys and values to put prompts beside.
    """
    start = keys_and_values(model, *pick_tokens(real_text, num_virtual_tokens, seed), section)
    config = PrefixTuningConfig(
        task_type=TaskType.SEQ_CLS, num_virtual_tokens=num_virtual_tokens, modules_to_save=_poolers(model)
    )
    with quiet_peft():
        whole = get_peft_model(model, config)
    whole.prompt_encoder["default"].load_prompt_embeddings(start)  # type: ignore[operator]
    return whole


def add_lora(model: PreTrainedModel, rank: int, alpha: int) -> PeftModel:
    """Add LoRA (Hu et al., 2022) to every linear layer below pooler and head, which are trained whole.

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


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence PEFT's warning that prefix tuning does not know ``modules_to_save``.

    Prefix tuning does save and load these modules; the tests of folders read them back.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save_adapter(model: PeftModel, folder: Path, base: str) -> None:
    """Write weights (safetensors) and a canonical adapter_config.json: the same model gives the same bytes.

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
    with quiet_peft():
        return PeftModel.from_pretrained(base, str(folder)).eval()


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a whole model."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """Return the reference of the model that an adapter adapts."""
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]


def _poolers(model: PreTrainedModel) -> list[str] | None:
    """Names of what stands between encoder and classifier; PEFT saves the classifier by itself."""
    there = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return [name for name in ("pooler", "head") if name in there] or None
