"""Arms of different runs of the pipeline, compared: by their predictions of the same examples."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kdcache.errors import DataError, nearest
from kdcache.stats.runs import Runs, read_runs


@dataclass(frozen=True)
class Side:
    """An arm in a folder of predictions.

    Args:
        folder: of ``<task>.parquet`` files, as ``distill`` writes them.
        arm: one of their arms, a teacher among them.
    """

    folder: Path
    arm: str

    @classmethod
    def parse(cls, text: str) -> "Side":
        """``FOLDER:ARM``, or an arm of ``predictions``.

        >>> Side.parse("studies/powered/predictions:kl@more").arm
        'kl@more'
        >>> Side.parse("kl").folder.name
        'predictions'
        """
        folder, _, arm = text.rpartition(":")
        return cls(Path(folder or "predictions"), arm)

    def __str__(self) -> str:
        """As it is written, with its folder."""
        return f"{self.folder.as_posix()}:{self.arm}"

    @property
    def tasks(self) -> list[str]:
        """Those with predictions."""
        return sorted(path.stem for path in self.folder.glob("*.parquet"))

    def read(self, task: str) -> pd.DataFrame:
        """The arm's rows of one task.

        Raises:
            DataError: no predictions of the task, or none of the arm.
        """
        path = self.folder / f"{task}.parquet"
        if not path.is_file():
            raise DataError(
                f"{self.folder.as_posix()}: it must hold predictions of {task}, got none. Run: dvc repro"
            )
        rows = pd.read_parquet(path)
        if self.arm not in (known := rows["arm"].unique().tolist()):
            raise DataError(
                f"{path.as_posix()}: arm must be one with predictions, got {self.arm!r}. "
                f"{nearest(self.arm, known)}"
            )
        return rows[rows["arm"] == self.arm]


def common_tasks(arm: Side, over: Side) -> list[str]:
    """Those that both have predictions of.

    Raises:
        DataError: there is none.
    """
    tasks = [task for task in arm.tasks if task in over.tasks]
    if not tasks:
        raise DataError(
            f"{arm.folder.as_posix()} and {over.folder.as_posix()}: they must hold predictions of the same "
            f"task, got {', '.join(arm.tasks) or 'none'} and {', '.join(over.tasks) or 'none'}. "
            "Run: dvc repro"
        )
    return tasks


def read_across(arm: Side, over: Side, task: str, metric: str) -> tuple[Runs, str]:
    """Both arms on one task's rows, and what the second one is called there.

    Args:
        arm: the one that should be better.
        over: the other. Where both have the same name it is called as ``str`` writes it.
        task: its name.
        metric: a key of ``metrics.METRICS`` that reads labels and logits alone.

    Raises:
        DataError: predictions are missing, or the two are of other examples or other labels.
    """
    ours, theirs = arm.read(task), over.read(task)
    name = over.arm if over.arm != arm.arm else str(over)
    theirs = theirs.assign(arm=name)
    labels = [side.drop_duplicates("example_id").set_index("example_id")["label"] for side in (ours, theirs)]
    shared = labels[0].index.intersection(labels[1].index)
    if differing := int(np.sum(labels[0][shared].to_numpy() != labels[1][shared].to_numpy())):
        raise DataError(
            f"{task}: {arm} and {over} must have the same labels, got {differing} rows with others. "
            "Compare predictions of the same prepared data."
        )
    groups, other = (side[["example_id", "group"]].drop_duplicates("example_id") for side in (ours, theirs))
    if differing := len(groups.merge(other, on="example_id")) - len(groups.merge(other)):
        raise DataError(
            f"{task}: {arm} and {over} must have the same groups of rows, got {differing} rows in others. "
            "Compare predictions of the same prepared data."
        )
    return read_runs(pd.concat([ours, theirs], ignore_index=True), metric, groups), name
