"""A small model and a table of films, for tests of commands from the raw file on."""

from pathlib import Path

from dmpo_trl.data import PrepareConfig, prepare

from .models import save_model


def model_and_table(folder: Path, steps: int) -> Path:
    """Write `model` and `rows.csv` to the folder: 30 users who had `steps` of 40 films each; return the folder."""
    save_model(folder / "model")
    had = [(user, (7 * user + 3 * step) % 40, step) for user in range(30) for step in range(steps)]
    rows = [f"{user},{item},{step},Film {item}" for user, item, step in had]
    (folder / "rows.csv").write_text("\n".join(["user,item,timestamp,title", *rows]) + "\n")
    return folder


def model_and_data(folder: Path) -> Path:
    """The same with 5 films each, prepared in `data` with 5 candidates for 4 test users."""
    model_and_table(folder, steps=5)
    table = {"dataset": "table", "path": str(folder / "rows.csv"), "template": "movies"}
    prepare(PrepareConfig(**table, candidates=5, test_users=4, output_dir=str(folder / "data")))
    return folder
