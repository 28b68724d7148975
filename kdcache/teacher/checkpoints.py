"""Checkpoints of a teacher's training: whole or absent, wherever the process was killed."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from kdcache.digests import SEAL, check_seal, seal
from kdcache.errors import ModelError


class KeepWhole(TrainerCallback):
    """Moves a checkpoint out of the trainer's folder when all of it is there, then drops the one before.

    Args:
        folder: of whole checkpoints; the trainer writes into one within it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.unfinished = folder, folder / "unfinished"
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def on_save(self, args: object, state: TrainerState, control: object, **_: Any) -> None:
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
