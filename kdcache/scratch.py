"""Empty .kdcache/: what killed or interrupted runs left to go on from."""

import contextlib
import shutil
from pathlib import Path

import filelock

from kdcache.errors import CacheError
from kdcache.project import Project


def clean(project: Project) -> int:
    """Remove everything in the scratch folder but the locks.

    Returns:
        How many bytes were freed.

    Raises:
        CacheError: a cache is being written right now; nothing is removed.
    """
    root = Path(project.paths.scratch)
    with contextlib.ExitStack() as held:
        for path in sorted(root.glob("*.lock")):
            try:
                held.enter_context(filelock.FileLock(path).acquire(timeout=0))
            except filelock.Timeout:
                raise CacheError(
                    f"{root}: no cache may be in the making, got {path.stem} at work. Wait for it to end."
                ) from None
        freed = 0
        for path in sorted(root.glob("*")):
            if path.is_dir():
                freed += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                shutil.rmtree(path)
    return freed
