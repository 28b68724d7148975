"""The page: whole in itself, the same bytes for the same inputs, readable without eyes."""

import json
import random
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import ROOT
from records import BLANK, LIFTED, PARAMS, build_record, write_project

from kdcache.errors import DataError, ParamsError
from kdcache.project import Project
from kdcache.report import figures
from kdcache.report.figures import COLOURS, arm_styles
from kdcache.report.findings import compute_findings
from kdcache.report.page import mean_shares
from kdcache.report.report import report
from kdcache.stats.estimates import decimal

NASTY = '<script>alert("$x$")</script>&|'
TRUTH = LIFTED | {NASTY: 55}
VOID = {"meta", "br", "hr", "img", "link", "input"}


def build_records():
    return [build_record(TRUTH, task, rows=300, seed=k) for k, task in enumerate(("wic", "cb"))]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = write_project(tmp_path_factory.mktemp("a") / "project", build_records())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report(Project.load())
    return folder / "reports"


@pytest.fixture(scope="module")
def html(reports):
    return (reports / "index.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects elements, and complains where one is not closed in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def elements(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader.elements


def test_page_needs_nothing_else(html, elements):
    assert "http" not in html
    assert not re.search(r"@import|url\((?!#)", html)
    for tag, attributes in elements:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), attributes


def test_each_figure_says_its_numbers_in_words_of_its_own(elements):
    figures = [attributes for tag, attributes in elements if tag == "svg"]
    told = [a["aria-label"] for a in figures if a.get("role") == "img"]
    assert len(told) == len(figures)
    assert len(told) == 10
    assert len(set(told)) == len(told)
    assert all(len(re.findall(r"\d+", label)) >= 2 for label in told)


def test_ids_are_unique_and_what_points_to_them_finds_them(html, elements):
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    pointed = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', html)
    assert len(pointed) > 20
    assert set(pointed) <= set(ids)


def test_ink_is_the_page_s_own_and_nothing_is_drawn_in_black(html):
    assert "currentColor" in html
    figures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    for figure in figures:
        assert "#010203" not in figure
        assert not re.search(
            r"(fill|stroke): ?#(000000|ffffff|f0e442)", figure.replace("stroke: #ffffff", ""), re.IGNORECASE
        )


def test_names_are_text_wherever_they_stand(html, reports):
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html
    assert NASTY.replace("|", "\\|") in (reports / "results.md").read_text(encoding="utf-8")


def test_same_inputs_give_the_same_bytes_in_another_folder(reports, tmp_path, monkeypatch):
    folder = write_project(tmp_path / "elsewhere" / "deeper", build_records())
    monkeypatch.chdir(folder)
    report(Project.load())
    one, two = reports, folder / "reports"
    names = sorted(path.name for path in one.iterdir())
    assert names == ["index.html", "results.json", "results.md", "results.svg"]
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
        assert str(tmp_path) not in (two / name).read_text(encoding="utf-8")


def test_html_markdown_and_json_say_the_same_numbers(html, reports):
    text = unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<svg.*?</svg>", " ", html, flags=re.DOTALL)))
    markdown = (reports / "results.md").read_text(encoding="utf-8")
    numbers = json.loads((reports / "results.json").read_text(encoding="utf-8"))
    findings = compute_findings(build_records(), PARAMS)
    told = 0
    for arm, by_task in findings.gains.items():
        for task, found in [*by_task.items(), ("mean", findings.mean_gains[arm])]:
            assert found.cell in text
            assert found.cell in markdown
            kept = numbers["mean_gains"][arm] if task == "mean" else numbers["gains"][arm][task]
            assert [kept["points"], kept["low"], kept["high"]] == pytest.approx(
                [found.points, found.low, found.high], abs=1e-6
            )
            told += 1
    assert told == 18
    for arm, share in findings.shares.items():
        assert share.cell in text
        assert share.cell in markdown
        assert numbers["shares"][arm]["percent"] == pytest.approx(share.percent, abs=1e-6)
    for comparison, kept in zip(findings.comparisons, numbers["comparisons"], strict=True):
        assert kept["mean"]["points"] == pytest.approx(comparison.mean.points, abs=1e-6)
        assert kept["mean"]["p"] == pytest.approx(comparison.mean.p, abs=1e-6)
    assert numbers["roles"]["baseline"] == "ce"


def test_figures_tell_the_scores_that_they_draw(elements):
    labels = [attributes["aria-label"] for tag, attributes in elements if attributes.get("role") == "img"]
    level = compute_findings(build_records(), PARAMS).levels["cb"]["kl"]
    number = f"kl {decimal(level.points)} ({decimal(level.low)} to {decimal(level.high)})"
    assert any(label.startswith("cb: percent") and number in label for label in labels)


def test_the_answer_comes_first(html, reports):
    markdown = (reports / "results.md").read_text(encoding="utf-8")
    for page in (html.split("<main>")[1], markdown):
        answer = page.index("Does distillation lift the students over the baseline?")
        assert answer < page.index("Is the teacher reached?") < page.index("majority class")


def test_the_arm_below_the_control_is_marked_in_the_table(html):
    row = html.split('<th scope="row" class="text">&lt;script')[1].split("</tr>")[0]
    assert row.count("†") == 2


def test_the_control_is_grey_and_every_other_arm_looks_different():
    arms = [f"arm {k}" for k in range(20)]
    styles = arm_styles(["head", *arms], control="head")
    assert styles["head"].colour not in COLOURS
    assert len(set(styles.values())) == 21


def test_shares_of_the_gradient_are_means_over_steps_with_training():
    curves = build_records()[0].curves
    curves.loc[(curves["arm"] == "kl") & (curves["step"] == 0), ["share_ce", "share_kl"]] = [1.0, 0.0]
    shares = mean_shares(curves)
    assert set(shares) == {"kl", "kl+gram"}  # others have one term
    assert shares["kl"] == pytest.approx({"ce": 0.5, "kl": 0.5})


def test_missing_predictions_are_one_line(tmp_path, monkeypatch):
    write_project(tmp_path / "p", [build_record(LIFTED, rows=20)])
    monkeypatch.chdir(tmp_path / "p")
    Path("predictions/wic.parquet").unlink()
    with pytest.raises(DataError, match=r"^predictions/wic.parquet: .*Run: dvc repro distill@wic$"):
        report(Project.load())


@pytest.mark.parametrize(
    "name", ["metrics/wic.json", "curves/wic.csv", "predictions/wic.parquet", "data/wic/validation.parquet"]
)
def test_a_flipped_bit_of_what_the_report_reads_is_found(tmp_path, monkeypatch, name):
    write_project(tmp_path / "p", [build_record(LIFTED, rows=20)])
    monkeypatch.chdir(tmp_path / "p")
    path, rng = Path(name), random.Random(0)
    whole = path.read_bytes()
    for _ in range(40):
        position = rng.randrange(len(whole))
        path.write_bytes(
            whole[:position] + bytes([whole[position] ^ 1 << rng.randrange(8)]) + whole[position + 1 :]
        )
        with pytest.raises(DataError, match=r"Run: (dvc repro distill@wic|kdcache prepare --task wic)$"):
            report(Project.load())
    path.write_bytes(whole)
    report(Project.load())


def test_comparisons_of_params_stand_in_the_report(tmp_path, monkeypatch):
    write_project(tmp_path / "project", [build_record({"head": 50, "kl": 70, "teacher": 80}, rows=100)])
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(figures, "_svg", lambda *_, **__: BLANK)
    report(Project.load(["report.comparisons=[[kl, head]]"]))
    assert "| kl over head |" in Path("reports/results.md").read_text(encoding="utf-8")
    with pytest.raises(ParamsError, match=r"report.comparisons\[0\]: .*'hed'.*head"):
        report(Project.load(["report.comparisons=[[kl, hed]]"]))


def test_modules_are_imported_without_what_only_pages_and_models_need():
    """Beyond what scikit-learn itself imports."""
    code = """
import sys
import kdcache.data.metrics
before = set(sys.modules)
import kdcache.report.figures, kdcache.report.report, kdcache.stats.two_projects, kdcache.stats.plan
heavy = {"torch", "transformers", "peft", "matplotlib", "jinja2", "pandas"}
print(*sorted(heavy & (set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
