"""Training on two hosts with addresses of their own, at once and with 20 ms between them, is that of one process."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import hosts as rig
import kills
import mpiexec
import numpy as np
import pytest
import same_training

import tinygrad_bn as tg

WHY_NOT = rig.why_not(0.02)
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
TRAIN = """
import json
import same_training
from tinygrad_bn import distributed

distributed.init()
told = distributed.communicators.current().gather_text(json.dumps(same_training.train("unequal", True)))
if distributed.rank() == 0:
    print(*told, sep="\\n")
"""
WHERE = """
import os
from tinygrad_bn import distributed

distributed.init()
ranks = distributed.communicators.current()
told = ranks.gather_text(f"{os.uname().nodename} {ranks.local_rank} {ranks.local_size} {os.readlink('/proc/self/ns/net')}")
if ranks.rank == 0:
    print(*told, sep="\\n")
"""


@pytest.fixture(scope="module", params=[0.0, 0.02], ids=["near", "20 ms apart"])
def hosts(request):
    with rig.two_hosts(request.param) as made:
        yield made


def test_each_host_is_one(hosts):
    """Ranks go to the hosts in turn, share a machine only with those of their host, and are as far apart as was asked."""
    done = hosts.run(3, "-c", WHERE)
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    assert [line[:3] for line in told] == [["a", "0", "2"], ["b", "0", "1"], ["a", "1", "2"]]
    assert told[0][3] == told[2][3] != told[1][3]
    trips = hosts.ping()
    assert len(trips) == 5 and min(trips) >= 2 * hosts.delay


def test_training_equals_one_process(hosts):
    """Losses of 50 steps within 1e-10, the same weights on both; and the gradients went over the link."""
    before = hosts.carried()
    done = hosts.run(2, "-c", TRAIN, timeout=300, folders=(Path(same_training.__file__).parent,))
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    alone = same_training.train("equal", False)
    assert np.abs(np.subtract(first["losses"], alone["losses"])).max() < 1e-10
    assert first["checksum"] == second["checksum"]
    parameters = sum(p.size for p in tg.models.cnn(channels=(3, 4), hidden=8, image_size=12).parameters())
    assert hosts.carried() - before > 2 * 8 * parameters * same_training.STEPS


def test_a_killed_rank_ends_all_on_both_hosts(hosts, tmp_path):
    """And the run goes on from the newest checkpoint to the bits of one that nobody killed."""
    if hosts.delay:
        pytest.skip("minutes: python tests/distributed/kills.py --hosts 20")
    counts = kills.run(2, seed=11, ranks=[2], root=tmp_path, launch=hosts.start)
    assert counts["kills"] == 2


def test_nothing_is_left(monkeypatch):
    """Namespaces and processes go with the block, an error in it too; what a killed rig left goes when the next begins."""
    monkeypatch.setattr(os, "getpid", lambda: 5_000_000)  # above the kernel's largest: a rig whose process is gone
    with pytest.raises(ZeroDivisionError), rig.two_hosts(0.02) as hosts:
        sleeper = subprocess.Popen(hosts.inside(1, "sleep", "1000"))
        while not mpiexec.children(sleeper.pid) and "sleep" not in Path(f"/proc/{sleeper.pid}/cmdline").read_text():
            time.sleep(0.01)
        names = set(hosts.namespaces)
        assert names <= _namespaces()
        raise ZeroDivisionError
    assert sleeper.wait(10) == -9
    assert not names & _namespaces()
    for name in names:
        subprocess.run(["ip", "netns", "add", name], check=True)
    monkeypatch.undo()
    with rig.two_hosts():
        assert not names & _namespaces()


def _namespaces():
    told = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in told.stdout.splitlines()}
