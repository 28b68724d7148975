"""The model card of a student: what it is, and the code that loads it without kdcache where that works."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.encoder.batching import STRATEGIES
from kdcache.students.about import About
from kdcache.students.methods import METHODS


def head_options(about: About) -> dict[str, Any]:
    """What transformers must be told of the head beside the folder."""
    options: dict[str, Any] = {"num_labels": 1}
    if about.task.num_choices == 1:
        names = dict(enumerate(about.task.labels))
        options = {"id2label": names, "label2id": {name: k for k, name in names.items()}}
    config = json.loads((Path(about.backbone) / "config.json").read_text(encoding="utf-8"))
    if about.method != "full" and config.get("classifier_pooling", "cls") != "cls":  # ModernBERT
        options["classifier_pooling"] = "cls"
    return options


def model_card(about: About, facts: Mapping[str, str]) -> str:
    """Write the card.

    Args:
        about: what student.json says.
        facts: rows of the card's table, in order; ``task``, ``arm`` and ``seed`` are among them.
    """
    loader = METHODS[about.method].loader(about.pooling)
    lines = [
        "---", f"base_model: {about.backbone}", f"library_name: {loader}",
        "pipeline_tag: text-classification", "---", "",
        f"# {facts['task']}: {facts['arm']}, seed {facts['seed']}", "",
        f"A student {'fine-tuned' if about.method == 'full' else 'trained'} by kdcache over the backbone "
        f"`{about.backbone}`, method {about.method}.", "",
        "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items()), "",
        _note(about, loader), "", "```python", *loading_code(about), "```",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def loading_code(about: About, within: str | None = None) -> list[str]:
    """Return the lines that load a student, without kdcache where that works; PATH stands for its folder.

    Args:
        about: what student.json says.
        within: of an exported student: the folder of the backbone within its own. PEFT resolves the path in
            an adapter's config from the current folder, so the backbone is loaded by its own path there.
    """
    loader = METHODS[about.method].loader(about.pooling)
    if loader == "kdcache":
        return ["import kdcache", "", 'student = kdcache.load_student("PATH")']
    if about.pooling == "mean":
        return _mean_pooled(about, loader, within)
    options = "".join(f", {key}={value!r}" for key, value in head_options(about).items())
    if within and loader == "peft":
        name = "AutoModelForSequenceClassification"
        return [
            "from peft import PeftModel", f"from transformers import {name}", "",
            f'base = {name}.from_pretrained("PATH/{within}"{options})',
            'model = PeftModel.from_pretrained(base, "PATH").eval()',
        ]  # fmt: skip
    name = "AutoModel" if loader == "transformers" else "AutoPeftModel"
    return [
        f"from {loader} import {name}ForSequenceClassification",
        "",
        f'model = {name}ForSequenceClassification.from_pretrained("PATH"{options})',
    ]


def _note(about: About, loader: str) -> str:
    if about.method == "deep_prompt":
        return (
            "Virtual tokens get trained states before every layer, which no other library loads. "
            "So load this folder by kdcache, from the project's root (PATH is this folder):"
        )
    if about.method == "late_prefix":
        return (
            "Only the last layers get trained keys and values, which no other library loads. "
            "So load this folder by kdcache, from the project's root (PATH is this folder):"
        )
    if loader == "kdcache":
        return (
            "Plain peft puts these virtual tokens before [CLS] and lets the head read one of them. kdcache "
            "puts them behind [CLS], so load this folder by kdcache, from the project's root:"
        )
    return "Load it from the project's root (PATH is this folder):"


def _mean_pooled(about: About, loader: str, within: str | None) -> list[str]:
    """Plain code that reads the mean of the text's own tokens: virtual tokens stand before them."""
    auto = "AutoModel" if loader == "transformers" else "AutoPeftModelForFeatureExtraction"
    backbone = f'f"{{folder}}/{within}"' if within else f'"{about.backbone}"'
    needed = ["AutoModel", "AutoTokenizer"] if within or loader == "transformers" else ["AutoTokenizer"]
    encoder = [f"encoder = {auto}.from_pretrained({backbone if about.method == 'head' else 'folder'}).eval()"]
    if within and loader == "peft":
        auto = "PeftModel"
        base = f"AutoModel.from_pretrained({backbone})"
        encoder = [f"encoder = PeftModel.from_pretrained({base}, folder).eval()"]
    per = "one per choice" if about.task.num_choices > 1 else "of " + ", ".join(about.task.labels)
    return [
        "import torch",
        *([f"from peft import {auto}"] if loader == "peft" else []),
        "from safetensors.torch import load_file",
        f"from transformers import {', '.join(needed)}",
        "",
        'folder = "PATH"',
        'texts, seconds = ["a text"], None  # or a list of second sequences',
        *encoder,
        'head = load_file(f"{folder}/head.safetensors")',
        f"tokenizer = AutoTokenizer.from_pretrained({backbone})",
        "batch = tokenizer(",
        f"    texts, seconds, padding=True, max_length={about.max_length}, "
        f'truncation="{STRATEGIES[about.task.truncate]}", return_tensors="pt"',
        ")",
        'ids, mask = batch["input_ids"], batch["attention_mask"]',
        "with torch.no_grad():",
        "    states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state",
        "own = mask[:, :, None]",
        "mean = (states[:, -ids.shape[1] :] * own).sum(1) / own.sum(1)",
        f'logits = mean @ head["weight"].T + head["bias"]  # {per}',
    ]
