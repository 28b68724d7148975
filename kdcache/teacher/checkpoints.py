"""What a teacher's training leaves on disk: checkpoints, whole or absent, and the best epoch's weights."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from kdcache.digests import SEAL, check_seal, seal
from kdcache.encoder.optimisation import CHECKPOINT_SECONDS
from kdcache.errors import ModelError
from kdcache.progress import tell
from kdcache.project import write_json
from kdcache.teacher.processes import from_main, is_main, wait_for_all
from kdcache.teacher.sharding import full_weights, shard_again


class KeepWhole(TrainerCallback):
    """Asks for a checkpoint every ``CHECKPOINT_SECONDS``, whatever a step takes here.

    It moves each out of the trainer's folder when all of it is there, then drops the one before.

    Args:
        folder: of whole checkpoints; the trainer writes into one within it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.unfinished = folder, folder / "unfinished"
        self.saved = time.monotonic()
        if is_main():
            shutil.rmtree(self.unfinished, ignore_errors=True)

    def on_step_end(self, args: object, state: object, control: TrainerControl, **_: Any) -> None:
        control.should_save = from_main(time.monotonic() - self.saved >= CHECKPOINT_SECONDS)

    def on_save(self, args: object, state: TrainerState, control: object, **_: Any) -> None:
        self.saved = time.monotonic()
        wait_for_all()  # each process writes a file of its own
        if not is_main():
            return
        (made,) = self.unfinished.glob("checkpoint-*")
        for path in sorted(made.iterdir()):
            seal(path)
        before = self._checkpoints()
        os.replace(made, self.folder / made.name)
        for old in before:
            if old.name != made.name:
                shutil.rmtree(old)

    def last(self) -> str | None:
        """Return the last whole checkpoint; one that is not is dropped with a line."""
        return from_main(self._last() if is_main() else None)

    def _last(self) -> str | None:
        for path in self._checkpoints():
            try:
                names = json.loads((path / SEAL).read_bytes())
                for name in names:
                    check_seal(path / name, "", ModelError)
                if names:
                    return str(path)
            except (OSError, ValueError, TypeError, ModelError):
                pass
            print(f"{path}: the checkpoint is not whole and dropped.", file=sys.stderr)
            shutil.rmtree(path)
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))


class TellSteps(TrainerCallback):
    """Tells how many examples are done, with those before the checkpoint that a run goes on from.

    Args:
        examples: of all steps.
    """

    def __init__(self, examples: int) -> None:
        self.examples, self.told = examples, 0

    def on_train_begin(self, args: object, state: TrainerState, control: object, **_: Any) -> None:
        self.on_step_end(args, state, control)

    def on_step_end(self, args: object, state: TrainerState, control: object, **_: Any) -> None:
        done = self.examples * state.global_step // state.max_steps
        tell(done - self.told)
        self.told = done


class KeepBest(TrainerCallback):
    """Keeps the trained weights of the epoch with the highest score on disk.

    It scores at the last step of an epoch, before a checkpoint that is due there. So every epoch before a
    checkpoint has been scored, and an interrupted run keeps its best epoch.

    Args:
        score: of a model, higher is better; every process computes it, the first one's counts.
        steps_per_epoch: after which it scores.
        folder: where the weights lie.
    """

    def __init__(self, score: Callable[[nn.Module], float], steps_per_epoch: int, folder: Path) -> None:
        self.score, self.steps_per_epoch = score, steps_per_epoch
        self.weights, self.note = folder / "best.safetensors", folder / "best.json"

    def on_step_end(self, args: object, state: TrainerState, control: object, **given: Any) -> None:
        if state.global_step % self.steps_per_epoch == 0:
            score = self.score(given["model"])
            shard_again(given["model"])
            if from_main(is_main() and self._beats(score)):
                weights = full_weights(given["model"])
                if is_main():
                    self.weights.parent.mkdir(parents=True, exist_ok=True)
                    save_file(weights, self.weights)
                    write_json({"score": score, "step": state.global_step}, self.note)

    def _beats(self, score: float) -> bool:
        return not self.note.is_file() or score > json.loads(self.note.read_text())["score"]

    def restore(self, model: nn.Module) -> None:
        """Give a model the weights of the best epoch."""
        model.load_state_dict(load_file(self.weights), strict=False)  # frozen weights are not in the file
