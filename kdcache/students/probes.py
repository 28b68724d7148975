"""The linear probes of students: where their heads start, and all of the method ``head``."""

import hashlib

import torch

from kdcache.encoder.linear_probe import LinearProbe, fit_probe, one_hot
from kdcache.students.arms import ArmSpec
from kdcache.students.student import Student
from kdcache.students.training_rows import StudentRows


class Probes:
    """The probes fitted so far, one for each pair of features and targets.

    Students share a probe where their heads read the same features. With mean pooling they all do,
    whatever their seed; a pooler of its own random start gives features of its own.
    """

    def __init__(self) -> None:
        self._fitted: dict[str, LinearProbe] = {}

    def fit(
        self, student: Student, rows: StudentRows, spec: ArmSpec, tune: StudentRows | None
    ) -> LinearProbe:
        """Fit a probe on what the last Linear of a student's head reads from the frozen backbone.

        It fits the labels. Where the arm gives them no weight, it fits the teacher's probabilities.

        Args:
            student: before its first step.
            rows: those it learns from, taught as its arm says.
            spec: the arm.
            tune: rows on which C is chosen by the task's first metric; None chooses it on 5 folds.
        """
        features = frozen_features(student, rows)
        if spec.ce_weight == 0:
            targets = rows.teacher_logits.double().softmax(1)
        else:
            labelled = rows.labels >= 0
            features = features[labelled]
            targets = one_hot(rows.labels[labelled], rows.task.num_labels)
        digest = hashlib.sha256(features.cpu().numpy().tobytes())
        digest.update(targets.cpu().numpy().tobytes())
        if (key := digest.hexdigest()) not in self._fitted:
            if tune is None:
                self._fitted[key] = fit_probe(features, targets)
            else:
                metric, held_out = tune.task.metrics[0], frozen_features(student, tune)
                self._fitted[key] = fit_probe(
                    features, targets, held_out, lambda logits: tune.score(logits)[metric]
                )
        return self._fitted[key]


@torch.no_grad()
def frozen_features(student: Student, rows: StudentRows) -> torch.Tensor:
    """Return what the last Linear reads where no prompt is, of shape (rows, choices, dim)."""
    states = rows.inputs.states[: len(rows)]
    features = student.head(states.flatten(0, 1))[1]
    return features.unflatten(0, states.shape[:2])
