"""Stage train_teacher: a teacher on all rows and one per fold, with their identity."""

import contextlib
import platform
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kdcache.errors import DataError
from kdcache.places import check_place, place
from kdcache.progress import UnitBar
from kdcache.project import Project, require_task
from kdcache.spread import Engine, spread
from kdcache.store.parts import require_same_build
from kdcache.teacher.fine_tune import TrainTeacherParams
from kdcache.teacher.processes import check_processes, from_main, is_main, together, wait_for_all
from kdcache.teacher.training import Fit, Training


def train_teacher(project: Project, task_name: str) -> None:
    """Fine-tune a teacher on all training rows, and one more per fold for cross-fitted logits.

    Each starts from the linear probe of the pretrained model on its own training rows. The probe of the
    teacher on all rows is scored on ``tune`` and ``validation``, for comparison.

    With ``ensemble``, each teacher is several models. The project's engine trains the models, in any order.
    An interrupted run resumes: finished models are kept, and unfinished ones continue from their last
    checkpoint. Under torchrun, all its processes train each model together.

    Raises:
        ParamsError: ``select: tune`` without a tune split, or a key contradicts the method or the processes.
        DataError: there are no prepared data, or too few labelled rows.
        ModelError: the model reference does not resolve, or the method does not work on that model.
        TrainingDiverged: the loss became NaN or infinite.
        KdcacheError: another kind of machine has begun the teacher.
    """
    require_task(project, task_name)
    target = Path(project.paths.teacher) / task_name
    check_place(target, "teacher")
    params = project.section("train_teacher", TrainTeacherParams)
    with together(), project.alone(target) if is_main() else contextlib.nullcontext():
        check_processes(params.batch_size, params.shard_weights, Engine.of(project.raw))
        if is_main():
            training = Training(project, task_name)
            training.check()
        wait_for_all()
        if not is_main():
            training = Training(project, task_name)
        if training.scratch.name != from_main(training.scratch.name):  # its key is of rows and parameters
            raise DataError(
                f"{task_name}: the processes of torchrun must have the same data, parameters and packages, "
                f"got others on {platform.node()}. Put the project on a disk that all of them share."
            )
        with training.stored.leased():
            missing = [fit for fit in training.fits if not training.is_trained(fit)]
            project.taken_up.extend(str(fit) for fit in training.fits if fit not in missing)
            _train(from_main(missing), training, project)
            wait_for_all()
            if not is_main():
                return
            if unseen := [fit for fit in training.fits if not training.is_trained(fit)]:
                raise training.stored.unseen(unseen[0])
            made = training.put_together()
            training.stored.require_lease()
            place(made, target)
            for fit in training.fits:  # before the models: none is thought finished of which a file is gone
                training.cost(fit).unlink()
            training.stored.remove()
            shutil.rmtree(training.scratch, ignore_errors=True)


def _train(missing: Sequence[Fit], training: Training, project: Project) -> None:
    """Train the models that are not there yet, by the project's engine."""
    engine = Engine.of(project.raw)
    if engine.here:
        spread(missing, training.open)
        return
    examples = {fit: training.params.epochs * len(training.rows_of(fit)) for fit in missing}
    title = training.task.name + (f", {len(missing)} models" if len(missing) > 1 else "")
    with UnitBar(examples, desc=title, unit="example", disable=not missing) as bar:
        opened = partial(open_training, project.raw, training.task.name, training.scratch.name)
        spread(missing, opened, engine, project.threads, bar.after, bar.during)


def open_training(raw: dict[str, Any], task_name: str, build: str) -> Callable[[Fit], None]:
    """Open a worker in a process of its own: the first one has checked the model.

    Raises:
        DataError: this node has other data or packages than those of the build that the first process does.
    """
    training = Training(Project.of(raw).only([task_name]), task_name)
    require_same_build(training.scratch.name, build, task_name, "the data, the pretrained model")
    return training.open()
