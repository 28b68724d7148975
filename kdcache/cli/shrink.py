"""Making a smaller backbone."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kdcache.cli.options import Debug, Overrides, chosen_tasks, open_project
from kdcache.plain_yaml import parse_yaml


def shrink(
    model: Annotated[
        str | None, typer.Argument(help="A folder, package:NAME/PATH or hub id of a BERT-like encoder.")
    ] = None,
    num_layers: Annotated[
        str | None, typer.Option("--num-layers", help="How many layers to keep, or all.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Which: first, spread, or numbers from 0 such as 0,2,5.")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option("--pooling", help="What heads are to read: auto, cls or mean.")
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            metavar="TASK",
            help="Prepared task or its task file, to probe on; repeatable. All of params.yaml when left out.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to put it. paths.backbone when left out.")
    ] = None,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Make a backbone: a model, or some of its layers as they are → models/backbone/, or --out.

    What is left out comes from the section student_backbone of params.yaml.

    Examples:

        kdcache shrink

        kdcache shrink path/to/model --num-layers 6 --layers spread --out models/small
    """
    with open_project(set_, debug, probe) as project:
        given = {
            "model": model, "num_layers": num_layers and parse_yaml(num_layers, "--num-layers"),
            "layers": layers and parse_yaml(f"[{layers}]" if layers[0].isdigit() else layers, "--layers"),
            "pooling": pooling,
        }  # fmt: skip
        section = (project.raw.get("student_backbone") or {}) | {
            k: v for k, v in given.items() if v is not None
        }
        project = replace(project, raw=project.raw | {"student_backbone": section})
        if out:
            project = replace(project, paths=replace(project.paths, backbone=str(out)))
        probes = chosen_tasks(project, probe) if probe else None
        from kdcache.backbone.student_backbone import student_backbone as stage

        with project.timed("shrink" if out else "student_backbone"):
            stage(project, probes)
