"""Commands of kdcache in the processes that torchrun starts: ``under_torchrun.py FOLDER:COMMAND …``.

One start of torchrun takes longer than a tiny teacher, so it runs several commands. A command may begin with
``stop@N``: all processes stop at step N, and the next command follows; ``fail@N``: the last one raises an
error there; ``die@N``: it is killed.
"""

import contextlib
import os
import signal
import sys

import numpy as np
import torch
import transformers
from save_every import save_every

from kdcache import torchrun
from kdcache.cli import app
from kdcache.errors import KdcacheError
from kdcache.teacher import checkpoints
from kdcache.teacher.base_probe import TokenisedSplit

STEP = transformers.Trainer.training_step


class _Stop(KdcacheError):
    """All processes stop."""


def smooth_score(split: TokenisedSplit, logits: np.ndarray) -> float:
    """A score by which no two epochs of a tiny model are alike: minus the loss."""
    return -float(torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(split.labels)))


def run(folder: str, command: list[str]) -> None:
    how, _, at = command[0].partition("@")
    last = os.environ["RANK"] == "1"

    def step(self, *given, **more):
        if at and self.state.global_step == int(at):
            if how == "stop":
                raise _Stop
            if how == "fail" and last:
                raise KdcacheError("the last process fails")
            if how == "die" and last:
                os.kill(os.getpid(), signal.SIGKILL)
        return STEP(self, *given, **more)

    transformers.Trainer.training_step = step
    with contextlib.chdir(folder):
        try:
            app([*command[1:], "--debug"] if how == "stop" else command[bool(at) :], standalone_mode=False)
        except _Stop:
            print(f"stopped in {folder}")


if __name__ == "__main__":
    save_every(2, checkpoints)
    torchrun.AFTER_FIRST_S, TokenisedSplit.score = 1, smooth_score
    for line in sys.argv[1:]:
        folder, _, command = line.partition(":")
        run(folder, command.split())
