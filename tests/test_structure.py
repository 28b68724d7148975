"""The structure of the code: packages in layers, one name for one thing, data that flows one way."""

import ast
from collections import defaultdict
from pathlib import Path

import yaml
from conftest import ROOT

from kdcache.code import STAGES, _read, reach

# Lower never imports higher.
LAYERS = (
    "errors", "digests", "code", "plain_yaml", "params", "places", "torchrun", "on_disk", "project",
    "progress", "spread", "store", "data", "encoder", "cache", "losses", "teacher", "backbone", "students",
    "serve", "analysis", "stats", "report", "cli",
)  # fmt: skip
FILES = sorted((ROOT / "kdcache").rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer(module: str) -> int:
    parts = module.split(".")
    return LAYERS.index(parts[1]) if len(parts) > 1 and parts[1] in LAYERS else -1


def test_no_import_runs_upward():
    known = {module_of(path) for path in FILES}
    upward = [
        f"{module_of(path)} imports {imported}"
        for path in FILES
        for imported in _read(path).imports
        if imported in known and 0 <= layer(module_of(path)) < layer(imported)
    ]
    assert not upward


def test_no_imports_in_a_circle():
    known = {module_of(path): path for path in FILES}
    graph = {
        name: {imported for imported in _read(path).imports if imported in known} - {name}
        for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"circle: {trail}"
        if name not in done:
            for following in sorted(graph[name]):
                visit(following, (*trail, name))
            done.add(name)

    for name in known:
        visit(name, ())


def test_data_flows_one_way():
    """Students know the cache and no teacher; a teacher knows no student."""
    of = {stage: {name.split(".")[1] for name in reach(module)[0]} for stage, module in STAGES.items()}
    assert "teacher" not in of["distill"]
    assert not {"losses", "students"} & (of["train_teacher"] | of["cache_teacher"])
    assert "cache" not in of["train_teacher"]
    assert not any("cli" in packages for packages in of.values())


def test_stage_script_function_and_section_share_one_name():
    sections = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert list(pipeline) == ["code", *STAGES]
    for stage, module in STAGES.items():
        assert (ROOT / "pipeline" / f"{stage}.py").is_file()
        assert module.rpartition(".")[2] == stage
        assert stage in sections


def test_a_public_name_is_defined_once():
    """Commands and frames are left out: a verb has the name of what it calls."""
    places = defaultdict(list)
    for path in FILES:
        if "cli" not in path.parts and path.stem != "frames":
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    names = [node.name]
                elif isinstance(node, ast.Assign):
                    names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                else:
                    names = []
                for name in names:
                    if not name.startswith("_") and name != "T":
                        places[name].append(module_of(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_file_is_longer_than_300_lines():
    for path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path


def test_nothing_is_left_to_assert():
    """``python -O`` leaves assertions out."""
    found = [
        path.name for path in FILES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]  # fmt: skip
    assert not found
