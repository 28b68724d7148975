"""Arms that are not done: they still score better at the end of their schedule than ever before."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

END = 0.9  # share of the schedule after which its end begins


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
