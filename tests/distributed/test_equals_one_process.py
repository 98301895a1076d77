"""A BatchNorm network trained on parts of a batch, by several ranks, is the one trained on the whole batch in one process."""

from __future__ import annotations

import json
from pathlib import Path

import mpiexec
import numpy as np
import pytest
import same_training

SCRIPT = Path(same_training.__file__)
SYNCHRONISED = [name for name, (_, synchronised) in same_training.WAYS.items() if synchronised]


@pytest.fixture(scope="module")
def alone():
    """What one process comes to, with the plain BatchNorm."""
    return same_training.train("equal", False)


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def ranks(request):
    if mpiexec.MISSING:
        pytest.skip(mpiexec.MISSING)
    process = mpiexec.run(request.param, SCRIPT)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert len(found) == request.param
    return found


def difference(found, alone):
    return np.abs(np.subtract(found["losses"], alone["losses"])).max()


@pytest.mark.parametrize("way", SYNCHRONISED)
def test_with_sync_batch_norm_it_equals_one_process(ranks, alone, way):
    """Losses of 50 steps with momentum within 1e-10; weights and statistics with the same bits on every rank."""
    assert len(alone["losses"]) == 50 and alone["losses"][-1] < alone["losses"][0] / 2
    for found in ranks:
        assert difference(found[way], alone) < 1e-10
        assert found[way]["checksum"] == ranks[0][way]["checksum"]
        for name, values in alone["statistics"].items():
            np.testing.assert_allclose(found[way]["statistics"][name], values, rtol=1e-9, atol=1e-9)


def test_without_it_does_not(ranks, alone):
    apart = difference(ranks[0]["no SyncBatchNorm"], alone)
    assert {found["no SyncBatchNorm"]["checksum"] for found in ranks} == {ranks[0]["no SyncBatchNorm"]["checksum"]}
    if len(ranks) == 1:
        assert apart == 0
    else:
        assert apart > 0.05
