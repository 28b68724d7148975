"""Looks at students while they train: losses and gradients on a fixed batch, scores on ``tune``.

The students of a pass are looked at together. On a GPU a look at one costs nearly as much as a look at all.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from kdcache.encoder.plans import fixed_plan, in_row_order
from kdcache.students.frozen_inputs import FrozenInputs
from kdcache.students.run import Run, known_prefix
from kdcache.students.student import forward
from kdcache.students.watch import gradient_norms

SCORED_AT_ONCE = 64  # rows of tune, of each student of a pass; more of them take more memory than steps


def look(runs: Sequence[Run]) -> None:
    """Record the mean losses since the last look, what ``Watch`` sees, and scores on ``tune``.

    Args:
        runs: of one pass; those that diverged are left out.
    """
    runs = [run for run in runs if run.diverged is None]
    if not runs:
        return
    for run, seen, scores in zip(runs, _watch(runs), _scores(runs), strict=True):
        run.record(seen, scores)


def _watch(runs: Sequence[Run]) -> list[dict[str, float]]:
    """Return what each run's watch sees on its fixed batch."""
    first = runs[0].rows
    batches = [run.watch.batch for run in runs]
    students = [run.student for run in runs]
    counts = [len(batch) * first.encoded.num_choices for batch in batches]
    outputs = forward(students, _batch(runs, first.inputs, np.concatenate(batches)), counts)
    logits, compared, targets, terms = [], [], [], []
    for run, batch, (some, features) in zip(runs, batches, outputs, strict=True):
        rows = torch.from_numpy(batch).to(some.device)
        some, features = run.rows.encoded.by_row(some), run.rows.encoded.by_row(features)
        targets.append(run.rows.targets(rows).logits)
        terms.append(run.terms(some, features, rows, remember=False))
        logits.append(some.detach())
        compared.append(run.objective.compared(some.detach(), targets[-1]))
    watched = [student.tuned or student.head_parameters for student in students]
    norms = gradient_norms(terms, watched)
    seen = zip(runs, terms, norms, logits, targets, compared, strict=True)
    return [run.watch.see(values, of_run, *outputs) for run, values, of_run, *outputs in seen]


@torch.no_grad()
def _scores(runs: Sequence[Run]) -> Iterator[dict[str, float]]:
    """Yield each run's scores on tune; none where there are no such rows."""
    tune = runs[0].tune
    if tune is None:
        yield from ({} for _ in runs)
        return
    encoded = tune.encoded
    students = [run.student for run in runs]
    plan = fixed_plan(encoded.lengths, SCORED_AT_ONCE)
    logits: list[list[torch.Tensor]] = [[] for _ in runs]
    for rows in plan:
        if all(student.reads_frozen_states for student in students):
            outputs = [student.head(tune.inputs.states_of(rows)) for student in students]
        else:
            batch = _batch(runs, tune.inputs, np.tile(rows, len(runs)))
            outputs = forward(students, batch, [len(rows) * encoded.num_choices] * len(runs))
        for kept, (some, _) in zip(logits, outputs, strict=True):
            kept.append(encoded.by_row(some))
    for run, kept in zip(runs, logits, strict=True):
        yield run.score(in_row_order(kept, plan).cpu().numpy())


def _batch(runs: Sequence[Run], inputs: FrozenInputs, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Return some rows as the students of a pass read them."""
    on_device = torch.from_numpy(rows).to(inputs.backbone.device)
    batch = inputs.with_trunk(inputs.padded.batch(rows), on_device, runs[0].student.late_layers)
    return inputs.with_text(batch, on_device, known_prefix(runs), shared=len(runs) == 1)
