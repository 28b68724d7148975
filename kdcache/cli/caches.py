"""Commands on a cache as it lies there."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from kdcache.cli.options import Debug, Overrides, Tasks, chosen_tasks, console, open_project
from kdcache.errors import CacheError
from kdcache.stages.workspace import require

if TYPE_CHECKING:
    from kdcache.cache.manifest import Manifest


def inspect(task: Tasks = None, set_: Overrides = None, debug: Debug = False) -> None:
    """Show a cache: rows, teacher accuracy per split, and what made it."""
    with open_project(set_, debug, task) as project:
        from kdcache.cache.manifest import read_manifest

        chosen = chosen_tasks(project, task)
        for name in chosen:
            folder = Path(project.paths.cache) / name
            require(folder, "the cache", f"kdcache cache --task {name}", CacheError)
            _show_cache(folder, read_manifest(folder, name))


def _show_cache(folder: Path, manifest: "Manifest") -> None:
    metrics = list(next(iter(manifest.metrics.values()), {"accuracy": 0.0}))
    metrics = [name for name in metrics if name != "rows"]
    crossed = bool(manifest.identity["folds_sha256"])
    table = Table(title=f"{folder.as_posix()}, format {manifest.format_version}", title_justify="left")
    table.add_column("split", no_wrap=True)
    table.add_column("rows", justify="right")
    table.add_column("bytes/row", justify="right")
    for metric in metrics:
        table.add_column(f"{metric}, cached", justify="right")
        if crossed:
            table.add_column(f"{metric}, teacher on all rows", justify="right")
    for name, entry in manifest.files.items():
        split = name.removesuffix(".parquet")
        cells = [split, str(entry["rows"]), f"{entry['bytes'] / max(1, entry['rows']):.0f}"]
        for metric in metrics:
            for scores in (manifest.metrics, manifest.all_rows_teacher)[: 1 + crossed]:
                value = scores.get(split, {}).get(metric)
                cells.append("—" if value is None else f"{100 * value:.1f} %")
        table.add_row(*cells)
    console.print(table)
    for field, value in manifest.identity.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        console.print(f"  {field:18} {shown or '—'}", markup=False, soft_wrap=True)
    console.print(f"  {'manifest':18} {manifest.digest}", markup=False, soft_wrap=True)
