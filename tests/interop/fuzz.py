"""Damage files in many ways, and load them: each gives a result or a ValueError, and takes no more memory than it warrants.

    nice python tests/interop/fuzz.py --count 100000

The files are of weights (safetensors), checkpoints, and images (idx, also gzipped), a third each. Damage is bytes changed, cut
out, moved and repeated; numbers in the headers replaced by extreme ones; and the JSON of a header or a manifest changed so that
all lengths and hashes are right again, which comes through to the checks behind. What is refused must have changed nothing. The
suite does the same with Hypothesis, a few times.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import re
import resource
import struct
import sys
import tempfile
import tracemalloc
import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import tinygrad_bn as tg
from tinygrad_bn import interop

KINDS = "weights", "checkpoint", "idx"
NUMBERS = [0, 1, -1, 2, 7, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**400]
JUNK = [None, True, False, "", "F32", "I64", "BF16", "F8_E4M3", "C64", "\ud800", "-1", 0.5, -0.0, 1e308, [], {}, [[]], [0],
        [-1], [2**62, 4], [0, 2**62], [[0, 0]], {"": {}}, {"state": {}}, [{"params": [0]}]]  # fmt: skip


# ----- what is damaged


def parts() -> tuple[Any, ...]:
    tg.manual_seed(0)
    model = tg.nn.Sequential(tg.nn.Linear(3, 4), tg.nn.BatchNorm1d(4), tg.nn.Linear(4, 2))
    optimizer = tg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = tg.optim.StepLR(optimizer, 3)
    x, y = np.ones((10, 3), np.float32), np.zeros(10, np.int64)
    return model, optimizer, schedule, tg.datasets.batches(x, y, 5, shuffle=True)


def idx(array: np.ndarray) -> bytes:
    code = {"uint8": 8, "int16": 11, "float64": 14}[array.dtype.name]
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, code, array.ndim]) + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


@cache
def originals() -> list[tuple[str, bytes]]:
    """(kind, content) of the files that are damaged."""
    found: list[tuple[str, bytes]] = []
    model, optimizer, schedule, batches = parts()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        interop.save_weights(model, folder / "weights")
        found.append(("weights", (folder / "weights").read_bytes()))
        for x, y in batches:
            tg.cross_entropy(model(tg.tensor(x + np.arange(5, dtype="f")[:, None])), y).backward()
            optimizer.step()
            schedule.step()
        found.append(("checkpoint", interop.Checkpoint(folder).save(2, *parts(), extra={"losses": [1.5]}).read_bytes()))
        (folder / "trained").mkdir()
        saved = interop.Checkpoint(folder / "trained").save(2, model, optimizer, schedule, batches)
        found.append(("checkpoint", saved.read_bytes()))
    half = {
        name: value.astype(np.float32).view(np.uint16).ravel()[1::2] for name, value in model.state_dict().items() if value.ndim
    }
    found.append(("weights", with_header(
        {k: {"dtype": "BF16", "shape": list(model.state_dict()[k].shape), "data_offsets": [0, 2 * v.size]}
         for k, v in list(half.items())[:1]}, next(iter(half.values())).tobytes()
    )))  # fmt: skip
    images = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    for array in (images, images.astype(np.int16), images.astype(np.float64)):
        found += [("idx", idx(array)), ("idx", gzip.compress(idx(array), mtime=0))]
    return found


def with_header(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode(errors="surrogatepass")
    return struct.pack("<Q", len(text)) + text + rest


# ----- damage


def some_bytes(draw: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        if not data:
            break
        near = draw.choice([16, 300, len(data)])
        at = draw.randrange(min(near, len(data)))
        length = draw.choice([1, 1, 4, 8, 40])
        what = draw.randrange(7)
        if what == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            data[at] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x7B, 0x7D, 0x5B])
        elif what == 2:
            del data[at : at + length]
        elif what == 3:
            data[at:at] = data[at : at + length]
        elif what == 4:
            del data[at:]
        elif what == 5:
            data += bytes(draw.randrange(256) for _ in range(length))
        else:
            other = draw.randrange(len(data))
            data[at : at + length] = data[other : other + length]
    return bytes(data)


def a_number(draw: random.Random, content: bytes) -> bytes:
    """An extreme number: in the first bytes, or for one that stands in the header as text."""
    if draw.random() < 0.3:
        at, form = draw.choice([(0, "<Q"), (4, ">I"), (8, ">I"), (2, ">H")])
        return (
            content[:at]
            + struct.pack(form, draw.choice(NUMBERS) % 2 ** (8 * struct.calcsize(form)))
            + content[at + struct.calcsize(form) :]
        )
    places = list(re.finditer(rb"\d+", content[:4000]))
    if not places:
        return some_bytes(draw, content)
    place = draw.choice(places)
    new = str(draw.choice(NUMBERS)).encode()
    changed = content[: place.start()] + new + content[place.end() :]
    length = int.from_bytes(content[:8], "little") + len(new) - len(place[0])
    return struct.pack("<Q", length % 2**64) + changed[8:] if draw.random() < 0.7 else changed


def somewhere(draw: random.Random, tree: Any) -> Any:
    """The tree with one value replaced, left out, or moved to another name."""
    if isinstance(tree, dict) and tree and draw.random() < 0.9:
        name = draw.choice(sorted(tree, key=repr))
        rest = {k: v for k, v in tree.items() if k != name}
        what = draw.random()
        if what < 0.1:
            return rest
        if what < 0.2:
            return {**rest, draw.choice(["x", "", "optimizer.9.momentum_buffer", "0.weight", "__metadata__"]): tree[name]}
        return {**tree, name: somewhere(draw, tree[name])}
    if isinstance(tree, list) and tree and draw.random() < 0.8:
        at = draw.randrange(len(tree))
        return [*tree[:at], somewhere(draw, tree[at]), *tree[at + 1 :]]
    if draw.random() < 0.02:
        deep: Any = []
        for _ in range(draw.choice([100, 900])):
            deep = [deep]
        return deep
    return draw.choice(JUNK + NUMBERS)


def the_json(draw: random.Random, content: bytes) -> bytes:
    """The header changed in one place, its length made right."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return with_header(somewhere(draw, header), content[8 + length :])


def the_manifest(draw: random.Random, content: bytes) -> bytes:
    """A checkpoint's manifest changed in one or two places, its hash made right."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["manifest"])
    for _ in range(draw.choice([1, 1, 2])):
        manifest = somewhere(draw, manifest)
    text = json.dumps(manifest)
    header["__metadata__"] |= {"manifest": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return with_header(header, content[8 + length :])


def damaged(draw: random.Random, kind: str, content: bytes) -> bytes:
    ways = {
        "weights": [some_bytes, a_number, the_json, the_json],
        "checkpoint": [some_bytes, a_number, the_json, the_manifest, the_manifest],
        "idx": [some_bytes, a_number],
    }[kind]
    way = draw.choice(ways)
    if content[:2] == b"\x1f\x8b" and draw.random() < 0.5:  # damage within intact gzip
        return gzip.compress(way(draw, gzip.decompress(content)), mtime=0)
    return way(draw, content)


# ----- what must hold


def most_memory() -> int:
    """The most that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Trial:
    """The objects that files are loaded into, and a folder for the file."""

    def __init__(self, folder: Path):
        self.folder, self.parts = folder, parts()
        tracemalloc.start()

    def state(self) -> str:
        model, optimizer, schedule, batches = self.parts
        arrays = [v.tobytes() for v in model.state_dict().values()]
        arrays += [v.tobytes() for s in optimizer.state_dict()["state"].values() for v in s.values()]
        rest = schedule.state_dict(), batches.state_dict(), tg.get_rng_state(), optimizer.state_dict()["param_groups"]
        return repr((arrays, rest))

    def attempt(self, kind: str, content: bytes) -> str:
        """Load it. Returns what came of it; raises AssertionError for what must not happen."""
        name = "step-00000002.safetensors" if kind == "checkpoint" else "file"
        (self.folder / name).write_bytes(content)
        before = self.state()
        tracemalloc.reset_peak()
        most = most_memory()
        start = tracemalloc.get_traced_memory()[0]
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                result = self.load(kind, self.folder / name)
            except ValueError:
                result = "refused"
        taken = tracemalloc.get_traced_memory()[1] - start
        if any(not str(w.message).startswith("Checkpoint.load_latest skips a damaged") for w in heard):
            raise AssertionError(f"warned {[str(w.message) for w in heard]}")
        allowed = 300_000 + 12 * len(content) * (1100 if content[:2] == b"\x1f\x8b" else 1)  # gzip may unpack to 1032 times
        if taken > allowed:
            raise AssertionError(f"took {taken} bytes for a file of {len(content)}")
        if most_memory() - most > 32 << 20:  # what tracemalloc does not see
            raise AssertionError(f"the process grew by {most_memory() - most} bytes for a file of {len(content)}")
        if kind != "idx":
            if result != "loaded" and self.state() != before:
                raise AssertionError("changed something, and refused")
            if result == "loaded":
                self.parts = parts()
        return result

    def load(self, kind: str, path: Path) -> str:
        if kind == "idx":
            return "loaded" if isinstance(tg.datasets.read_idx(path), np.ndarray) else "nothing"
        if kind == "weights":
            return "loaded" if interop.load_weights(self.parts[0], path, strict=False) is not None else "nothing"
        return "loaded" if interop.Checkpoint(self.folder).load_latest(*self.parts) else "skipped"


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--count", type=int, default=100_000)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        trial = Trial(Path(folder))
        files = originals()
        for kind, content in files:
            if trial.attempt(kind, content) != "loaded":
                raise AssertionError(f"the {kind} file is refused before it is damaged")
        most = most_memory()
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 28), -1))  # also for what libraries allocate themselves
        for i in range(a.count):
            draw = random.Random(f"{a.seed}, {i}")
            kind = KINDS[i % len(KINDS)]
            content = damaged(draw, kind, draw.choice([whole for k, whole in files if k == kind]))
            try:
                counts[kind, trial.attempt(kind, content)] += 1
            except BaseException as error:
                Path(f"fuzz-{a.seed}-{i}.{kind}").write_bytes(content)
                print(f"file {i} of seed {a.seed} ({kind}): {type(error).__name__}: {error}", flush=True)
                raise
    grown = (most_memory() - most) >> 10
    print(f"seed {a.seed}: {sum(counts.values())} files, a result or a ValueError each; the process grew by {grown} KiB")
    for (kind, what), count in sorted(counts.items()):
        print(f"{count:8} {kind} {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
