"""Digests of the code that each stage reaches, so that DVC reruns what a change can reach and nothing else.

A digest covers every module of kdcache that a stage imports, directly or not, and the versions of the
packages whose code decides its numbers. Comments, docstrings, formatting and the arguments of raised errors
are left out: prose decides no number. It is the same on every Python that kdcache supports.
"""

import ast
import importlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from kdcache.digests import file_digest, value_digest
from kdcache.errors import ParamsError

CODE = "code.json"
FORMAT = 1  # of that file

# Stage → the module that holds it, in a function of the stage's name.
STAGES = {
    "prepare": "kdcache.data.prepare",
    "train_teacher": "kdcache.teacher.train_teacher",
    "cache_teacher": "kdcache.teacher.cache_teacher",
    "import_teacher": "kdcache.teacher.import_teacher",
    "student_backbone": "kdcache.backbone.student_backbone",
    "distill": "kdcache.students.distill",
    "report": "kdcache.report.report",
}

# Imported name → the distributions whose versions decide numbers. Others decide none: tqdm and rich, and also
# datasets, an optional package that reads rows of a pinned revision. What is not always installed must not be
# here: the digests would differ between environments that make the same bytes.
PACKAGES = {
    "accelerate": ("accelerate",),
    "jinja2": ("jinja2",),
    "kdcache": ("kdcache",),  # of a stage that writes the version down
    "matplotlib": ("matplotlib",),
    "numpy": ("numpy",),
    "pandas": ("pandas",),
    "peft": ("peft",),
    "pyarrow": ("pyarrow",),
    "scipy": ("scipy",),
    "sklearn": ("scikit-learn", "scipy"),
    "torch": ("torch",),
    "transformers": ("transformers", "tokenizers", "accelerate"),
}

ROOT = Path(__file__).parent


def code(path: Path = Path(CODE)) -> None:
    """Write ``code.json``: stage → digest of its code.

    Raises:
        ParamsError: the file in place is not one that this version writes; it is left as it is.
    """
    if path.is_file():
        _refuse_other_format(path)
    digests = {stage: code_digest(module) for stage, module in STAGES.items()}
    text = json.dumps({"format": FORMAT, **digests}, indent=2) + "\n"
    path.write_text(text, encoding="utf-8")


@cache
def code_digest(module: str) -> str:
    """Return the digest of a module, of all it imports from kdcache, and of the packages they use.

    Args:
        module: dotted name of a module of kdcache.

    Returns:
        64 hexadecimal digits.
    """
    names, packages = reach(module)
    return value_digest({"source": source_digest(names), "packages": _versions(packages)})


def reach(module: str) -> tuple[list[str], list[str]]:
    """Follow the imports of a module, those inside functions included.

    Args:
        module: dotted name of a module of kdcache.

    Returns:
        The modules of kdcache, the module itself among them, and the other packages; both sorted. Imports
        under ``if TYPE_CHECKING:`` never run, so they do not count. Left out are the package ``kdcache``
        itself, which only resolves public names, and this module, which only makes keys.
    """
    found: set[str] = set()
    packages: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in found or name in ("kdcache", __name__):
            continue
        found.add(name)
        todo.append(name.rpartition(".")[0])  # importing a.b.c runs a.b too
        for imported in _read(_file(name)).imports:
            if imported == "kdcache" or not imported.startswith("kdcache."):
                packages.add(imported.split(".")[0])
            elif _exists(imported):
                todo.append(imported)
    return sorted(found), sorted(packages)


def source_digest(modules: Iterable[str]) -> str:
    """Digest the source of modules, and the data files that lie beside a package's ``__init__.py``.

    Args:
        modules: dotted names.
    """
    parts = {}
    for name in modules:
        file = _file(name)
        parts[name] = _read(file).digest
        if file.name == "__init__.py":
            parts |= {
                f"{name}/{path.name}": file_digest(path)
                for path in file.parent.iterdir()
                if path.is_file() and path.suffix not in (".py", ".pyc")
            }
    return value_digest(parts)


def _refuse_other_format(path: Path) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("format")
    except (ValueError, AttributeError):
        found = "none"
    if found != FORMAT:
        raise ParamsError(
            f"{path}: Another version of kdcache wrote this file: its format is {found}, this version writes "
            f"{FORMAT}. Remove it, or use that version."
        )


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Distribution → version, without the label of a local build: the CPU's and CUDA's are one version."""
    names = sorted({name for package in packages for name in PACKAGES.get(package, ())})
    return {name: _version(name) for name in names}


def _version(distribution: str) -> str:
    if distribution == "kdcache":
        # Of the package that runs: the metadata of an editable install can be older. Not by an import
        # statement, which would make every stage depend on the version.
        return importlib.import_module("kdcache").__version__
    try:
        return importlib.metadata.version(distribution).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # an optional package: the stage says so where it needs it


def _exists(module: str) -> bool:
    base = ROOT.parent.joinpath(*module.split("."))
    return base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()


def _file(module: str) -> Path:
    base = ROOT.parent.joinpath(*module.split("."))
    return base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"


class _Source(NamedTuple):
    digest: str
    imports: tuple[str, ...]


def _read(file: Path) -> _Source:
    return _analyse(file.read_text(encoding="utf-8"))


@cache
def _analyse(text: str) -> _Source:
    tree, spelt = ast.parse(text), list[str]()
    _spell(tree, spelt)
    return _Source(value_digest("".join(spelt)), tuple(_imports(tree)))


def _imports(tree: ast.Module) -> Iterator[str]:
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # it may be a module
        todo.extend(ast.iter_child_nodes(node))


def _spell(node: Any, spelt: list[str]) -> None:
    """Spell a syntax tree in a form that no version of Python changes.

    Fields that are empty are left out, since newer versions add such fields; so are positions, docstrings and
    what an error is raised with.
    """
    if isinstance(node, list):
        spelt.append("[")
        for item in node:
            _spell(item, spelt)
        spelt.append("]")
    elif isinstance(node, ast.AST):
        spelt.append(f"({type(node).__name__}")
        for name, value in _fields(node):
            spelt.append(f" {name}=")
            _spell(value, spelt)
        spelt.append(")")
    else:
        spelt.append(f"{node!r};")


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        yield "exc", node.exc.func
        return
    for name, value in ast.iter_fields(node):
        if name in ("kind", "type_comment") or (value is None and not isinstance(node, ast.Constant)):
            continue
        if name == "body" and isinstance(value, list):
            value = [statement for statement in value if not _is_text(statement)]
        elif isinstance(node, ast.JoinedStr):
            value = _merged(value)
        if value != []:
            yield name, value


def _is_text(statement: ast.AST) -> bool:
    """Whether a statement is a string and nothing else: a docstring, or a comment in its place."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _merged(values: list[Any]) -> list[Any]:
    """The parts of an f-string; neighbouring texts are one, as not every version merges them."""
    merged: list[Any] = []
    for value in values:
        part = str(value.value) if isinstance(value, ast.Constant) else value
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return [value for value in merged if value != ""]
