"""Sections → one page of HTML that needs nothing else, and the same in Markdown."""

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from kdcache.report import charts
from kdcache.report.cost import FORMULA, saving_table, savings
from kdcache.report.findings import Findings
from kdcache.report.sections import Section
from kdcache.report.summary import results_markdown


def page_html(sections: Sequence[Section], title: str) -> str:
    """One file that needs nothing else."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["code"] = code_spans
    return environment.get_template("page.html.jinja").render(
        sections=sections, title=title, panel=charts.WIDTH, small=charts.SMALL
    )


def code_spans(text: str) -> Markup:
    """Escape a text, and set what stands between backticks as code.

    >>> code_spans("`<b>` over `ce`")
    Markup('<code>&lt;b&gt;</code> over <code>ce</code>')
    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def page_markdown(sections: Sequence[Section], findings: Findings) -> str:
    """The table of results and the cost first, as the README has them; then the rest of the page in words."""
    lines = [results_markdown(findings.metrics, findings.roles.head).rstrip("\n")]
    for section in sections:
        if section.name in ("cost",) or not (section.sentences or section.tables or section.commands):
            continue
        lines += ["", f"## {section.title}"]
        lines += ["", section.reading] if section.reading else []
        lines += ["", *(f"- **{s.topic}.** {s.text}" for s in section.sentences)] if section.sentences else []
        if section.commands:
            lines += ["", "```sh", *section.commands, "```"]
        for table in section.tables:
            lines += ["", *table.markdown(), "", f"{table.caption}."]
    lines += [
        "",
        "## Break-even",
        "",
        FORMULA,
        "",
        *saving_table(savings(findings.metrics, findings.recipes)).markdown(),
    ]
    return "\n".join(lines) + "\n"
