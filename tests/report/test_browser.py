"""The page in a real browser: nothing is wider than a phone's or a desk's screen."""

import re
import shutil
import subprocess
from html import escape

import pytest
from records import LIFTED, PARAMS, build_record

from kdcache.report.findings import compute_findings
from kdcache.report.page import build_sections, page_html

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (390, 1280)
LONG = "kl+gram@all with a name that never ends on targets of all rows"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH"),
]


def widths(page: str, tmp_path) -> dict[int, int]:
    """Width of a frame → width that the page takes in it, as the browser lays it out."""
    frames = "".join(
        f'<iframe style="width:{width}px;height:800px;border:0" srcdoc="{escape(page)}"></iframe>'
        for width in WIDTHS
    )
    script = (
        "onload = () => document.body.dataset.widths = [...document.querySelectorAll('iframe')]"
        ".map(f => f.contentDocument.documentElement.scrollWidth).join(' ')"
    )
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f"<!DOCTYPE html><body>{frames}<script>{script}</script></body>", encoding="utf-8")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
        wrapper.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    taken = re.search(r'data-widths="([\d ]+)"', done.stdout)
    assert taken, done.stderr[-2000:]
    return dict(zip(WIDTHS, map(int, taken[1].split()), strict=True))


def test_page_fits_phone_and_desk(tmp_path):
    records = [build_record(LIFTED | {LONG: 70}, f"task-number-{k}", rows=100, seed=k) for k in range(4)]
    sections = build_sections(compute_findings(records, PARAMS), ["dvc repro"], {"backbone": "0" * 64})
    for width, taken in widths(page_html(sections, "Four tasks"), tmp_path).items():
        assert taken <= width


def test_what_is_too_wide_is_noticed(tmp_path):
    page = '<!DOCTYPE html><body style="margin:0"><div style="width:500px">wide</div></body>'
    taken = widths(page, tmp_path)
    assert taken[390] == 500
    assert taken[1280] == 1280
