"""Experiment trackers, through accelerate: TensorBoard, W&B, MLflow, DVCLive and others.

A run is written when its training is over. Several students train at once, but most trackers allow
one open run per process. This way the curve of an interrupted student is complete, too.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration
from tqdm import tqdm

from kdcache.errors import ParamsError, nearest, shorten

PROJECT = "kdcache"


def check_trackers(names: Sequence[str], where: str) -> None:
    """Refuse trackers that are unknown or not installed.

    Args:
        names: as accelerate spells them.
        where: what the message calls them.

    Raises:
        ParamsError: with the name of the package that is missing.
    """
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = nearest(name, LOGGER_TYPE_TO_CLASS)
            raise ParamsError(f"{where}: it must hold trackers that accelerate knows, got {name!r}. {known}")
        if name in LoggerType.list() and LoggerType(name) not in get_available_trackers():
            raise ParamsError(
                f"{where}: {name} must be installed, got no such package. Run: pip install {name}"
            )


def track(
    names: Sequence[str],
    folder: Path,
    run: str,
    settings: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write a run to some trackers; one that fails is named on standard error and stops nothing.

    Args:
        names: of trackers.
        folder: of those that write files; each has its own in there.
        run: the run's name; an earlier one of that name in ``folder`` is replaced.
        settings: what was trained, nested mappings and all.
        history: one entry per look at the student: ``step``, and name → value.
    """
    for name in names:
        try:
            _track(name, folder / name, run, _flat(settings), history)
        except Exception as error:  # trackers raise many unrelated types, their servers' failures too
            got = shorten(f"{type(error).__name__}: {error}")
            tqdm.write(f"{name}: it must take the run {run}, got {got}. Training goes on.", file=sys.stderr)


def _track(
    name: str,
    folder: Path,
    run: str,
    settings: dict[str, Any],
    history: Sequence[Mapping[str, float]],
) -> None:
    shutil.rmtree(folder / run, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    # These group runs by project; for the others the run's name is all there is.
    options: dict[str, dict[str, Any]] = {
        "wandb": {"name": run, "dir": str(folder)},
        "mlflow": {"run_name": run},
        "trackio": {"name": run},
        "swanlab": {"experiment_name": run, "logdir": str(folder)},
        "clearml": {"project_name": PROJECT, "task_name": run},
        "dvclive": {"dir": str(folder / run), "dvcyaml": False, "save_dvc_exp": False},
    }
    config = ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder))
    accelerator = Accelerator(log_with=[name], project_config=config)
    accelerator.init_trackers(PROJECT if name in options else run, settings, options)
    try:
        for entry in history:
            values = {key: value for key, value in entry.items() if key != "step"}
            accelerator.log(values, step=int(entry["step"]))
    finally:
        accelerator.end_training()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys, as trackers take them.

    >>> _flat({"lr": 0.1, "inter_class": {"name": "kl"}, "feature": None})
    {'lr': 0.1, 'inter_class.name': 'kl'}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
