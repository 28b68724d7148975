"""kdcache: distil a larger teacher's cached logits into small prompt-tuned students.

Public names load on first use, so that ``import kdcache`` costs nothing.
"""

import importlib
from typing import Any

_PUBLIC = {
    "KdcacheError": "errors",
    "start_project": "cli.init",
    "Project": "project",
    "prepare": "data.prepare",
    "train_teacher": "teacher.train_teacher",
    "cache_teacher": "teacher.cache_teacher",
    "import_cache": "teacher.outside_cache",
    "student_backbone": "backbone.student_backbone",
    **dict.fromkeys(("distill", "compare", "evaluate"), "report.frames"),
    "write_report": "report.report",
    "export_student": "serve.deploy",
    "read_task": "data.task",
    "load_cache": "cache.reader",
    **dict.fromkeys(
        (
            "LOSSES", "cka", "collapse", "cross_entropy", "dist_inter", "dist_intra", "dkd", "feature_cosine",
            "feature_mse", "gram", "gram_centred", "kl", "pkt", "rkd_angle", "rkd_distance", "sp",
        ),
        "losses",
    ),
    "CacheRows": "cache.cached_rows",
    "CacheWriter": "cache.writer",
    "verify_cache": "cache.verify",
    "diff_caches": "cache.diff",
    "analyse_cache": "analysis.analyse",
    "describe_analysis": "analysis.describe",
    "push": "serve.share",
    "pull": "serve.share",
    "join": "cache.hf_trainer",
    "KDCollator": "cache.hf_trainer",
    "load_student": "serve.pool",
    "StudentPool": "serve.pool",
}  # fmt: skip

__all__ = sorted(_PUBLIC)
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kdcache' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kdcache.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
