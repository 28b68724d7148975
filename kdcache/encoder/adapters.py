"""Adapters over a classifier, made by PEFT's own classes, and the folders of trained classifiers."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import (
    LoraConfig,
    PeftModel,
    PeftType,
    PrefixTuningConfig,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
)
from torch import nn
from transformers import PreTrainedModel

from kdcache.encoder.adapter_config import CONFIG, WEIGHTS, read_adapter_config, read_base
from kdcache.encoder.batching import Encoded
from kdcache.encoder.load import UNNAMED, load_classifier, save_model
from kdcache.encoder.mean_pooled import HEAD, MeanPooledClassifier, load_head, save_head
from kdcache.encoder.parts import Classifier, head_names
from kdcache.encoder.pooling import Pooling, write_pooling
from kdcache.encoder.prompt_init import keys_and_values, pick_tokens
from kdcache.encoder.references import resolve
from kdcache.encoder.weights import check_weights, read_weights
from kdcache.errors import ModelError

Trained = PreTrainedModel | PeftModel | MeanPooledClassifier


def add_prefix(
    model: Classifier, num_virtual_tokens: int, real_text: Encoded, seed: int, section: str = "distill"
) -> PeftModel | MeanPooledClassifier:
    """Add the deep prompts of P-tuning v2 (Liu et al., 2022): keys and values of virtual tokens, per layer.

    Args:
        model: a classifier, freshly loaded; pooler and head stay trainable, all else is frozen.
        num_virtual_tokens: length of the prompt, in tokens.
        real_text: rows whose separators the prompt starts from.
        seed: of the start.
        section: of params.yaml, for messages.

    Returns:
        A PEFT model over a classifier that reads [CLS]; a mean-pooled one with the prompts in its encoder.

    Raises:
        ModelError: the architecture has no keys and values to put prompts beside.
    """
    device = next(model.parameters()).device
    picked = pick_tokens(real_text, num_virtual_tokens, seed, device=device)
    start = keys_and_values(model, *picked, section)
    whole = _adapt(model, PrefixTuningConfig(num_virtual_tokens=num_virtual_tokens))
    adapter: Any = adapter_of(whole)
    adapter.prompt_encoder["default"].load_prompt_embeddings(start)
    return whole


def add_lora(model: Classifier, rank: int, alpha: int) -> PeftModel | MeanPooledClassifier:
    """Add LoRA (Hu et al., 2022) to every linear layer below pooler and head, which are trained whole.

    Args:
        model: a classifier, freshly loaded.
        rank: of the update of each layer's weight.
        alpha: the update counts alpha / rank times.

    Returns:
        As ``add_prefix``.
    """
    return _adapt(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear"))


def _adapt(model: Classifier, config: PrefixTuningConfig | LoraConfig) -> PeftModel | MeanPooledClassifier:
    """Wrap a classifier that reads [CLS] as a whole, and of a mean-pooled one the encoder."""
    if isinstance(model, MeanPooledClassifier):
        config.task_type = TaskType.FEATURE_EXTRACTION
        with quiet_peft():
            model.encoder = get_peft_model(model.encoder, config)
        return model
    config.task_type = TaskType.SEQ_CLS  # PEFT then saves the module ``classifier`` by itself
    names = [name.rpartition(".")[2] for name in head_names(model)]
    config.modules_to_save = [name for name in names if name != "classifier"] or None
    with quiet_peft():
        return get_peft_model(model, config)


def adapter_of(model: nn.Module) -> PeftModel | None:
    """Return the PEFT model of a classifier: itself, or its encoder; None where there is no adapter."""
    inner = model.encoder if isinstance(model, MeanPooledClassifier) else model
    return inner if isinstance(inner, PeftModel) else None


def merge_adapter(model: Trained) -> Classifier:
    """Return the classifier with its LoRA merged into the weights."""
    merged: Any = adapter_of(model).merge_and_unload()  # type: ignore[union-attr]
    if isinstance(model, MeanPooledClassifier):
        model.encoder = merged
        return model
    return merged


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence what PEFT warns of while it wraps a model: no user can act on it.

    It says that prefix tuning does not know ``modules_to_save``. Prefix tuning does save and load these
    modules; the tests of folders read them back. And it asks transformers for a property under an old name.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save_adapter(model: PeftModel, folder: Path, base: str) -> None:
    """Write weights (safetensors) and a canonical adapter_config.json: the same model gives the same bytes.

    Args:
        model: trained; its ``base_model_name_or_path`` is a local folder.
        folder: where to; made here.
        base: reference of the model it adapts, as the file is to name it (see ``references``).
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


def save_trained(model: Trained, folder: Path, base: str, outputs: Sequence[str] = UNNAMED) -> None:
    """Write a classifier with trained weights of its own: a teacher, or a student that is no prompt.

    Args:
        model: trained. One that reads [CLS] becomes a transformers folder or an adapter. Of a mean-pooled
            one the encoder does, and its head lies beside it (see ``mean_pooled``).
        folder: where to; made here.
        base: see ``save_adapter``.
        outputs: see ``load.save_model``; an adapter's folder has no place for them.
    """
    if adapter := adapter_of(model):
        save_adapter(adapter, folder, base)
    else:
        whole: Any = model.encoder if isinstance(model, MeanPooledClassifier) else model
        save_model(whole, None, folder, outputs)
    if isinstance(model, MeanPooledClassifier):
        save_head(model.classifier, folder)
        write_pooling(folder, "mean", model.classifier.in_features)


def load_trained(
    folder: Path,
    num_labels: int,
    pooling: Pooling,
    kind: PeftType = PeftType.PREFIX_TUNING,
    base: Path | None = None,
) -> Trained:
    """Load what ``save_trained`` wrote: a transformers folder, or an adapter and the model that it names.

    Args:
        folder: of the trained classifier.
        num_labels: outputs of the head, per sequence.
        pooling: what the head reads.
        kind: of the adapter, where there is one.
        base: folder of the model it adapts; None resolves the one that the adapter names.

    Returns:
        The classifier, in eval mode.

    Raises:
        ModelError: the adapter's base does not resolve, a part does not load, or the head is missing.
    """
    whole = not is_adapter(folder)
    if base is None:
        base = folder if whole else resolve(read_base(folder))
    model: Any = load_classifier(base, num_labels, 0, pooling, complete=whole)
    if not whole:
        model = put_adapter(model, folder, kind)
    elif isinstance(model, MeanPooledClassifier):
        load_head(model.classifier, folder)
    return model.eval()


def put_adapter(model: Classifier, folder: Path, kind: PeftType) -> PeftModel | MeanPooledClassifier:
    """Put the trained adapter of a folder over its classifier, and the head of a mean-pooled one.

    Raises:
        ModelError: the adapter is of another kind, or a weight is missing, surplus, of another shape or not
            finite.
    """
    found = read_weights(folder / WEIGHTS)
    mean = isinstance(model, MeanPooledClassifier)
    modules = None if mean else [name.rpartition(".")[2] for name in head_names(model)]
    config = read_adapter_config(folder, kind, found, modules)
    inner: Any = model.encoder if isinstance(model, MeanPooledClassifier) else model
    try:
        with quiet_peft():
            adapted = PeftModel.from_pretrained(inner, str(folder), config=config, trust_remote_code=False)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[-1].strip().rstrip(".")
        raise ModelError(
            f"{folder / WEIGHTS}: it must be an adapter of its base model, got: {reason}."
        ) from None
    check_weights(folder / WEIGHTS, found, get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if isinstance(model, MeanPooledClassifier):
        model.encoder = adapted
        load_head(model.classifier, folder)
        return model
    return adapted


def saved_pooling(folder: Path) -> Pooling:
    """Return what a trained teacher's head reads: a mean-pooled one has a file of its own."""
    return "mean" if (folder / HEAD).is_file() else "cls"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a whole model."""
    return (folder / CONFIG).is_file()
