"""A hook of MkDocs: pages of the repository that lie outside docs/, and links to its files.

On GitHub a page of docs/ links to `../CONTRIBUTING.md`, and CONTRIBUTING.md to `docs/compatibility.md`. The site has
docs/ and the files in `PAGES`; links between them are those of the site. A link to another file of the repository goes
to its public address, if `repo_url` of mkdocs.yml says it, or else becomes text. A link to no file is left to MkDocs,
which reports it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "tests/preprocessing/bad_input.md": "bad-input-cases.md",
}
"""Files of the repository, and their pages on the site."""

_CODE_OR_LINK = re.compile(r"^```.*?^```|`[^`\n]+`(?!\]\()|\[([^\[\]]*)\]\(([^)\s]+)\)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give headings the anchors that they have on GitHub."""
    from pymdownx.slugs import slugify

    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn a page's links into links of the site."""
    return links_of_the_site(markdown, page.file.src_uri, config.repo_url)


def links_of_the_site(markdown: str, page: str, repository: str | None = None) -> str:
    """Return a page's text with links of the site in place of links between files of the repository.

    Args:
        markdown: The text.
        page: The page's path on the site, such as `tutorials/own-table.md`.
        repository: The repository's public address. None: there is none, and links to its files become text.
    """
    source = {there: here for here, there in PAGES.items()}.get(page, f"docs/{page}")

    def replace(match: re.Match[str]) -> str:
        text, link = match.groups()
        if text is None or re.match(r"[a-z]+:|#", link):
            return match.group()
        path, hash_sign, anchor = link.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        there: Any = file.removeprefix("docs/") if file.startswith("docs/") else PAGES.get(file)
        if there is not None:
            relative = posixpath.relpath(there, posixpath.dirname(page) or ".")
            return f"[{text}]({relative}{hash_sign}{anchor})"
        if file.startswith("../") or not (ROOT / file).exists():
            return match.group()
        return f"[{text}]({repository.rstrip('/')}/blob/main/{file}{hash_sign}{anchor})" if repository else text

    return _CODE_OR_LINK.sub(replace, markdown)
