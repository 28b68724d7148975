"""Losses and scores of arms over their steps, and arms that are not done at the end of theirs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

END = 0.9  # share of the schedule after which its end begins


def mean_curves(results: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """Return one row per arm and step looked at: losses and tune scores, means over seeds."""
    import pandas as pd

    rows = [{"arm": result["arm"], **entry} for result in results for entry in result["history"]]
    return pd.DataFrame(rows).groupby(["arm", "step"], sort=False).mean().reset_index()


def write_curves(curves: "pd.DataFrame", path: Path) -> None:
    """Write curves as CSV; an empty cell is a score that was not taken."""
    curves.to_csv(path, index=False, lineterminator="\n")


def read_curves(path: Path) -> "pd.DataFrame":
    """Read what ``write_curves`` wrote. Arms keep their names, though one is called 3e-2 or null."""
    import pandas as pd

    return pd.read_csv(path, dtype={"arm": str}, keep_default_na=False, na_values=[""])


def still_rising(curves: "pd.DataFrame", score: str, rows: int) -> dict[str, float]:
    """Return the arms that are not done, and by how much each rose at last.

    An arm is not done if it scores best in the last tenth of its schedule, and above all that came
    before by more than one row of ``tune`` is worth. Its scores are means over seeds.

    Args:
        curves: from ``mean_curves``.
        score: the column that tells.
        rows: of ``tune``.
    """
    found = {}
    if score in curves:
        for arm, curve in curves.groupby("arm", sort=False):
            at_end = curve["step"] >= END * curve["step"].max()
            rise = curve[score][at_end].max() - curve[score][~at_end].max()
            if rise > 1 / rows + 1e-9:  # NaN where there are no steps
                found[str(arm)] = float(rise)
    return found
