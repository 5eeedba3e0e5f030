"""Small files in RecBole's format; the real ones only where DMPO_TRL_SHARED_DATA points to them."""

import os
from pathlib import Path

import pytest

INTER = """user_id:token\titem_id:token\trating:float\ttimestamp:float
u1\ti1\t5\t100
u1\ti2\t3\t200
u1\ti3\t4\t300
u2\ti2\t5\t100
u2\ti4\t4\t100
u2\ti1\t4\t50
"""
ITEM = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
i1\tToy Story\t1995\tAnimation Comedy
i2\tBug's Life, A\t1998\tAnimation
i3\tUsual "Suspects, The\t1995\tCrime
i4\tunknown\t\tunknown
"""


@pytest.fixture
def recbole_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "tiny.inter").write_text(INTER, encoding="utf-8")
    (folder / "tiny.item").write_text(ITEM, encoding="utf-8")
    return folder


@pytest.fixture
def shared() -> Path:
    root = os.environ.get("DMPO_TRL_SHARED_DATA")
    if not root:
        pytest.skip("DMPO_TRL_SHARED_DATA does not point to the folder with real data")
    return Path(root)


@pytest.fixture
def real_recbole_folder(shared: Path) -> Path:
    return shared / "ml-100k-recbole"
