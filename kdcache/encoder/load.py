"""Loading models from local folders: tokenizers, encoders and classifiers, in float32."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from kdcache.digests import file_digest, value_digest
from kdcache.encoder.mean_pooled import MeanPooledClassifier
from kdcache.encoder.model_config import check_config, check_tokenizer_files, read_config
from kdcache.encoder.pooling import Pooling
from kdcache.encoder.precision import Dtype, set_products
from kdcache.encoder.weights import check_weights
from kdcache.errors import ModelError, reason_of

FILES = ["config.json", "*.safetensors", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json"]
WEIGHTS = "model.safetensors"
UNNAMED = ("LABEL_0", "LABEL_1")  # what transformers calls the outputs of a head that it knows nothing of


def setup(threads: int, dtype: Dtype = "float32") -> torch.device:
    """Set what decides bits, threads and precision; silence loading messages; choose the device.

    Args:
        threads: CPU threads; another count gives other bits. Threads that already run are left as they are.
        dtype: of matrix products.

    Returns:
        The CUDA device if there is one, else the CPU. The processes of torchrun have one each.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # CPUs are many times slower with numbers nearer to 0 than 1e-38
    set_products(dtype)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    cuda = torch.cuda.is_available()
    if cuda and "TORCHELASTIC_RUN_ID" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return torch.device("cuda" if cuda else "cpu")


def machine_kind(device: torch.device) -> str:
    """Name what decides the last bits of a computation, besides code and threads: device and PyTorch."""
    cuda = device.type == "cuda"
    kind = (
        torch.cuda.get_device_name(device) if cuda else f"CPU with {torch.backends.cpu.get_cpu_capability()}"
    )
    return f"{kind}, torch {torch.__version__}"


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model folder; it pads on the right, wherever it was told to.

    On the right, a text's tokens have the same positions in any batch. One without a token for padding
    gets that of the model's config, else the one that ends a text: padding is masked, so any will do.

    Raises:
        ModelError: there is none, it is not a fast one, or no token could pad.
    """
    check_tokenizer_files(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # many unrelated types
        raise ModelError(
            f"{folder}: it must hold a tokenizer that transformers loads, got: {reason_of(error)}. "
            "Copy tokenizer.json and tokenizer_config.json of the model there."
        ) from None
    if not tokenizer.is_fast:
        raise ModelError(
            f"{folder}: the tokenizer must be a fast one, with a tokenizer.json, got "
            f"{type(tokenizer).__name__}. Choose a model that has one."
        )
    tokenizer.padding_side = "right"
    if "attention_mask" not in tokenizer.model_input_names:  # without it a model reads padding as text
        tokenizer.model_input_names = [*tokenizer.model_input_names, "attention_mask"]
    if tokenizer.pad_token is None:
        number = read_config(folder).get("pad_token_id")
        named = tokenizer.convert_ids_to_tokens(number) if isinstance(number, int) else None
        tokenizer.pad_token = named or tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
        if tokenizer.pad_token is None:
            raise ModelError(
                f"{folder}: the tokenizer must have a token for padding, got none. Set pad_token."
            )
        print(
            f"{folder}: its tokenizer has no token for padding, so {tokenizer.pad_token} pads",
            file=sys.stderr,
        )
    return tokenizer


def load_classifier(
    folder: Path,
    num_labels: int,
    seed: int,
    pooling: Pooling = "cls",
    complete: bool = False,
    quiet: bool = False,
    **config: Any,
) -> PreTrainedModel | MeanPooledClassifier:
    """Load an encoder with a classification head, float32, in eval mode.

    Args:
        folder: a model folder.
        num_labels: size of the head.
        seed: of the initialisation of the head, and of any other weight that the folder lacks.
        pooling: what the head reads. With ``cls`` it is transformers' own head for this
            architecture, with what the folder holds of it; with ``mean`` a fresh Linear.
        complete: whether the folder must hold every weight, as that of a trained classifier does. A pooler
            that is not read may be missing.
        quiet: whether to replace a head of another size without a line.
        config: overrides of the model's config, such as ``num_hidden_layers``.

    Raises:
        ModelError: the folder holds no encoder that can classify, or is not complete.
    """
    if pooling == "mean":
        encoder: Any = _load(AutoModel, folder, 0, complete, **config)
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # it reads [CLS]
        model: Any = MeanPooledClassifier(encoder, num_labels, seed).eval()
    else:
        auto = AutoModelForSequenceClassification
        model = _load(auto, folder, seed, complete, quiet, num_labels=num_labels, **config)
    if hasattr(model.config, "classifier_pooling"):  # ModernBERT's own head can read either
        model.config.classifier_pooling = pooling
    return model


def load_encoder(folder: Path, **config: Any) -> PreTrainedModel:
    """Load an encoder without a head, float32, in eval mode.

    Args:
        folder: a model folder.
        config: overrides of the model's config.

    Raises:
        ModelError: transformers cannot load it.
    """
    return _load(AutoModel, folder, seed=0, **config)  # the seed is of a pooler that the folder lacks


def _load(
    auto: Any, folder: Path, seed: int, complete: bool = False, quiet: bool = False, **options: Any
) -> PreTrainedModel:
    check_config(folder, auto)
    torch.manual_seed(seed)
    try:
        # A head of the base's own kind, such as regression, would take another loss and another activation.
        model, told = auto.from_pretrained(
            str(folder), dtype=torch.float32, problem_type=None, output_loading_info=True,
            ignore_mismatched_sizes=True, trust_remote_code=False, **options,
        )  # fmt: skip
    except Exception as error:  # of whatever a config makes of a model's code
        raise ModelError(
            f"{folder}: it must hold an encoder that transformers loads, got: {reason_of(error)}"
        ) from None
    weights = model.state_dict()
    resized = {name for name, *_ in told["mismatched_keys"]}
    lacking = resized | told["missing_keys"]
    if auto is AutoModel:
        lacking = {name for name in lacking if not name.startswith("pooler.")}  # no head of ours reads it
    inner = "" if auto is AutoModel else f"{model.base_model_prefix}."
    head = {name for name in lacking if not name.startswith(inner)}
    if not weights.keys() - head - lacking:
        raise ModelError(
            f"{folder}: it must hold the weights that its config.json describes, got none of them. "
            "Copy the model's whole folder again."
        )
    if not complete:
        lacking = resized - head  # a head may be fresh, an encoder not
        if not quiet and (replaced := sorted(resized & head)):
            print(
                f"{folder}: its head is of another size and replaced: {', '.join(replaced)}", file=sys.stderr
            )
    found = {name: value for name, value in weights.items() if name not in lacking}
    if complete:
        found |= dict.fromkeys(told["unexpected_keys"], torch.empty(0))
    check_weights(folder / WEIGHTS, found, weights)
    return model.eval()


def save_model(
    model: PreTrainedModel, tokenizer: Any | None, folder: Path, outputs: Sequence[str] = UNNAMED
) -> None:
    """Write a plain transformers folder: weights as safetensors, config, tokenizer; no pickle.

    Args:
        model: an encoder, with a head or without.
        tokenizer: to write beside it.
        folder: where to; made here.
        outputs: names of the head's outputs. They replace those of the model that it was made of, which
            other libraries would answer with.
    """
    model.config.id2label = dict(enumerate(outputs))
    model.config.label2id = {name: k for k, name in enumerate(outputs)}
    model.save_pretrained(str(folder))
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))


def model_digests(folder: Path) -> dict[str, str]:
    """Name → sha256 of the files of a model: config, weights and tokenizer."""
    files = {path for pattern in FILES for path in folder.glob(pattern) if path.is_file()}
    return {path.name: file_digest(path) for path in sorted(files)}


def config_digest(folder: Path) -> str:
    """sha256 of a model's config without the field that names the library's version."""
    config = read_config(folder)
    config.pop("transformers_version", None)
    return value_digest(config)
