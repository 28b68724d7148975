"""A trained student → a standard PEFT adapter folder that plain peft loads without kdcache."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel

from kdcache.batching import Encoded
from kdcache.errors import ModelError

RELOAD_ROWS = 8
RELOAD_TOLERANCE = 1e-5


def save_student(
    student: PeftModel, folder: Path, backbone: Path, num_labels: int, card: Mapping[str, str], probe: Encoded
) -> None:
    """Write weights (safetensors), a canonical adapter_config.json and a model card; then reload.

    Args:
        student: trained.
        folder: where to; made here.
        backbone: the frozen backbone, written relative to the project so that the folder can
            be loaded from the project's root on any machine.
        num_labels: outputs of the head, per sequence.
        card: facts for the model card, in order.
        probe: rows on which the reloaded adapter must give the same logits.

    Raises:
        ModelError: plain peft does not reproduce the student's logits.
    """
    student.to("cpu")
    student.save_pretrained(str(folder))
    base = Path(os.path.relpath(backbone)).as_posix()
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    for key, value in config.items():
        if isinstance(value, list):  # PEFT fills these from sets, and some names twice
            config[key] = sorted(set(value))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_model_card(base, num_labels, card), encoding="utf-8")
    _check_reload(student, folder, num_labels, probe)


@torch.no_grad()
def _check_reload(student: PeftModel, folder: Path, num_labels: int, probe: Encoded) -> None:
    batch = probe.batch(range(min(RELOAD_ROWS, len(probe))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same as in adapters._build_prefix
        reloaded = AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=num_labels)
    gap = (reloaded.eval()(**batch).logits - student(**batch).logits).abs().max().item()
    if not gap <= RELOAD_TOLERANCE:
        raise ModelError(
            f"{folder}: plain peft must give the student's logits within {RELOAD_TOLERANCE:g}, got a "
            f"difference of {gap:g}. Train this student with another method."
        )


def _model_card(base: str, num_labels: int, card: Mapping[str, str]) -> str:
    header = ["---", f"base_model: {base}", "library_name: peft", "pipeline_tag: text-classification", "---"]
    rows = [f"| {key} | {value} |" for key, value in card.items()]
    code = [
        "```python",
        "from peft import AutoPeftModelForSequenceClassification",
        f'model = AutoPeftModelForSequenceClassification.from_pretrained("PATH", num_labels={num_labels})',
        "```",
    ]
    lines = [
        *header, "", f"# {card['task']}: {card['arm']}, seed {card['seed']}", "",
        f"A prompt-tuned student trained by kdcache over the frozen backbone `{base}`.", "",
        "| | |", "|---|---|", *rows, "",
        "Load it from the project's root (PATH is this folder):", "", *code,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
