"""Two hosts on one machine: network namespaces with addresses of their own, joined by a cable that may be 20 ms long.

    python tests/distributed/hosts.py                        # how long a round trip takes
    python tests/distributed/hosts.py --delay 20
    python tests/distributed/hosts.py --delay 20 --ranks 3 -- python train.py

Each host has its own name, addresses, semaphores and /dev/shm, so that what one rank says to one on the other host goes
through the link; ``Hosts.carried`` counts it. Processes, files and cores are those of the machine. It needs Linux and root.

The cable is a veth pair. A delay holds in each direction (20 ms: a ping takes 40): netem adds it where the kernel has that;
else two tap devices make the link, and a process of this file carries each frame over when its time has come.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import os
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mpiexec

ADDRESSES = "10.77.0.1", "10.77.0.2"  # namespaces do not see each other's networks: every rig may use these
DEVICE, TUN = "eth0", "/dev/net/tun"
MTU = 65000  # few frames: a relay in Python costs some 10 us for each
_NAME, _rigs = "tgbn", itertools.count()


def why_not(delay: float = 0.0) -> str | None:
    """Why this machine cannot be two hosts so far apart, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "two hosts need Linux and root: network namespaces"
    missing = [command for command in ("ip", "unshare", "mount") if shutil.which(command) is None]
    if missing:
        return f"two hosts need the command {missing[0]}"
    if mpiexec.MISSING:
        return mpiexec.MISSING
    probe = f"{_NAME}-{os.getpid()}-probe"
    refused = _try("ip", "netns", "add", probe) or _try(
        "ip", "netns", "exec", probe, "unshare", "--uts", "--ipc", "--mount", "true"
    )
    far = not delay or os.path.exists(TUN) or not _netem(probe, delay, "lo")
    _try("ip", "netns", "del", probe)
    if refused:
        return f"two hosts need namespaces: {refused}"
    return None if far else f"a link with a delay needs netem in the kernel, or {TUN}"


class Hosts(NamedTuple):
    """Two running hosts: ``link`` says what joins them, ``delay`` is in seconds, each way."""

    namespaces: tuple[str, str]
    wrapper: Path
    link: str
    delay: float

    def inside(self, host: int, *command: str) -> list[str]:
        """The command, to be run on host 0 or 1."""
        return [str(self.wrapper), ADDRESSES[host], shlex.join(command)]

    def mpiexec(self, ranks: int, *command: str) -> list[str]:
        """``mpiexec`` on host 0 that starts ranks on host 0, 1, 0, 1 ..., as it does on a cluster through ssh."""
        launch = str(mpiexec.MPIEXEC), "-launcher", "ssh", "-launcher-exec", str(self.wrapper), "-disable-hostname-propagation"
        return self.inside(0, *launch, "-hosts", ",".join(ADDRESSES), "-ppn", "1", "-n", str(ranks), *command)

    def start(self, ranks: int, *command: Any, folders: tuple[Path, ...] = (), **how: Any) -> subprocess.Popen:
        """``python COMMAND`` on so many ranks, on the hosts in turn; as ``mpiexec.start`` on one host."""
        words = self.mpiexec(ranks, sys.executable, *map(str, command))
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(words, **pipes, env=mpiexec.environment(*folders), start_new_session=True, **how)

    def run(self, ranks: int, *command: Any, timeout: float = 120, **how: Any) -> subprocess.CompletedProcess:
        """Wait for its end; if it does not come, all ranks are killed, and it raises."""
        return mpiexec.finish(self.start(ranks, *command, **how), timeout)

    def carried(self) -> int:
        """Bytes that the link has carried so far, in both directions."""
        told = self.inside(0, "cat", *(f"/sys/class/net/{DEVICE}/statistics/{way}_bytes" for way in ("rx", "tx")))
        return sum(map(int, subprocess.run(told, capture_output=True, text=True, check=True).stdout.split()))

    def ping(self, count: int = 5) -> list[float]:
        """Seconds that one byte takes to the other host and back, by UDP, so many times."""
        answers = [sys.executable, __file__, "--echo", ADDRESSES[1]]
        with subprocess.Popen(self.inside(1, *answers), stdout=subprocess.PIPE, text=True) as echo:
            assert echo.stdout is not None
            port = echo.stdout.readline().strip()
            asks = [sys.executable, __file__, "--ask", ADDRESSES[1], port, str(count)]
            told = subprocess.run(self.inside(0, *asks), capture_output=True, text=True, check=True, timeout=60)
        return [float(seconds) for seconds in told.stdout.split()]


@contextlib.contextmanager
def two_hosts(delay: float = 0.0) -> Iterator[Hosts]:
    """Two hosts, joined by a link that takes ``delay`` seconds each way; all is taken down again at the end.

    Raises RuntimeError where the machine cannot do it; ``why_not`` tells before.
    """
    _clear_leftovers()
    rig = f"{_NAME}-{os.getpid()}-{next(_rigs)}"
    first, second = namespaces = f"{rig}-a", f"{rig}-b"
    with contextlib.ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix=f"{_NAME}-")))
        for name in namespaces:
            _do("ip", "netns", "add", name)
            undo.callback(_take_down, name)
        link = _join(namespaces, delay, undo)
        for name, address in zip(namespaces, ADDRESSES, strict=True):
            _do("ip", "-n", name, "link", "set", "lo", "up")
            _do("ip", "-n", name, "addr", "add", f"{address}/24", "dev", DEVICE)
            _do("ip", "-n", name, "link", "set", DEVICE, "up", "mtu", str(MTU))
        _wait_for_carrier(namespaces)
        yield Hosts(namespaces, _wrapper(folder, first, second), link, delay)


# ----- how the hosts are made


def _do(*command: str) -> None:
    error = _try(*command)
    if error:
        raise RuntimeError(f"{' '.join(command)}: {error}")


def _try(*command: str) -> str | None:
    """What went wrong, or None."""
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stderr.strip() or f"status {done.returncode}") if done.returncode else None


def _join(namespaces: tuple[str, str], delay: float, undo: contextlib.ExitStack) -> str:
    """Put an eth0 into each host, such that what goes into one comes out of the other; what does it, in words."""
    first, second = namespaces
    _do("ip", "-n", first, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", second)
    if not delay:
        return "a veth pair"
    if shutil.which("tc") and not any(_netem(name, delay) for name in namespaces):
        return "a veth pair with netem"
    _do("ip", "-n", first, "link", "del", DEVICE)
    taps = [f"{_NAME}{os.getpid()}{end}" for end in "ab"]  # until they are eth0, each in its host
    relay = subprocess.Popen([sys.executable, __file__, "--relay", *taps, str(delay)], stdout=subprocess.PIPE, text=True)
    undo.callback(relay.communicate)
    undo.callback(relay.kill)
    assert relay.stdout is not None
    if relay.stdout.readline().strip() != "ready":
        raise RuntimeError("the relay between two tap devices did not start")
    for name, tap in zip(namespaces, taps, strict=True):
        _do("ip", "link", "set", tap, "netns", name)
        _do("ip", "-n", name, "link", "set", tap, "name", DEVICE)
    return "two tap devices and a relay"


def _wait_for_carrier(namespaces: Sequence[str]) -> None:
    """The kernel tells devices of their cable up to a second after it was plugged in, and MPI takes no device without one."""
    for name in namespaces:
        until = time.monotonic() + 10
        while (
            "LOWER_UP" not in subprocess.run(["ip", "-n", name, "link", "show", DEVICE], capture_output=True, text=True).stdout
        ):
            if time.monotonic() > until:
                raise RuntimeError(f"{DEVICE} of {name} got no carrier")
            time.sleep(0.01)


def _netem(namespace: str, delay: float, device: str = DEVICE) -> str | None:
    """Delay what leaves a device. The queue must hold all that is on its way, or it drops."""
    netem = "netem", "delay", f"{delay * 1e3:g}ms", "limit", "100000"
    return _try("ip", "netns", "exec", namespace, "tc", "qdisc", "add", "dev", device, "root", *netem)


def _wrapper(folder: Path, first: str, second: str) -> Path:
    """A program that is called as ssh is, ``wrapper [options] ADDRESS COMMAND``, and runs the command on that host."""
    path = folder / "on_host"
    path.write_text(f"""#!/bin/bash
while [[ $1 == -* ]]; do shift; done
case $1 in {ADDRESSES[0]}) ns={first};; {ADDRESSES[1]}) ns={second};; *) echo "no host $1" >&2; exit 1;; esac
shift
name="hostname ${{ns: -1}} 2> /dev/null || echo ${{ns: -1}} > /proc/sys/kernel/hostname"
exec ip netns exec $ns unshare --uts --ipc --mount bash -c "$name; mount -t tmpfs shm /dev/shm; $*"
""")
    path.chmod(0o700)
    return path


def _take_down(namespace: str) -> None:
    """Kill whatever still runs on a host, and remove it with its devices."""
    told = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    for process in told.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)
    _try("ip", "netns", "del", namespace)


def _clear_leftovers() -> None:
    """Remove the hosts of rigs whose process was itself killed."""
    for line in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.splitlines():
        name = line.split()[0]
        owner = name.split("-")[1] if name.startswith(f"{_NAME}-") else ""
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _take_down(name)


# ----- the processes of the rig itself


def relay(a: str, b: str, delay: float) -> None:
    """Two tap devices; each frame that enters one leaves the other ``delay`` seconds later. Ends with its parent."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    taps = [_tap(a), _tap(b)]
    print("ready", flush=True)
    queues: list[deque[tuple[float, bytes]]] = [deque(), deque()]  # by the tap that a frame leaves from
    while True:
        waits = [queue[0][0] for queue in queues if queue]
        readable, _, _ = select.select(taps, [], [], max(0.0, min(waits) - time.monotonic()) if waits else None)
        for tap in readable:
            with contextlib.suppress(BlockingIOError, OSError):  # a device that is not up yet
                for _ in range(64):
                    frame = os.read(tap, MTU + 18)
                    queues[1 - taps.index(tap)].append((time.monotonic() + delay, frame))
        now = time.monotonic()
        for tap, queue in zip(taps, queues, strict=True):
            while queue and queue[0][0] <= now:
                with contextlib.suppress(OSError):  # as a cable does that is not plugged in
                    os.write(tap, queue.popleft()[1])


def _tap(name: str) -> int:
    import fcntl  # on Linux alone

    tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    flags = 0x0002 | 0x1000  # IFF_TAP | IFF_NO_PI
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", name.encode(), flags))  # TUNSETIFF
    return tap


def echo(address: str) -> None:
    """Answer until the one who asks says that it is enough."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((address, 0))
        s.settimeout(30)
        print(s.getsockname()[1], flush=True)
        while True:
            what, sender = s.recvfrom(16)
            if what == b"end":
                return
            s.sendto(what, sender)


def ask(address: str, port: int, count: int) -> None:
    """Print the seconds of so many round trips; one before them finds out the other's hardware address."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.connect((address, port))
        for turn in range(count + 1):
            start = time.perf_counter()
            s.send(b"?")
            s.recv(16)
            if turn:
                print(time.perf_counter() - start)
        s.send(b"end")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--delay", type=float, default=0.0, metavar="MS", help="each way, in milliseconds (default: none)")
    p.add_argument("--ranks", type=int, default=2, metavar="N", help="(default: %(default)s)")
    p.add_argument("command", nargs="*", help="what every rank runs; without, only the link is measured")
    args = p.parse_args()
    reason = why_not(args.delay)
    if reason:
        sys.exit(reason)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hosts are taken down
    with two_hosts(args.delay / 1e3) as hosts:
        trips = sorted(hosts.ping(20))
        print(f"{hosts.link}; round trips of {trips[0] * 1e3:.2f} to {trips[-1] * 1e3:.2f} ms", file=sys.stderr)
        if not args.command:
            return 0
        before = hosts.carried()
        status = subprocess.run(hosts.mpiexec(args.ranks, *args.command)).returncode
        print(f"the link carried {(hosts.carried() - before) / 1e6:.1f} MB", file=sys.stderr)
        return status


if __name__ == "__main__":
    what, given = sys.argv[1:2], sys.argv[2:]
    if what == ["--relay"]:
        relay(given[0], given[1], float(given[2]))
    elif what == ["--echo"]:
        echo(given[0])
    elif what == ["--ask"]:
        ask(given[0], int(given[1]), int(given[2]))
    else:
        sys.exit(main())
