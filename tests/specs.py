"""A small arm, resolved, for tests that build students without a params.yaml."""

from typing import Any

from kdcache.students.arms import ArmSpec


def tiny_spec(method: str = "prefix", **changes: Any) -> ArmSpec:
    """Prompts that train in batches of four."""
    values: dict[str, Any] = {
        "name": "arm", "method": method,
        "num_virtual_tokens": 4, "init": "separators", "pooling": "cls",
        "lr": 0.1, "steps": None, "epochs": 2,
        "head_lr": 1e-2, "batch_size": 4, "max_length": 32,
        "weight_decay": 0.01, "warmup_fraction": 0.1, "dropout": 0.0, "dtype": "float32",
        "select": "last", "ce_weight": 1.0, "label_smoothing": 0.0, "terms": {}, "targets": "cached",
        "unlabelled": False,
    }  # fmt: skip
    return ArmSpec(**values | changes)
