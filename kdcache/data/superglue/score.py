"""What the benchmark as a whole needs of its tasks: the one score, and the names of submission files."""

from collections.abc import Mapping

import numpy as np

from kdcache.data.superglue import SUPERGLUE
from kdcache.data.taskfile import read_task_file
from kdcache.errors import DataError


def superglue_metrics() -> dict[str, tuple[str, ...]]:
    """Return task → the metrics whose mean is the task's score.

    >>> superglue_metrics()["cb"]
    ('accuracy', 'macro_f1')
    """
    return {name: read_task_file(path).metrics for name, path in SUPERGLUE.items()}


def superglue_score(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Compute the benchmark's score: the mean over the eight tasks of each task's mean metric.

    Args:
        scores: task → metric → value. Other tasks and metrics are ignored, and so are the diagnostics.

    Raises:
        DataError: a task or one of its metrics is missing.

    Reference:
        Wang et al. (2019).
    """
    metrics = superglue_metrics()
    missing = [
        f"{task} {name}"
        for task, names in metrics.items()
        for name in names
        if name not in scores.get(task, {})
    ]
    if missing:
        raise DataError(
            f"superglue_score: every task must have its metrics, got no {', '.join(missing)}. "
            "Score the missing tasks first."
        )
    means = [np.mean([scores[task][name] for name in names]) for task, names in metrics.items()]
    return float(np.mean(means))


def submission_names() -> dict[str, str]:
    """Return task or diagnostic split → the name of its submission file, without ``.jsonl``.

    >>> submission_names()["wic"], submission_names()["axb"]
    ('WiC', 'AX-b')
    """
    names: dict[str, str] = {}
    for name, path in SUPERGLUE.items():
        file = read_task_file(path)
        for split, part in ((name, file), *((split, file.for_split(split)) for split in file.diagnostics)):
            names[split] = part.submission or split
    return names
