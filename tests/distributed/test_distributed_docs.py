"""The script of docs/distributed.md runs, on one process and on several, and trains the same."""

from __future__ import annotations

import re

import mpiexec
import pytest


@pytest.mark.skipif(mpiexec.MISSING is not None, reason=str(mpiexec.MISSING))
def test_the_script_trains(tmp_path):
    page = (mpiexec.ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    script = tmp_path / "train.py"
    text = re.search(r"```python\n(.*?)```", page, re.S)[1]
    for old, new in (  # in float64, where rounding does not show; and fewer images
        ('cnn(norm="batch")', 'cnn(norm="batch").double()'),
        ("tensor(images)", 'tensor(images.astype("float64"))'),
        ("batches(x, y,", "batches(x[:1280], y[:1280],"),
    ):
        assert old in text
        text = text.replace(old, new)
    script.write_text(text)
    losses = []
    for ranks in (1, 3):
        done = mpiexec.run(ranks, script)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{ranks} ranks, last loss ")
        losses.append(float(done.stdout.split()[-1]))
    assert losses[0] == losses[1] < 2
