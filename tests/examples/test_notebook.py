"""The notebooks, executed as they are on a tiny model."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support import make_model, make_tokenizer

NOTEBOOKS = Path(__file__).parents[2] / "examples" / "notebooks"


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> nbformat.NotebookNode:
    """Execute a notebook in a folder, with a tiny model."""
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    monkeypatch.setenv("DMPO_TRL_NOTEBOOK_MODEL", str(folder / "model"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute()
    return notebook


def printed(notebook, beginning: str) -> str:
    """What the cell that begins so printed."""
    (cell,) = (c for c in notebook.cells if c.cell_type == "code" and c.source.startswith(beginning))
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


@pytest.mark.parametrize("file", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda file: file.stem)
def test_notebooks_are_committed_without_outputs(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
def test_from_dpo_to_dmpo_runs(tmp_path, monkeypatch):
    notebook = run("from_dpo_to_dmpo.ipynb", tmp_path, monkeypatch)
    assert printed(notebook, "grouped") == "144 pairs, 48 rows\n"
    both = re.findall(r"DPO +(\S+) +DMPO +(\S+)", printed(notebook, "one ="))
    assert len(both) == 6
    for theirs, ours in both:
        assert float(ours) == pytest.approx(float(theirs), abs=2e-4)
    assert float(both[0][0]) == pytest.approx(0.6931, abs=1e-4)
    assert len(printed(notebook, "row =").splitlines()) == 5


@pytest.mark.slow
def test_own_data_runs(tmp_path, monkeypatch):
    notebook = run("own_data.ipynb", tmp_path, monkeypatch)
    assert printed(notebook, "users =") == "50 histories, 200 examples\n"
    table = printed(notebook, "questions =")
    assert {"model", "item_knn"} <= {line.partition("  ")[0] for line in table.splitlines()}
    recommended = printed(notebook, "recommender =")
    assert len(re.findall(r"^ +-\d+\.\d\d  ", recommended, re.MULTILINE)) == 3
    assert "What each item of the history adds to the score" in recommended
    assert (tmp_path / "outputs" / "dmpo" / "adapter_model.safetensors").exists()
