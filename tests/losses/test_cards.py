"""The cards of the losses: the page matches the docstrings, and the command lists every loss."""

from pathlib import Path

from typer.testing import CliRunner

from kdcache.cli import app
from kdcache.losses import LOSSES
from kdcache.losses.cards import cards_markdown, read_cards

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_docs_show_the_cards_of_the_docstrings():
    text = (DOCS / "reference" / "losses.md").read_text(encoding="utf-8")
    assert text == cards_markdown(), "Run: kdcache losses --markdown > docs/reference/losses.md"


def test_every_card_says_what_the_table_of_a_paper_would():
    cards = read_cards()
    assert [card.name for card in cards] == list(LOSSES)
    for card in cards:
        assert card.aim, card.name
        assert any(sign in card.formula for sign in "·−/½"), card.name
        assert {"Returns", "Needs", "Cost", "Reference"} <= set(card.sections), card.name
        assert "O(" in card.sections["Cost"]


def test_the_command_lists_every_loss_under_each_of_its_families():
    out = CliRunner().invoke(app, ["losses"]).output
    for name, loss in LOSSES.items():
        assert out.count(f" {name} ") >= len(loss.families), name
    assert CliRunner().invoke(app, ["losses", "--markdown"]).output == cards_markdown()
