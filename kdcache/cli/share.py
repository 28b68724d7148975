"""``kdcache push`` and ``kdcache pull``: one cache or student, to and from any place."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcache.cli.options import Debug
from kdcache.errors import ModelError
from kdcache.project import errors_in_one_line

if TYPE_CHECKING:
    from kdcache.serve.share import Shared


def push(
    folder: Annotated[
        Path, typer.Argument(help="A cache, a student, a folder of students, an export, a backbone.")
    ],
    to: Annotated[str, typer.Argument(metavar="PLACE", help="A new folder or URI.")],
    debug: Debug = False,
) -> None:
    """Share one cache, with a card made from its manifest, or students. Nothing is replaced.

    Examples:

        kdcache push cache/reviews hf://datasets/me/reviews-teacher

        kdcache push runs/reviews/kl-0 s3://bucket/reviews-kl
    """
    with errors_in_one_line(debug):
        from kdcache.serve.share import push as stage

        _show(stage(folder, to))


def pull(
    place: Annotated[str, typer.Argument(metavar="PLACE", help="What was pushed: a folder or URI.")],
    folder: Annotated[Path, typer.Argument(help="Where to: a new folder or an empty one.")],
    debug: Debug = False,
) -> None:
    """Fetch what push has put somewhere, and verify every byte. A copy that is not whole is refused.

    Examples:

        kdcache pull hf://datasets/me/reviews-teacher cache/reviews
    """
    with errors_in_one_line(debug):
        from kdcache.places import ABOUT
        from kdcache.serve.share import pull as stage
        from kdcache.students.about import find_backbone, read_about

        _show(stage(place, folder))
        for path in sorted(folder.rglob(ABOUT)):
            try:
                find_backbone(path.parent, read_about(path.parent))
            except ModelError as error:  # it is shared on its own
                typer.echo(str(error), err=True)


def _show(done: "Shared") -> None:
    there = f", {len(done.files) - done.copied} were there" if done.copied < len(done.files) else ""
    typer.echo(f"{done.place}: {done.kind}, {len(done.files)} files verified{there}")
