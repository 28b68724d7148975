"""A paragraph about an analysis: the state of the targets, what to change, and labels to look at.

It is based on train and tune only. It says nothing about validation, on which nothing may be chosen.
"""

import math

from kdcache.analysis.analyse import CacheAnalysis, LabelAnalysis
from kdcache.data.ids import name_some
from kdcache.data.metrics import accuracy_interval

# A tenth of log C: at two classes a mean confidence of 98.7%. Such targets are one-hot labels smoothed
# by one percent, so a student learns little more from them than from cross-entropy …
LITTLE_ENTROPY = 0.1
HIGH_ACCURACY = 0.95  # … unless they are often wrong: an overconfident teacher is another problem.
# Difference in accuracy between train and tune from which on train was memorised. On half of the sample's
# rows, fold teachers were 23 points below the same teacher on rows that it was trained on.
MEMORY = 0.1
UNSEEN = "It matters little if students also learn from the unlabelled rows, which are more"
# Loss of accuracy of the fold teachers against the teacher on all rows: as large as a student's gain.
FOLD_COST = 0.03
STANDARD_ERRORS = 2  # a difference must have these to be mentioned …
FOLD_STANDARD_ERRORS = 4  # … and that of a fold these: there are many folds, and rows of a group correlate.
# A factor on the logits below which a temperature is not worth a parameter.
CALIBRATED = 1.2
# Below this accuracy most suspects are the teacher's own mistakes, so they are not mentioned. If the best
# possible teacher agrees with 75% of the given labels and 2% of them are wrong, nine of ten suspects are
# correct labels; with 81% and 10%, one of three. docs/reference/inspect.md has more.
KNOWS_NOISE = 0.8
NOISE = 0.01  # share of suspects from which on they are mentioned


def describe_analysis(analysis: CacheAnalysis) -> str:
    """Describe an analysis in one paragraph.

    Args:
        analysis: of a cache.

    Returns:
        Sentences with numbers: first the quality of the targets, then reasons against training on them
        as they are, last the labels to look at.
    """
    if "train" not in analysis.splits:
        return "This cache has no train split, so it can score students but not train them."
    warnings = [_little_entropy(analysis) or _memory(analysis), _majority(analysis), _probes(analysis)]
    warnings += [_stale_probe(analysis), _fold_cost(analysis)]
    warnings += [_lost_classes(analysis), _failed_fold(analysis), _calibration(analysis)]
    found = [sentence for sentence in warnings if sentence]
    if not found and any(
        analysis.splits[name].labels for name in ("train", "tune") if name in analysis.splits
    ):
        found = ["No problem was found with these targets."]
    return " ".join(filter(None, [_summary(analysis), *found, _noise(analysis)]))


def _summary(analysis: CacheAnalysis) -> str:
    train = analysis.splits["train"]
    entropy = f"the mean entropy is {train.entropy:.2f} nats, {_percent(train.entropy_share)} of log C"
    if train.labels is None:
        return f"Train has no labels; {entropy}."
    seen = {True: " (out-of-fold)", False: " (it was trained on them)", None: ""}[train.held_out]
    accuracy = train.labels.accuracy
    return (
        f"The teacher's accuracy is {_percent(accuracy.value)} on {accuracy.rows} training rows{seen}; "
        f"{entropy}."
    )


def _mostly_unseen(analysis: CacheAnalysis) -> bool:
    """Whether most rows that students can learn from have no label."""
    unlabelled = analysis.splits.get("unlabelled")
    return unlabelled is not None and unlabelled.rows > analysis.splits["train"].rows


def _little_entropy(analysis: CacheAnalysis) -> str | None:
    """Correct targets without entropy, which say little more than the labels."""
    train = analysis.splits["train"]
    if train.labels is None or train.entropy_share >= LITTLE_ENTROPY:
        return None
    if train.labels.accuracy.value < HIGH_ACCURACY:
        return None
    cure = {
        True: "Raise the temperature",
        False: "Raise the temperature, or cross-fit for arms with prompts (train_teacher.folds)",
        None: "Import logits of a teacher that was not trained on these rows, or raise the temperature",
    }
    advice = UNSEEN if train.held_out is False and _mostly_unseen(analysis) else cure[train.held_out]
    return f"The logits say little more than the labels. {advice}."


def _memory(analysis: CacheAnalysis) -> str | None:
    """Training rows that the teacher memorised."""
    train, tune = analysis.splits["train"].labels, analysis.splits.get("tune")
    if analysis.splits["train"].held_out or train is None or tune is None or tune.labels is None:
        return None
    gap = train.accuracy.value - tune.labels.accuracy.value
    if gap < MEMORY or train.accuracy.value <= tune.labels.accuracy.high:
        return None
    cure = "Cross-fitting (train_teacher.folds) may help arms with prompts"
    if _mostly_unseen(analysis):
        cure = UNSEEN
    if analysis.external:
        cure = "Import logits of a teacher that was not trained on these rows"
    return (
        f"The teacher has memorised its training rows: its accuracy on tune is only "
        f"{_percent(tune.labels.accuracy.value)}. {cure}."
    )


def _majority(analysis: CacheAnalysis) -> str | None:
    """A teacher that may be no better than a constant."""
    split, labels = _best_evidence(analysis)
    if labels is None or labels.accuracy.low > labels.majority:
        return None
    accuracy = labels.accuracy
    return (
        f"On {split} the teacher does not clearly beat the majority class: {_percent(accuracy.value)} "
        f"(95% CI {_percent(accuracy.low)} to {_percent(accuracy.high)}) against "
        f"{_percent(labels.majority)}. There may be nothing to distil."
    )


def _probes(analysis: CacheAnalysis) -> str | None:
    """A teacher that is no better than what anyone can read from a frozen model."""
    tune, probes = analysis.splits.get("tune"), analysis.probes.get("tune")
    if tune is None or tune.labels is None or probes is None:
        return None
    both = analysis.agreement.get("tune")
    accuracy = max(tune.labels.accuracy.value, (both and both.all_rows) or 0)
    low, high = accuracy_interval(accuracy, tune.labels.accuracy.rows)
    best = [
        (probe, whose, verb, verdict, cure)
        for probe, whose, verb, verdict, cure in (
            (probes.backbone, "the students' frozen backbone", ("may be", "is"),
             "there {} {} to distil",              "Take a larger or better one."),
            (probes.teacher, "its own model before fine-tuning", ("may have", "has"),
             "fine-tuning {} added {}",
             "Train it longer (train_teacher.epochs, lr), or take another model."),
        )
        if probe is not None and probe >= low
    ]  # fmt: skip
    if not best:
        return None
    probe, whose, (may, does), verdict, cure = next((one for one in best if accuracy <= one[0]), best[0])
    found = f"{_percent(accuracy)} (95% CI {_percent(low)} to {_percent(high)})"
    what, then = "is not clearly above", verdict.format(may, "little")
    if accuracy <= probe:
        what, then = "is not above", verdict.format(may, "nothing")
    if high < probe:
        what, then = "is below", verdict.format(does, "nothing")
    return (
        f"On tune the teacher's accuracy, {found}, {what} that of a linear probe of {whose}, "
        f"{_percent(probe)}: {then}. {cure}"
    )


def _stale_probe(analysis: CacheAnalysis) -> str | None:
    """A probe of the backbone on rows that were prepared at another time than those of the cache."""
    if not any(probes.stale for probes in analysis.probes.values()):
        return None
    return (
        "The linear probe of the students' backbone is of other rows than this cache, so it is left out. "
        "Run: kdcache shrink"
    )


def _lost_classes(analysis: CacheAnalysis) -> str | None:
    """Classes on which the teacher is worse than guessing."""
    split, labels = _best_evidence(analysis)
    guess = 1 / len(analysis.labels)
    lost = {k: share for k, share in labels.classes.items() if share.high < guess} if labels else {}
    if not lost:
        return None
    shares = (f"{analysis.labels[k]} ({_percent(share.value)} of {share.rows})" for k, share in lost.items())
    return (
        f"On {split} the teacher is worse than guessing ({_percent(guess)}) at {name_some(list(shares))}, "
        "and its students will be too. Train it longer (train_teacher.epochs, lr), or take a larger model."
    )


def _fold_cost(analysis: CacheAnalysis) -> str | None:
    """Folds that leave their teachers too few rows."""
    found = analysis.agreement.get("tune")
    if found is None or found.all_rows is None or found.fold_teachers is None:
        return None
    drop, error = found.drop
    if drop < max(FOLD_COST, STANDARD_ERRORS * error):
        return None
    return (
        f"On tune the {len(analysis.folds)} fold teachers together reach {_percent(found.fold_teachers)}, "
        f"the teacher trained on all rows {_percent(found.all_rows)}. "
        "With more folds (train_teacher.folds) each of them is trained on more rows."
    )


def _failed_fold(analysis: CacheAnalysis) -> str | None:
    """A fold teacher that failed to train while the others did not."""
    for fold, share in analysis.folds.items():
        others = [other for k, other in analysis.folds.items() if k != fold]
        rows = sum(other.rows for other in others)
        if not rows:
            continue
        mean = sum(other.value * other.rows for other in others) / rows
        pooled = (mean * rows + share.value * share.rows) / (rows + share.rows)
        error = math.sqrt(pooled * (1 - pooled) * (1 / rows + 1 / share.rows))
        if mean - share.value > FOLD_STANDARD_ERRORS * error:
            return (
                f"The teacher of fold {fold} has an accuracy of {_percent(share.value)} on its fold, the "
                f"others {_percent(mean)}. It failed to train: try another train_teacher.seed or a lower lr."
            )
    return None


def _calibration(analysis: CacheAnalysis) -> str | None:
    """An overconfident or underconfident teacher."""
    if not analysis.temperatures:
        return None
    # The split with most rows has the narrowest interval.
    split, found = max(analysis.temperatures.items(), key=lambda item: item[1].rows)
    value, low, high = found.value, found.low, found.high or math.inf
    top = "∞" if high == math.inf else f"{high:.2f}"
    fitted = f"calibrated at temperature {value:.2f} (95% CI {low:.2f} to {top}) on {split}"
    if value > CALIBRATED and low > 1:
        return f"The teacher is overconfident: {fitted}. Use at least that temperature in the losses."
    if value < 1 / CALIBRATED and high < 1:
        return f"The teacher is underconfident: {fitted}. Train it longer (train_teacher.epochs, lr)."
    return None


def _noise(analysis: CacheAnalysis) -> str | None:
    """Labels that may be wrong, according to a good teacher."""
    split, labels = _best_evidence(analysis)
    if labels is None or labels.suspects is None or labels.accuracy.value < KNOWS_NOISE:
        return None
    share, mistakes = labels.suspects / labels.accuracy.rows, labels.wrong
    if share < NOISE:
        return None
    return (
        f"Of its {mistakes} mistakes on {split}, {labels.suspects} ({_percent(share)} of the rows) may be "
        "wrong labels. Look at them with --texts."
    )


def _best_evidence(analysis: CacheAnalysis) -> tuple[str, LabelAnalysis | None]:
    """The held-out split with most rows: cross-fitted train, or else tune."""
    for split in ("train", "tune"):
        found = analysis.splits.get(split)
        if found and found.held_out and found.labels:
            return split, found.labels
    return "", None


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
