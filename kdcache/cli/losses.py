"""The command ``kdcache losses``."""

from typing import Annotated

import typer
from rich.table import Table

from kdcache.cli.options import Debug, console
from kdcache.project import errors_in_one_line


def losses(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/reference/losses.md instead of a table.")
    ] = False,
    debug: Debug = False,
) -> None:
    """List the losses: formula, needs, cost and source."""
    with errors_in_one_line(debug):
        from kdcache.losses.cards import FAMILIES, cards_markdown, read_cards

        if markdown:
            typer.echo(cards_markdown(), nl=False)
            return
        for family, title in FAMILIES.items():
            table = Table(title=f"{title} (distill.arms.ARM.{family})", title_justify="left", show_lines=True)
            for column in ("name", "formula", "needs", "cost", "source"):
                table.add_column(column, no_wrap=column == "name", overflow="fold")
            for card in read_cards():
                if family in card.families:
                    row = [card.sections.get(key, "") for key in ("Needs", "Cost", "Reference")]
                    table.add_row(card.name, f"{card.aim}: {card.formula}", *row)
            console.print(table)
