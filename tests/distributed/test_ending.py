"""A process that has trained in DDP ends: about one in twenty of `dmpo-trl train`'s hung for ever."""

import subprocess
import sys

from support import SCRIPTS


def test_the_last_holder_of_a_process_group_releases_the_gil():
    command = [sys.executable, str(SCRIPTS / "process_group_end.py")]
    assert subprocess.check_output(command, text=True, timeout=120) == "the end\n"
