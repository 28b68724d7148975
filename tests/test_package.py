"""The package: one version, what the wheel and the sdist hold, and which parts run without the extras."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, build_tiny_model, run, tiny_params

import kdcache
from kdcache.errors import EXTRAS
from kdcache.params import read_params

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_IMPORTED = {"accelerate", "peft", "dvc"}  # peft and transformers need the first; dvc is a command


def installed_by(extra: str | None = None) -> set[str]:
    """Import names of the packages that kdcache[extra] installs."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    names: set[str] = set()
    for line in lines:
        if line.startswith("kdcache["):
            for other in line[len("kdcache[") : -1].split(","):
                names |= installed_by(other)
        else:
            name = line.split(">")[0].split("=")[0]
            names.add({"scikit-learn": "sklearn", "pyyaml": "yaml"}.get(name, name).replace("-", "_"))
    return names


def test_the_version_is_written_once():
    assert "version" not in PROJECT
    assert run("--version") == (0, f"kdcache {kdcache.__version__}\n", "")
    done = subprocess.run(
        [sys.executable, "-m", "kdcache", "--version"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == f"kdcache {kdcache.__version__}\n"


def test_every_public_name_is_where_it_is_looked_for():
    for name, module in kdcache._PUBLIC.items():
        base = ROOT.joinpath("kdcache", *module.split("."))
        file = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        defined: set[str] = set()
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined |= {target.id for target in targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.ImportFrom):
                defined |= {alias.asname or alias.name for alias in node.names}
        assert name in defined, (name, module)


def test_the_api_is_listed_and_costs_nothing_before_use():
    code = "import sys, kdcache; print(*dir(kdcache)); print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    listed, loaded = done.stdout.splitlines()
    assert set(kdcache._PUBLIC) <= set(listed.split())
    assert loaded == "False False"
    with pytest.raises(AttributeError, match="nosuch"):
        _ = kdcache.nosuch


def test_every_import_is_installed_by_a_dependency_or_an_extra():
    imported: set[str] = set()
    for path in (ROOT / "kdcache").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    imported -= sys.stdlib_module_names | {"kdcache", "pydantic_core"}  # the latter is part of pydantic
    base = installed_by()
    assert imported <= base | set(EXTRAS)
    for package, extra in EXTRAS.items():
        assert package in installed_by(extra), package
        assert package not in base, package
    assert base <= imported | NOT_IMPORTED


WITHOUT_EXTRAS = """
import importlib, sys

class Hide:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name): return getattr(self.finder, name)

sys.meta_path[:] = map(Hide, sys.meta_path)
"""


def without_extras(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code where no package of an extra can be found."""
    script = WITHOUT_EXTRAS.replace("{hidden}", repr(set(EXTRAS))) + code
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


PARTS = {
    "losses and caches": "kdcache.load_cache, kdcache.join, kdcache.CacheWriter",
    "students": "kdcache.load_student",
}


@pytest.mark.slow  # by default tests/serve/test_light.py and tests/cache/test_imports.py
@pytest.mark.parametrize("part", PARTS)
def test_losses_caches_and_students_need_no_extra(tmp_path, part):
    code = (
        f"import kdcache, torch\n{PARTS[part]}\nprint(kdcache.kl(torch.ones(2, 2), torch.ones(2, 2)).item())"
    )
    done = without_extras(code, tmp_path)
    assert done.stdout == "0.0\n", done.stderr


def test_missing_extra_is_one_line_with_the_command(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    done = without_extras("from kdcache.cli import app\napp(['report'])", tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert 'pip install "kdcache[' in done.stderr


def tracked_files(folder: str) -> set[str]:
    """Files below a folder of the tree, links followed."""
    return {
        Path(parent, name).relative_to(ROOT).as_posix()
        for parent, _, names in os.walk(ROOT / folder, followlinks=True)
        for name in names
        if not name.endswith(".pyc")
    }


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built through the sdist, as an index would get it."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt",
                 "dvc.yaml", "params.yaml"):  # fmt: skip
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / ".dvc", tree / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    for name in ("kdcache", "pipeline", "sample", "tasks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(tree)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "warning" not in (done.stdout + done.stderr).lower().replace("warnings", "")
    (made,) = folder.glob("*.whl")
    return made


def test_wheel_holds_every_file_of_the_package_with_its_bytes(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if name.startswith("kdcache/")}
    assert set(held) == tracked_files("kdcache")
    for name, content in held.items():
        assert content == (ROOT / name).read_bytes(), name


def test_template_is_the_repositorys_own_files():
    """Links, so that a project's files and the repository's cannot differ."""
    own = {"gitignore", "dvcignore"}
    template = ROOT / "kdcache" / "template"
    for path in template.rglob("*"):
        if path.is_file() and path.relative_to(template).as_posix() not in own:
            assert not path.resolve().is_relative_to(template), path
    assert (ROOT / "kdcache" / "sample").resolve() == ROOT / "sample"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_the_wheel_to_predictions_in_an_empty_folder(wheel, tmp_path):
    """The installed wheel, not the tree: outside git, in a path with a space and an umlaut; then `dvc repro`.

    The environment borrows the packages of this one, but not its kdcache.
    """
    home = tmp_path / "mein Büro"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([sys.executable, "-m", "venv", str(home / "venv")], check=True)
    environment["PATH"] = f"{home / 'venv' / 'bin'}{os.pathsep}{environment['PATH']}"

    def call(*command: str, cwd: Path = home) -> str:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-3000:])
        return done.stdout

    call("pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    (packages,) = (home / "venv" / "lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = call("python", "-c", "import kdcache; print(kdcache.__file__)")
    assert where.startswith(str(home))

    rows = [f"a {('bad', 'good')[i % 2]} room, number {i}".join('""') + f",{'np'[i % 2]}" for i in range(80)]
    (home / "meine Räume.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    call("kdcache", "init", "own", "--table", "meine Räume.csv")
    own = home / "own"
    assert "meine-raume" in call("kdcache", "tasks", "check", "meine-raume", cwd=own)
    build_tiny_model(own / "tiny")
    make_tiny(own)
    call("kdcache", "run", cwd=own)
    call("kdcache", "distill", "--arm", "kl", "--seed", "0", cwd=own)
    (own / "new.jsonl").write_text('{"text": "a good room"}\n')
    files = ["--input", "new.jsonl", "--output", "out.csv"]
    call("kdcache", "predict", "--student", "runs/meine-raume/kl-0", *files, cwd=own)
    assert len((own / "out.csv").read_text().splitlines()) == 2

    call("kdcache", "init", "sample tasks")
    project = home / "sample tasks"
    build_tiny_model(project / "tiny")
    make_tiny(project)
    call("python", "-m", "dvc", "repro", cwd=project)
    assert (project / "reports" / "index.html").is_file()
    assert "Running stage 'distill" not in call("python", "-m", "dvc", "repro", cwd=project)


def make_tiny(folder: Path) -> None:
    """Give a new project parameters for the tiny model; its own tasks and ``prepare`` stay."""
    own = read_params(folder / "params.yaml")
    params = tiny_params("tiny") | {key: own[key] for key in ("tasks", "fine_tune", "prepare")}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
