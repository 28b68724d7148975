"""``kdcache export-student``: a student that runs without its project."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from kdcache.cli.options import Debug, project_here
from kdcache.project import errors_in_one_line


def export_student(
    folder: Annotated[Path, typer.Argument(metavar="STUDENT", help="The student's folder.")],
    to: Annotated[
        Literal["folder", "onnx"],
        typer.Option("--to", help="folder for kdcache anywhere, onnx for onnxruntime alone."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where to. Beside the student if left out.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise the graph, and measure the drift.")] = False,
    backbone: Annotated[
        Path | None,
        typer.Option("--backbone", metavar="FOLDER", help="Its backbone; found by digest if left out."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a student with its tokenizer, labels and backbone, so that it runs outside the project.

    In the project, a graph is compared with PyTorch on validation, and its card says so.

    Examples:

        kdcache export-student runs/reviews/kl-0 --to onnx --int8 --out reviews-onnx
    """
    with errors_in_one_line(debug):
        from kdcache.serve.deploy import WANTED
        from kdcache.serve.deploy import export_student as export
        from kdcache.students.about import read_about

        data = None
        if project := project_here():
            prepared = Path(project.paths.data) / read_about(folder).task.name
            data = prepared if (prepared / "validation.parquet").is_file() else None
        folder = folder if folder.name.strip(".") else folder.resolve()  # "." has no name to add to
        out = out or folder.with_name(f"{folder.name}-{to}{'-int8' if int8 else ''}")
        found = export(folder, out, to, int8, data, backbone)
        typer.echo(f"{out}: written")
        if not found:
            return
        typer.echo(
            f"same label as PyTorch on {100 * found['agreement']:.1f}% of {found['rows']:.0f} rows of "
            f"validation, logits off by {found['drift']:.2g} at most; accuracy {100 * found['accuracy']:.1f}%"
            f", PyTorch {100 * found['accuracy_pytorch']:.1f}%"
        )
        wanted = WANTED["int8" if int8 else "float32"]
        if found["agreement"] < wanted:
            print(f"{out}: fewer than {100 * wanted:.1f}% of the labels are the same.", file=sys.stderr)
