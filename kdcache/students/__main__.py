"""A process beside ``kdcache distill``, which starts it: see ``kdcache.students.workers``."""

import contextlib
import json
import os
import sys
from pathlib import Path

from kdcache.project import Project
from kdcache.students.grid import Grid


def main() -> None:
    """Train the passes that standard input names; write a byte per step to the pipe that is the argument."""
    parent, raw, task, purpose, passes, made = json.load(sys.stdin)
    project = Project.of(raw).only([task])
    pipe = int(sys.argv[1])

    def after_step(count: int) -> None:
        if os.getppid() != parent:  # it was killed
            sys.exit()
        os.write(pipe, b"." * count)

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        grid = Grid(project, task, purpose)  # the parent has said what there is to say
    names = [[(arm, seed) for arm, seed in some] for some in passes]
    grid.train_passes(names, Path(made), after_step, wait=False)


if __name__ == "__main__":
    # Whatever ends this process, its parent takes up the pass and says why it fails.
    with contextlib.suppress(BaseException):
        main()
