"""Hook of mkdocs: links to files outside docs/ lead to copies of them in the site."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]*)(#[^)\s]*)?\)")  # text, target, anchor


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links of a page to files outside docs/, and add these files to the site."""

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), match[2]))
        if target.startswith("docs/"):
            return match[0]
        source = ROOT / target
        if source.is_dir():  # the site has no page for it
            return match[1]
        if not source.is_file():
            raise PluginError(f"{page.file.src_uri} links to {match[2]}, which does not exist.")
        copy = f"files/{target.removesuffix('.md')}.txt" if target.endswith(".md") else f"files/{target}"
        if files.get_file_from_path(copy) is None:
            files.append(File.generated(config, copy, content=source.read_bytes()))
        return f"[{match[1]}]({posixpath.relpath(copy, posixpath.dirname(page.file.src_uri))})"

    return LINK.sub(rewrite, markdown)
