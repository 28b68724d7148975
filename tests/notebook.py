"""Running a notebook's cells in this process, in order, with what they print and show.

``python tests/notebook.py NOTEBOOK`` runs it in a fresh folder and puts the outputs in.
"""

import ast
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any


def run_notebook(path: Path, cwd: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the notebook with fresh outputs, and the names that its cells have defined."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(cwd):
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(cells, start=1):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
                shown = _execute("".join(cell["source"]), names)
            text = re.sub(r"in /\S+", "in this folder", printed.getvalue()).replace(f"{cwd}/", "")
            cell["execution_count"] = number
            cell["outputs"] = [*_stream(text), *_result(shown, number)]
    return notebook, names


def _execute(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; return the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names) if last else None


def _stream(text: str) -> list[dict[str, Any]]:
    lines = text.splitlines(keepends=True)
    return [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []


def _result(value: Any, number: int) -> list[dict[str, Any]]:
    if value is None:
        return []
    data = {"text/plain": str(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = value._repr_html_().splitlines(keepends=True)
    return [{"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"}]


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        done, _ = run_notebook(target, Path(folder))
        os.chdir("/")
    target.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
