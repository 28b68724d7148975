"""Arms of two projects, joined by their predictions of the same examples."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from kdcache.errors import DataError, ParamsError, nearest
from kdcache.project import ALL_ROWS, CACHED
from kdcache.stats.runs import Runs, read_runs

if TYPE_CHECKING:
    import pandas as pd


OWN_FOLDERS = (Path("predictions"), Path("runs/predictions"))  # of a project whose paths are not known


@dataclass(frozen=True)
class Side:
    """An arm in folders of predictions.

    Args:
        folders: of ``<task>.parquet`` files, as ``distill`` writes them; the first that has the arm counts.
        arm: an arm or a teacher in these files.
    """

    folders: tuple[Path, ...]
    arm: str

    @classmethod
    def parse(cls, text: str, folders: Sequence[Path] = OWN_FOLDERS) -> "Side":
        """Parse ``FOLDER:ARM``, or ``ARM`` for an arm of this project.

        FOLDER is a project, where the pipeline's predictions come before those in ``runs``, or its ``runs``,
        or a folder of predictions.

        Args:
            text: what to parse.
            folders: of this project.

        Raises:
            ParamsError: no arm is named.
            DataError: there is no such folder.

        >>> Side.parse(".:kl@more").arm
        'kl@more'
        >>> Side.parse("kl").folders[0].name
        'predictions'
        """
        folder, _, arm = text.rpartition(":")
        if not arm:
            raise ParamsError(f"{text!r}: it must be ARM or FOLDER:ARM, got no arm. Name one.")
        if not folder:
            return cls(tuple(folders), arm)
        if not Path(folder).is_dir():
            raise DataError(f"{folder}: There is no such folder. Name a project, or a folder of predictions.")
        inside = [Path(folder, own) for own in OWN_FOLDERS]
        return cls(tuple(path for path in inside if path.is_dir()) or (Path(folder),), arm)

    def __str__(self) -> str:
        """The arm with the folder that is looked at first."""
        return f"{self.folders[0].as_posix()}:{self.arm}"

    @property
    def shown_folders(self) -> str:
        """The folders, for messages."""
        return " and ".join(folder.as_posix() for folder in self.folders)

    @property
    def tasks(self) -> list[str]:
        """The tasks with predictions."""
        return sorted({path.stem for folder in self.folders for path in folder.glob("*.parquet")})

    def read(self, task: str) -> "pd.DataFrame":
        """Read the arm's predictions on one task.

        Raises:
            DataError: there are no predictions of the task, or none of the arm.
        """
        import pandas as pd

        rows = pd.read_parquet(self.folder_of(task) / f"{task}.parquet")
        return rows[rows["arm"] == self._named(set(rows["arm"]))].assign(arm=self.arm)

    def _named(self, there: Set[str]) -> str | None:
        """What the arm is called among those that are there: without folds, one teacher is both."""
        if self.arm == ALL_ROWS and ALL_ROWS not in there:
            return CACHED if CACHED in there else None
        return self.arm if self.arm in there else None

    def folder_of(self, task: str) -> Path:
        """Return the folder whose predictions of a task hold the arm.

        Raises:
            DataError: as ``read``.
        """
        known: list[str] = []
        for folder in self.folders:
            path = folder / f"{task}.parquet"
            there = set(pq.read_table(path, columns=["arm"])["arm"].to_pylist()) if path.is_file() else set()
            if self._named(there):
                return folder
            known += there
        remedy = nearest(self.arm, known) if known else f"Run: kdcache distill --task {task}"
        raise DataError(f"{self.shown_folders}: No predictions of {task} by an arm {self.arm!r}. {remedy}")


def common_tasks(arm: Side, over: Side) -> list[str]:
    """Return the tasks of which both have predictions.

    Raises:
        DataError: there are none.
    """
    tasks = [task for task in arm.tasks if task in over.tasks]
    if not tasks:
        raise DataError(
            f"{arm} and {over} have predictions of no common task: "
            f"{', '.join(arm.tasks) or 'none'} and {', '.join(over.tasks) or 'none'}. "
            "Run: kdcache distill"
        )
    return tasks


def read_across(arm: Side, over: Side, task: str, metric: str) -> tuple[Runs, str]:
    """Read both arms on one task's rows, and the name of the second arm among them.

    Args:
        arm: the arm that should be better.
        over: the arm it is compared with. If both arms have the same name, it is named with its folder.
        task: the task.
        metric: a key of ``metrics.METRICS`` that reads only labels and logits.

    Raises:
        DataError: predictions are missing, or the two differ in examples, labels or groups.
    """
    import pandas as pd

    ours, theirs = arm.read(task), over.read(task)
    name = over.arm if over.arm != arm.arm else str(over)
    theirs = theirs.assign(arm=name)
    labels = [side.drop_duplicates("example_id").set_index("example_id")["label"] for side in (ours, theirs)]
    shared = labels[0].index.intersection(labels[1].index)
    if differing := int(np.sum(labels[0][shared].to_numpy() != labels[1][shared].to_numpy())):
        raise DataError(
            f"{task}: {arm} and {over} have different labels on {differing} rows. "
            "Compare predictions of the same prepared data."
        )
    groups, other = (side[["example_id", "group"]].drop_duplicates("example_id") for side in (ours, theirs))
    if differing := len(groups.merge(other, on="example_id")) - len(groups.merge(other)):
        raise DataError(
            f"{task}: {arm} and {over} have different groups on {differing} rows. "
            "Compare predictions of the same prepared data."
        )
    return read_runs(pd.concat([ours, theirs], ignore_index=True), metric, groups), name
