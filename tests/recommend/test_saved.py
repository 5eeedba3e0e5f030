import polars as pl
import pytest

from dmpo_trl.data import MOVIES
from dmpo_trl.recommend._saved import ITEMS, SETTINGS, find_beside, save_beside

FILMS = pl.DataFrame({"item": ["1", "2"], "title": ["Alien", "Amélie"]})


def test_what_is_saved_beside_a_model_is_found_there(tmp_path):
    folder = tmp_path / "runs" / "model"
    save_beside(folder, FILMS, MOVIES, "mean")
    saved, items = find_beside(str(folder), {"dtype": "auto"})
    assert saved == {"template": MOVIES.to_dict(), "score": "mean"}
    assert pl.read_parquet(items).equals(FILMS)


@pytest.mark.parametrize("name", [SETTINGS, ITEMS])
def test_without_one_of_the_two_files_there_is_no_catalogue(tmp_path, name):
    save_beside(tmp_path, FILMS, MOVIES, "mean")
    (tmp_path / name).unlink()
    saved, items = find_beside(str(tmp_path), {})
    assert items is None
    assert saved.get("score") == (None if name == SETTINGS else "mean")
