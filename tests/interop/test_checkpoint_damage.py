"""Checkpoints that were damaged, disks that are full, processes that are killed: nothing is lost, and all of it is said."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
from small_run import bits, make, names, train

from tinygrad_bn import interop, nn

pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'tinygrad_bn[interop]'")
ROOT = Path(__file__).resolve().parents[2]

# ----- damage


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def with_header(path: Path, change) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


DAMAGE = {
    "a flipped bit": (lambda p: flip(p, -3), r"optimizer\.\S+ as \{.*sha256.*\}, where the manifest says"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "Error while deserializing: incomplete metadata"),
    "empty": (lambda p: p.write_bytes(b""), "Error while deserializing: header too small"),
    "another state": (
        lambda p: with_header(p, lambda h: h["__metadata__"].update(manifest=h["__metadata__"]["manifest"][:-1])),
        "a manifest with another SHA-256 than its own",
    ),
    "the manifest missing": (lambda p: with_header(p, lambda h: h["__metadata__"].pop("manifest")), "a manifest with another"),
    "weights only": (lambda p: interop.save_weights(nn.Linear(2, 2), p), "format 'pt'"),
    "another step": (lambda p: shutil.copy(p.with_name("step-00000004.safetensors"), p), "step 4; expected 5, by its name"),
    "a reshaped tensor": (
        lambda p: with_header(p, lambda h: h["model.0.weight"].update(shape=[6, 8])),
        r"model.0.weight as .*'shape': \[6, 8\].*where the manifest says .*\[8, 6\]",
    ),
    "a renamed tensor": (
        lambda p: with_header(p, lambda h: h.update({"model.x": h.pop("model.0.weight")})),
        "other tensors than the manifest says: model.0.weight, model.x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_skipped_with_a_warning_that_says_why(tmp_path, what):
    """And the run that so goes on from an older one keeps what it saves, and the damaged file for whoever wants to look."""
    damage, message = DAMAGE[what]
    stayed = make()
    train(stayed, 0, 7)
    train(make(), 0, 5, interop.Checkpoint(tmp_path))
    damage(tmp_path / "step-00000005.safetensors")
    parts, checkpoint = make(), interop.Checkpoint(tmp_path, keep=1)
    with pytest.warns(RuntimeWarning, match=rf"skips a damaged checkpoint: .*step-00000005.*[:s] {message}") as heard:
        assert checkpoint.load_latest(*parts).step == 4
    assert len(heard) == 1 and heard[0].filename == __file__
    train(parts, 4, 7, checkpoint)
    assert bits(parts) == bits(stayed)
    assert names(tmp_path) == ["step-00000005.damaged", "step-00000007.safetensors"]


def signed(change):
    """A change of the manifest, with its hash made right: as if a bug had written it."""

    def apply(header):
        manifest = json.loads(header["__metadata__"]["manifest"])
        change(manifest)
        text = json.dumps(manifest)
        header["__metadata__"].update(manifest=text, sha256=hashlib.sha256(text.encode()).hexdigest())

    return apply


MANIFESTS = {
    "no step": (lambda m: m.pop("step"), "a manifest with other entries"),
    "another entry": (lambda m: m.update(x=1), "a manifest with other entries"),
    "a step that is no number": (lambda m: m.update(step="5"), "step as str in the manifest"),
    "a step that is True": (lambda m: m.update(step=True), "step as bool in the manifest"),
    "a schedule that is no dict": (lambda m: m.update(schedule=[]), "schedule as list in the manifest"),
    "batches that are no dict": (lambda m: m.update(batches=3), "batches as int in the manifest"),
    "no random state": (lambda m: m.update(random=None), "random as NoneType in the manifest"),
    "groups that are no list": (lambda m: m["optimizer"].update(param_groups={}), "param_groups as dict in the manifest"),
    "a state that is no dict": (lambda m: m["optimizer"]["state"].update({"0": 1}), "0 as int in the manifest"),
    "a parameter without a number": (lambda m: m["optimizer"]["state"].update({"x": {}}), "invalid literal for int"),
    "moments of nobody": (lambda m: m["optimizer"]["state"].pop("6"), "optimizer.6.exp_avg, which belongs to no parameter"),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_that_says_other_things_is_damage_too(tmp_path, what):
    change, message = MANIFESTS[what]
    parts = make()
    train(parts, 0, 5, interop.Checkpoint(tmp_path))
    with_header(tmp_path / "step-00000005.safetensors", signed(change))
    with pytest.warns(RuntimeWarning, match=rf"skips a damaged checkpoint: .*step-00000005.* got: {message}"):
        assert interop.Checkpoint(tmp_path).load_latest(*parts).step == 4


def test_with_nothing_whole_the_run_begins_anew(tmp_path):
    train(make(), 0, 3, interop.Checkpoint(tmp_path))
    for path in tmp_path.iterdir():
        flip(path, -1)
    parts = make()
    before, checkpoint = bits(parts), interop.Checkpoint(tmp_path)
    with pytest.warns(RuntimeWarning) as heard:
        assert checkpoint.load_latest(*parts) is None
    assert len(heard) == 3 and bits(parts) == before
    checkpoint.save(1, *parts)
    damaged = [f"step-0000000{step}.damaged" for step in (1, 2, 3)]
    assert names(tmp_path) == sorted([*damaged, "step-00000001.safetensors"])


def test_every_tensor_has_its_sha256_in_the_metadata(tmp_path):
    import safetensors

    train(make(), 0, 2, interop.Checkpoint(tmp_path))
    with safetensors.safe_open(tmp_path / "step-00000002.safetensors", "np") as file:
        manifest = json.loads(file.metadata()["manifest"])
        assert set(manifest["model"]) == set(file.keys()) and "optimizer.0.exp_avg" in file.keys()  # noqa: SIM118
        for name in file.keys():  # noqa: SIM118
            assert manifest["model"][name]["sha256"] == hashlib.sha256(file.get_tensor(name).tobytes()).hexdigest()


# ----- a full disk, and a crash


def check_that_the_old_one_is_whole(folder, parts, message):
    assert names(folder)[-1] == "step-00000002.safetensors" and not list(folder.glob(".*")), "nothing half-written is left"
    assert re.search(
        r"Checkpoint.save could not write the checkpoint of step 3 \((No space left on device|File too large)\); "
        "that of step 2 is whole", message
    )  # fmt: skip
    fresh = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert interop.Checkpoint(folder).load_latest(*fresh).step == 2
    assert bits(fresh) == bits(parts)


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path):
    """A file system of 32 kB, in which there is room for two checkpoints."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        checkpoint, parts = interop.Checkpoint(tmp_path), make()
        train(parts, 0, 2, checkpoint)
        free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
        assert free < (tmp_path / "step-00000002.safetensors").stat().st_size
        with pytest.raises(OSError) as error:
            checkpoint.save(3, *parts)
        assert error.value.errno == errno.ENOSPC
        check_that_the_old_one_is_whole(tmp_path, parts, str(error.value))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.skipif(os.name != "posix", reason="limits of the file size are POSIX's")
def test_a_limit_of_the_file_size_leaves_the_old_checkpoint_whole(tmp_path):
    program = """
        import resource, sys
        sys.path[:0] = sys.argv[2:]
        from small_run import make, train
        from tinygrad_bn import interop
        checkpoint, parts = interop.Checkpoint(sys.argv[1]), make()
        train(parts, 0, 2, checkpoint)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        try:
            checkpoint.save(3, *parts)
        except OSError as error:
            print(type(error).__name__, error)
    """
    folders = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), *folders]
    done = subprocess.run(command, capture_output=True, text=True)
    parts = make()
    train(parts, 0, 2)
    assert done.returncode == 0, done.stderr
    check_that_the_old_one_is_whole(tmp_path, parts, done.stdout)


def test_file_and_folder_reach_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    """The file before it gets its name, and then the name: a machine that loses its power has the one or the other."""
    events = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(handle):
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        real_sync(handle)

    def replace(a, b):
        events.append(f"rename {Path(b).name}")
        real_replace(a, b)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    interop.Checkpoint(tmp_path / "new").save(1, *make())
    assert events == ["folder", "file", "rename step-00000001.safetensors", "folder"]  # the first holds the new folder's name


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks")
def test_kills_at_random_moments_lose_nothing():
    """200 of them: python tests/interop/kills.py"""
    script = Path(__file__).with_name("kills.py")
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "6", "--seed", os.environ.get("TEST_SEED", "0")],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"6 kills\n.*\n.*\n +[1-9]\d* runs that ended", done.stdout)
