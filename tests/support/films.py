"""Films in RecBole's format."""

from collections.abc import Iterable
from pathlib import Path


def write_films(folder: Path, rows: Iterable[tuple[int, int, int, int]], films: int) -> None:
    """Write interactions (user, film, rating, time) and the titles of so many films to a new folder."""
    folder.mkdir()
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    lines = ["\t".join(map(str, row)) for row in rows]
    (folder / "films.inter").write_text("\n".join([header, *lines]) + "\n")
    items = ["item_id:token\tmovie_title:token_seq", *(f"{film}\tFilm {film}" for film in range(films))]
    (folder / "films.item").write_text("\n".join(items) + "\n")
