"""A rank that is killed ends all, and loses nothing: a few kills of ``kills.py``, which does more by hand."""

from __future__ import annotations

import kills
import mpiexec
import pytest

pytestmark = pytest.mark.skipif(mpiexec.MISSING is not None, reason=str(mpiexec.MISSING))
pytest.importorskip("safetensors")


@pytest.mark.parametrize("ranks", [[2], [1, 2, 3]], ids=["on two ranks", "each time on another number of ranks"])
def test_after_a_kill_all_ranks_are_gone_and_the_run_goes_on(tmp_path, ranks):
    """By SIGKILL at random moments; in the end it is the run that was not killed: bit for bit, or within 1e-10."""
    print(f"python tests/distributed/kills.py --kills 3 --ranks {' '.join(map(str, ranks))} --seed 0")
    counts = kills.run(3, 0, ranks, tmp_path)
    assert counts["kills"] == 3 and counts["runs that ended"] >= 1
