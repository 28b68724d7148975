"""An arm that still rises at the end of its steps is not done."""

import pandas as pd
import pytest

from kdcache.students.curves import still_rising


def rise(*scores: float, rows: int = 100) -> dict[str, float]:
    """What is found of an arm with these scores, at step 0 and at equal distances."""
    steps = [100 * k // (len(scores) - 1) if k else 0 for k in range(len(scores))]
    return still_rising(pd.DataFrame({"arm": "kl", "step": steps, "tune_f1": scores}), "tune_f1", rows)


PLATEAU = [0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]


@pytest.mark.parametrize(
    ("end", "rows", "wanted"),
    [
        ((0.8, 0.85), 100, 0.05),
        ((0.85, 0.8), 100, 0.05),  # nine tenths of the steps are near the end
        ((0.8, 0.81), 100, None),  # one row
        ((0.8, 0.81), 101, 0.01),
        ((0.8, 0.7), 100, None),
        ((0.8, 0.85), 10, None),
    ],
)
def test_only_a_rise_in_the_last_tenth_by_more_than_a_row_counts(end, rows, wanted):
    found = rise(*PLATEAU, *end, rows=rows)
    assert found == ({} if wanted is None else {"kl": pytest.approx(wanted)})


def test_an_arm_without_steps_or_scores_is_done():
    assert rise(0.5, 0.9) == {"kl": pytest.approx(0.4)}
    head = pd.DataFrame({"arm": ["head"], "step": [0], "tune_f1": [0.5]})
    assert still_rising(head, "tune_f1", 100) == {}
    assert still_rising(head, "tune_accuracy", 100) == {}
