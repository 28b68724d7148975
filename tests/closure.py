"""The import closure of a script: every file of this project that it can import."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def imported_modules(path: Path, root: Path = ROOT) -> set[str]:
    """Names of kdcache modules imported anywhere in a file, inside functions too.

    Imports under ``if TYPE_CHECKING:`` never run, so they do not count.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # `from a import b` may name the submodule a.b
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "kdcache" and module_file(name, root)}


def module_file(name: str, root: Path = ROOT) -> Path | None:
    """The file of a module, or None if there is no such module."""
    base = root.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def import_closure(script: Path, root: Path = ROOT) -> set[str]:
    """Paths, relative to the project, of a script and all project files it can import."""
    found: set[Path] = set()
    todo = [script]
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.add(path)
        for name in imported_modules(path, root):
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):  # importing a.b.c runs a and a.b too
                file = module_file(".".join(parts[:depth]), root)
                assert file is not None
                todo.append(file)
    return {path.relative_to(root).as_posix() for path in found}
