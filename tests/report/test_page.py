"""The page: whole in itself, the same bytes, readable without eyes and on a phone, no number of its own."""

import json
import re
import tomllib
from fnmatch import fnmatch
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import ROOT
from records import LIFTED, RECIPES, build_record, write_project

from kdcache.code import reach
from kdcache.errors import DataError, ParamsError
from kdcache.project import Project
from kdcache.report.cost import live_table, savings
from kdcache.report.findings import find
from kdcache.report.report import report

NASTY = '<script>alert("$x$")</script>&|'
ARMS = RECIPES | {NASTY: {"inter_class": {"name": "kl"}, "lr": 1.0}}
PHONE = 390
MARGINS = 32
VOID = {"meta", "br", "hr", "img", "link", "input"}


def make(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    truth = LIFTED | {NASTY: 55}
    records = [build_record(truth, task, rows=300, seed=k) for k, task in enumerate(("wic", "cb"))]
    write_project(folder, records, ARMS)
    monkeypatch.chdir(folder)
    report(Project.load())
    return folder / "reports"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return make(tmp_path_factory.mktemp("a") / "project", patch)


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
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" for a in figures)
    assert len(told) > 15
    assert len(set(told)) == len(told)
    assert all(len(re.findall(r"\d+", label)) >= 2 for label in told)


def test_ids_are_unique_and_what_points_to_them_finds_them(html, elements):
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    pointed = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', html)
    assert len(pointed) > 20
    assert set(pointed) <= set(ids)


def test_nothing_is_wider_than_a_phone(html, elements):
    css = html.split("<style>")[1].split("</style>")[0]
    for name, pixels in re.findall(r"([\w-]*width|flex-basis)\s*:\s*(\d+)px", css):
        assert name == "max-width" or int(pixels) <= PHONE
    for whole in re.findall(r"minmax\(([^,]+(?:\([^)]*\))?[^,]*),", css):
        assert whole.startswith("min(100%") or int(re.sub(r"\D", "", whole) or 0) <= PHONE
    for tag, attributes in elements:
        if tag not in ("image", "rect", "use"):  # in units of their figure
            assert float(attributes.get("width", 0)) <= PHONE - MARGINS, attributes
        if tag != "g":
            assert not re.search(r"(?<!-)width\s*:\s*\d{3}", attributes.get("style", ""))


def test_text_in_figures_is_at_least_9_px_on_a_phone(html):
    for attributes, body in re.findall(r"<svg ([^>]*)>(.*?)</svg>", html, flags=re.DOTALL):
        width = float(re.search(r'width="([\d.]+)"', attributes)[1])
        units = float(re.search(r'viewBox="0 0 ([\d.]+)', attributes)[1])
        for size in re.findall(r"font: (?:[a-z0-9]+ )*?([\d.]+)px", body):
            assert float(size) * min(width, PHONE - MARGINS) / units >= 9


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
    again = make(tmp_path / "elsewhere" / "deeper", monkeypatch)
    names = sorted(path.name for path in reports.iterdir())
    assert names == ["headline.svg", "index.html", "results.json", "results.md", "results.svg", "shares.svg"]
    for name in names:
        assert (reports / name).read_bytes() == (again / name).read_bytes(), name
        assert str(tmp_path.parent) not in (again / name).read_text(encoding="utf-8")


def test_html_markdown_and_json_say_the_same_numbers(html, reports):
    text = unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<svg.*?</svg>", " ", html, flags=re.DOTALL)))
    markdown = (reports / "results.md").read_text(encoding="utf-8")
    numbers = json.loads((reports / "results.json").read_text(encoding="utf-8"))
    truth = LIFTED | {NASTY: 55}
    records = [build_record(truth, task, rows=300, seed=k) for k, task in enumerate(("wic", "cb"))]
    findings = find(records, ARMS, "prefix")
    checked = 0
    for arm, by_task in findings.gains.items():
        for task, found in [*by_task.items(), ("mean", findings.mean_gains[arm])]:
            assert str(found) in text
            assert str(found) in markdown
            kept = numbers["mean_gains"][arm] if task == "mean" else numbers["gains"][arm][task]
            assert [kept["points"], kept["low"], kept["high"]] == pytest.approx(
                [found.points, found.low, found.high], abs=1e-6
            )
            checked += 1
    for arm, share in findings.shares.items():
        assert str(share) in text
        assert str(share) in markdown
        assert numbers["shares"][arm]["percent"] == pytest.approx(share.percent, abs=1e-6)
    for comparison, kept in zip(findings.comparisons, numbers["comparisons"], strict=True):
        assert str(comparison.mean) in text
        assert kept["mean"]["points"] == pytest.approx(comparison.mean.points, abs=1e-6)
    assert checked == 18


def test_markdown_begins_with_the_table_that_the_readme_shows(reports):
    lines = (reports / "results.md").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["# Results", "", "|  | wic accuracy | cb accuracy |"]
    headings = [line for line in lines if line.startswith("## ")]
    assert headings[:2] == ["## Cost, in counts", "## The answer"]


def test_the_arm_below_the_head_is_marked_in_the_table(html):
    row = html.split('<th scope="row" class="text">&lt;script')[1].split("</tr>")[0]
    assert row.count("†") == 2


def test_missing_predictions_are_one_line(tmp_path, monkeypatch):
    write_project(tmp_path / "p", [build_record(LIFTED, rows=20)], RECIPES)
    monkeypatch.chdir(tmp_path / "p")
    Path("predictions/wic.parquet").unlink()
    with pytest.raises(DataError) as caught:
        report(Project.load())
    assert str(caught.value) == (
        "predictions/wic.parquet: the predictions must exist, got nothing there. Run: dvc repro distill@wic"
    )


def test_break_even_is_the_cost_of_caching_over_that_of_a_student():
    record = build_record(LIFTED, rows=20)
    found = savings([record.metrics], RECIPES)  # 3 arms of 3 students, 160 examples per arm and seed
    assert (found[0].cached, found[0].live, found[0].students) == (300, 3 * 3 * 160, 9)
    assert found[0].break_even == pytest.approx(300 / 160)
    record.metrics["arms"]["head"]["examples"] = 0  # as of every head alone: taught, it takes nothing either
    taught = RECIPES | {"head": {"method": "head", "inter_class": {"name": "kl"}}}
    assert savings([record.metrics], taught) == found
    timings = [{"stage": "cache_teacher", "task": "wic", "seconds": 10.0}]
    (row,) = live_table(found, timings).rows  # 30 examples/s, so 160 examples take 5.3 s
    assert row == ["wic", "30", "10.0", "5.3", "+38.0", "1.9"]
    assert live_table(found, []).rows == []


def test_report_imports_no_torch():
    assert not {"torch", "transformers", "peft"} & set(reach("kdcache.report.report")[1])


def test_a_wheel_ships_every_file_that_is_no_module():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["kdcache"]
    for path in (ROOT / "kdcache").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            name = path.relative_to(ROOT / "kdcache").as_posix()
            assert any(fnmatch(name, pattern) for pattern in patterns), name


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        (["kl", "cee"], "it must name arms of distill.arms, got 'cee'. Did you mean ce?"),
        (["kl"], "it must be [arm, over], two arms, got ['kl']. Correct it or leave it out."),
        (["kl", "kl"], "it must be [arm, over], two arms, got ['kl', 'kl']. Correct it or leave it out."),
    ],
)
def test_a_comparison_of_no_two_arms_is_refused_before_anything_is_read(tmp_path, monkeypatch, pair, text):
    write_project(tmp_path / "project", [build_record(LIFTED, rows=300)], RECIPES)
    monkeypatch.chdir(tmp_path / "project")
    project = Project.load([f"report.comparisons=[[kl, ce], [{', '.join(pair)}]]"])
    with pytest.raises(ParamsError, match=re.escape(f"report.comparisons[1]: {text}")):
        report(project)


def test_planned_comparisons_of_params_stand_in_the_page(tmp_path, monkeypatch):
    write_project(tmp_path / "project", [build_record(LIFTED, rows=300)], RECIPES)
    monkeypatch.chdir(tmp_path / "project")
    report(Project.load(["report.comparisons=[[full, kl]]"]))
    assert ">full over kl<" in (tmp_path / "project/reports/index.html").read_text(encoding="utf-8")
