from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from stepguard.recover.shelf import is_written

HOLDS = """
import sys, time
from pathlib import Path
from stepguard.recover.shelf import Claim
claim = Claim(Path(sys.argv[1]))
print("claimed", flush=True)
time.sleep(100)
"""


def test_a_run_is_written_until_its_process_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "a.sqlite"
    assert is_written(run) is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(run)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "claimed\n"
        assert is_written(run) is True
        holder.kill()
    assert is_written(run) is False
