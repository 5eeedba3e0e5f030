"""The report: Markdown with its pictures, and one HTML page that holds everything."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from .language_models import model_name
from .pair_tables import pair_tables
from .pictures import pictures
from .records import read_cells, records_of
from .tables import tables

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font-family: sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 0.85rem; }
td, th { border-bottom: 1px solid #ccc; padding: 0.2rem 0.6rem; text-align: left; }
svg { max-width: 100%; height: auto; }
</style>
<h1>{{ title }}</h1>
<p>{{ about }}</p>
{% for name, heading, svg in pictures %}<h2>{{ heading }}</h2>
<div>{{ svg | safe }}</div>
{% endfor %}{% for table in tables %}<h2>{{ table.title }}</h2>
{% for note in table.notes %}<p>{{ note }}</p>
{% endfor %}<table>
<tr>{% for column in table.rows[0] %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for value in row.values() %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endfor %}</html>
"""


def write_report(folder: Path, output: Path) -> None:
    """Write `report.md`, its pictures and `report.html` of all cells of a folder.

    Raises:
        SystemExit: There are no cells.
    """
    cells = read_cells(folder)
    records = [record for cell in cells for record in records_of(cell)]
    found, drawn = [*tables(records), *pair_tables(records)], list(pictures(records))
    title, about = f"Results of {folder.name}", _about(cells)
    output.mkdir(parents=True, exist_ok=True)
    for name, _, svg in drawn:
        (output / f"{name}.svg").write_text(svg, encoding="utf-8")
    lines = [f"# {title}", "", about, ""]
    for name, heading, _ in drawn:
        lines += [f"![{heading}]({name}.svg)", ""]
    for table in found:
        notes = [*(f"- {note}" for note in table.notes), ""] if table.notes else []
        lines += [f"## {table.title}", "", *notes, *markdown(table.rows), ""]
    (output / "report.md").write_text("\n".join(lines), encoding="utf-8")
    inline = [(name, heading, svg[svg.index("<svg") :]) for name, heading, svg in drawn]
    page = Environment(autoescape=True).from_string(_PAGE)
    text = page.render(title=title, about=about, pictures=inline, tables=found)
    (output / "report.html").write_text(text, encoding="utf-8")
    print(f"{output / 'report.md'} and report.html: {len(found)} tables, {len(drawn)} pictures.")


def _about(cells: Sequence[Mapping[str, Any]]) -> str:
    """Say of what machines and commits the cells are."""
    values = {
        name: {cell[name] for cell in cells if name in cell}
        for name in ("model", "precision", "machine", "versions", "commit")
    }
    values["model"] = {model_name(name) for name in values["model"]}
    hours = sum(cell["seconds"] for cell in cells) / 3600
    named = "; ".join(f"{name}: {' or '.join(sorted(own))}" for name, own in values.items() if own)
    return f"{len(cells)} cells, {hours:.1f} hours. {named[0].upper()}{named[1:]}."


def markdown(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the lines of a table."""
    head = [f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    return [*head, *(f"| {' | '.join(row.values())} |" for row in rows)]
