"""An analysis of a cache in plain words: what to know, and what to do, before any student.

Every choice looks at train and tune; of validation nothing is said here.
"""

import math

from kdcache.analysis.analyse import CacheAnalysis, LabelAnalysis
from kdcache.cache.ids import name_some

# A tenth of log C: at two classes a mean confidence of 98.7 %. Such targets are one-hot labels
# smoothed by a percent, and a student that follows them sees what cross-entropy shows it anyway.
LITTLE_ENTROPY = 0.1
HIGH_ACCURACY = 0.95  # … provided they say the labels: a sure but wrong teacher is another trouble
# Points between train and tune from which on train's logits are of rows learned by heart. Fold teachers
# on half of the sample's rows stood 23 points below the same teacher on rows it had trained on.
MEMORY = 0.1
# Points that fold teachers may lose against the teacher on all rows; a student's gain is of that size.
FOLD_COST = 0.03
STANDARD_ERRORS = 2  # of a difference that is spoken of …
FOLD_STANDARD_ERRORS = 4  # … and of one fold against the others: there are many, and groups share errors
# A factor on the logits below which a temperature is not worth a parameter.
CALIBRATED = 1.2
# Below this accuracy suspects are mostly the teacher's own mistakes, and not spoken of: right on 75 % of
# the given labels, a fiftieth of them wrong, the best possible teacher suspects nine right labels for one
# wrong; right on 81 %, a tenth wrong, one for two. More of that in docs/inspect.md.
KNOWS_NOISE = 0.8
NOISE = 0.01  # share of suspects worth a look


def read_analysis(analysis: CacheAnalysis) -> str:
    """Say in one paragraph what an analysis means.

    Args:
        analysis: of a cache.

    Returns:
        Sentences with the numbers in them; the first tells how good the targets are, the others
        what speaks against training on them as they are, and the last which labels to look at.
    """
    if "train" not in analysis.splits:
        return "This cache has no train split: it can score students, but teaches none."
    warnings = [_little(analysis) or _memory(analysis), _majority(analysis), _fold_cost(analysis)]
    warnings += [_lost_classes(analysis), _bad_folds(analysis), _calibration(analysis)]
    said = [sentence for sentence in warnings if sentence] or [
        "Nothing here speaks against distilling from it."
    ]
    return " ".join(filter(None, [_summary(analysis), *said, _noise(analysis)]))


def _summary(analysis: CacheAnalysis) -> str:
    train = analysis.splits["train"]
    sure = f"mean entropy {train.entropy:.2f} nats, {_percent(train.entropy_share)} of log C"
    if train.labels is None:
        return f"Train has no labels; {sure}."
    known = {True: " that it never saw", False: " that it trained on", None: ""}[train.held_out]
    right = train.labels.accuracy
    return f"The teacher is right on {_percent(right.value)} of {right.rows} training rows{known}; {sure}."


def _little(analysis: CacheAnalysis) -> str | None:
    """Hardly more than the labels."""
    train = analysis.splits["train"]
    if train.labels is None or train.entropy_share >= LITTLE_ENTROPY:
        return None
    if train.labels.accuracy.value < HIGH_ACCURACY:
        return None
    cure = {
        True: "raise the temperature",
        False: "cross-fit (train_teacher.folds) or raise the temperature",
        None: "import logits of a teacher that never saw the training rows, or raise the temperature",
    }
    return (
        f"This cache holds little beyond the labels (mean entropy {train.entropy:.2f} nats, train accuracy "
        f"{_percent(train.labels.accuracy.value)}): {cure[train.held_out]}."
    )


def _memory(analysis: CacheAnalysis) -> str | None:
    """Rows learned by heart."""
    train, tune = analysis.splits["train"].labels, analysis.splits.get("tune")
    if analysis.splits["train"].held_out or train is None or tune is None or tune.labels is None:
        return None
    gap = train.accuracy.value - tune.labels.accuracy.value
    if gap < MEMORY or train.accuracy.value <= tune.labels.accuracy.high:
        return None
    cure = "import logits of a teacher that never saw them" if analysis.external else "cross-fit"
    how = "" if analysis.external else " (train_teacher.folds)"
    return (
        f"It knows its training rows by heart, {_percent(train.accuracy.value)} there against "
        f"{_percent(tune.labels.accuracy.value)} on tune: {cure}{how}."
    )


def _majority(analysis: CacheAnalysis) -> str | None:
    """No better than a constant."""
    split, labels = _honest(analysis)
    if labels is None or labels.accuracy.low > labels.majority:
        return None
    return (
        f"On {split} the teacher is not known to beat the majority class: {_percent(labels.accuracy.value)} "
        f"[{_percent(labels.accuracy.low)}, {_percent(labels.accuracy.high)}] against "
        f"{_percent(labels.majority)}. There may be nothing to distil."
    )


def _lost_classes(analysis: CacheAnalysis) -> str | None:
    """Classes that the teacher gets right less often than guessing would."""
    split, labels = _honest(analysis)
    guess = 1 / len(analysis.labels)
    lost = {k: share for k, share in labels.classes.items() if share.high < guess} if labels else {}
    if not lost:
        return None
    shares = (f"{analysis.labels[k]} ({_percent(share.value)} of {share.rows})" for k, share in lost.items())
    named = name_some(list(shares))
    return (
        f"On {split}'s rows of {named} it is right less often than by guessing ({_percent(guess)}), and "
        "so will students be: train it longer (train_teacher.epochs, lr), or take a larger model."
    )


def _fold_cost(analysis: CacheAnalysis) -> str | None:
    """Folds that leave their teachers too few rows."""
    found = analysis.agreement.get("tune")
    if found is None or found.all_rows is None or found.crossed is None:
        return None
    lost, error = found.lost
    if lost < max(FOLD_COST, STANDARD_ERRORS * error):
        return None
    return (
        f"The {len(analysis.folds)} fold teachers together reach {_percent(found.crossed)} on tune, "
        f"the teacher on all rows {_percent(found.all_rows)}: "
        "more folds (train_teacher.folds) leave each of them more rows."
    )


def _bad_folds(analysis: CacheAnalysis) -> str | None:
    """One fold's teacher that failed where the others did not."""
    for fold, ours in analysis.folds.items():
        others = [share for k, share in analysis.folds.items() if k != fold]
        rows = sum(share.rows for share in others)
        if not rows:
            continue
        theirs = sum(share.value * share.rows for share in others) / rows
        pooled = (theirs * rows + ours.value * ours.rows) / (rows + ours.rows)
        error = math.sqrt(pooled * (1 - pooled) * (1 / rows + 1 / ours.rows))
        if theirs - ours.value > FOLD_STANDARD_ERRORS * error:
            return (
                f"The teacher of fold {fold} is right on {_percent(ours.value)} of its rows, the others on "
                f"{_percent(theirs)}: it failed to train; try another train_teacher.seed or a lower lr."
            )
    return None


def _calibration(analysis: CacheAnalysis) -> str | None:
    """Too sure, or hesitant."""
    if not analysis.temperatures:
        return None
    # The one of most rows has the narrowest interval.
    split, found = max(analysis.temperatures.items(), key=lambda item: item[1].rows)
    value, low, high = found.value, found.low, found.high or math.inf
    top = "∞" if high == math.inf else f"{high:.2f}"
    spread = f"temperature {value:.2f} [{low:.2f}, {top}] on {split}'s {found.rows} rows"
    if value > CALIBRATED and low > 1:
        return f"It is surer than it is right: calibrated at {spread}; try that in the losses, or above."
    if value < 1 / CALIBRATED and high < 1:
        return (
            f"It is less sure than it is right: calibrated at {spread}; train it longer "
            "(train_teacher.epochs, lr), or try that in the losses."
        )
    return None


def _noise(analysis: CacheAnalysis) -> str | None:
    """Labels that a good teacher denies."""
    split, labels = _honest(analysis)
    if labels is None or labels.suspects is None or labels.accuracy.value < KNOWS_NOISE:
        return None
    share, wrong = labels.suspects / labels.accuracy.rows, len(labels.mistakes)
    if share < NOISE:
        return None
    return (
        f"Of its {wrong} mistakes on {split}, {labels.suspects} ({_percent(share)} of the rows) may be "
        "wrong labels: look at them with --texts."
    )


def _honest(analysis: CacheAnalysis) -> tuple[str, LabelAnalysis | None]:
    """The split that tells most of what the teacher knows beyond its own rows."""
    for split in ("train", "tune"):
        found = analysis.splits.get(split)
        if found and found.held_out and found.labels:
            return split, found.labels
    return "", None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
