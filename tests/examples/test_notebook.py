"""The notebook, executed as it is on a tiny model."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support import make_model, make_tokenizer

NOTEBOOK = Path(__file__).parents[2] / "examples/notebooks/from_dpo_to_dmpo.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(notebook, beginning: str) -> str:
    """What the cell that begins so printed."""
    (cell,) = (c for c in notebook.cells if c.cell_type == "code" and c.source.startswith(beginning))
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def test_notebook_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
def test_notebook_runs(notebook, tmp_path, monkeypatch):
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setenv("DMPO_TRL_NOTEBOOK_MODEL", str(tmp_path / "model"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()

    assert printed(notebook, "grouped") == "144 pairs, 48 rows\n"
    both = re.findall(r"DPO +(\S+) +DMPO +(\S+)", printed(notebook, "one ="))
    assert len(both) == 6
    for theirs, ours in both:
        assert float(ours) == pytest.approx(float(theirs), abs=2e-4)
    assert float(both[0][0]) == pytest.approx(0.6931, abs=1e-4)
    assert len(printed(notebook, "row =").splitlines()) == 5
