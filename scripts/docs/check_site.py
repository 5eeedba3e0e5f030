"""Checks of the built site: links and anchors inside it exist, and no page loads anything from another host.

    python scripts/docs/check_site.py site

MkDocs checks the links that it reads in Markdown; this reads the HTML, so what the theme and the API reference write
too. Links to other hosts are not followed.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("img", "src"), ("script", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("img", "srcset")}
"""What a browser fetches without a click."""


class _Links(HTMLParser):
    """The anchors and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "__top"}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one element names, links to and loads."""
        values = {key: value or "" for key, value in attrs}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        for key in ("href", "src"):
            if key in values:
                self.links.append(values[key])
        if values.get("rel") != "canonical":
            self.loaded += [value for key, value in values.items() if (tag, key) in LOADED]


def problems(site: Path) -> list[str]:
    """Return what is wrong with a site, one line each: the page, the link and why."""
    pages = {page: _Links(page.read_text(encoding="utf-8")) for page in sorted(site.rglob("*.html"))}
    found = []
    for page, links in pages.items():
        name = page.relative_to(site)
        found += [f"{name}: {link} is loaded from another host" for link in links.loaded if _is_foreign(link)]
        if name.name == "404.html":
            continue  # its links begin at the address of the site, which is not known here
        for link in links.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page.resolve()
            if target.is_dir():
                target = target / "index.html"
            if not target.is_file():
                found.append(f"{name}: {link} leads to no file")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name}: {link} leads to no anchor")
    for sheet in sorted(site.rglob("*.css")):
        for link in re.findall(r"url\(\s*['\"]?([^'\")]+)", sheet.read_text(encoding="utf-8")):
            if _is_foreign(link):
                found.append(f"{sheet.relative_to(site)}: {link} is loaded from another host")
    return found


def _is_foreign(link: str) -> bool:
    return bool(urlsplit(link).netloc)


def main() -> None:
    """Print the problems of the site that is named; the exit status is 1 where there are any."""
    site = Path(sys.argv[1]).resolve()
    if not (site / "index.html").is_file():
        sys.exit(f"{site} has no index.html: build the site first, with `make docs`.")
    found = problems(site)
    if found:
        sys.exit("\n".join(found))
    print(f"{sum(1 for _ in site.rglob('*.html'))} pages, no broken link, nothing from another host.")


if __name__ == "__main__":
    main()
