"""save_weights and load_weights: safetensors files that PyTorch reads, and PyTorch's here."""

import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

import tinygrad_bn as tg
from tinygrad_bn import interop, nn
from tinygrad_bn.interop import files

pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'tinygrad_bn[interop]'")


@pytest.fixture
def loader(torch):
    import safetensors.torch

    return safetensors.torch


def model():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def file_of(path, entries: dict, metadata=None):
    """A safetensors file of (dtype, shape, bytes), written by hand."""
    header, at = ({"__metadata__": metadata} if metadata else {}), 0
    for name, (dtype, shape, data) in entries.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in entries.values()))
    return path


def test_pytorchs_own_loader_reads_ours(torch, loader, tmp_path):
    ours, theirs = (
        model(),
        torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(12, 2)),
    )
    ours[1].num_batches_tracked = 9
    interop.save_weights(ours, tmp_path / "w.safetensors")
    read = loader.load_file(tmp_path / "w.safetensors")
    assert set(read) == set(theirs.state_dict()) and read["1.num_batches_tracked"].dtype == torch.int64
    theirs.load_state_dict(read)
    for key, value in ours.state_dict().items():
        assert_array_equal(theirs.state_dict()[key].numpy(), value, strict=True)
    import safetensors

    with safetensors.safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_we_read_pytorchs(torch, loader, tmp_path):
    theirs = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    theirs[1].num_batches_tracked += 4
    loader.save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    ours = model()
    assert interop.load_weights(ours, str(tmp_path / "w.safetensors")) == ([], [])
    assert ours[1].num_batches_tracked == 4
    for key, value in theirs.state_dict().items():
        assert_array_equal(ours.state_dict()[key], value.numpy(), strict=True)


def test_tied_weights_of_pytorchs_save_model(torch, loader, tmp_path):
    """It writes a shared tensor under one name, and the others into the metadata."""

    def tied(of):
        m = of.Sequential(of.Linear(3, 3), of.Linear(3, 3))
        m[1].weight = m[0].weight
        return m

    theirs, ours = tied(torch.nn), tied(nn)
    loader.save_model(theirs, str(tmp_path / "w.safetensors"))
    assert len(loader.load_file(tmp_path / "w.safetensors")) == 3
    interop.load_weights(ours, tmp_path / "w.safetensors")
    assert_array_equal(ours[1].weight.data, theirs[1].weight.detach().numpy())


VIEWS = {
    "transposed": lambda w: w.T,
    "in Fortran's order": np.asfortranarray,
    "every other column": lambda w: w[:, ::2],
    "backwards": lambda w: w[::-1],
    "one row": lambda w: w[1:2],
    "repeated": lambda w: np.broadcast_to(w[0], (5, 6)),
    "empty": lambda w: w[:0],
}


@pytest.mark.parametrize("view", VIEWS)
def test_transposed_and_sliced_parameters_round_trip(torch, loader, tmp_path, view):
    """safetensors itself writes them as they lie in memory: other values, without a word."""
    w = VIEWS[view](np.arange(24, dtype=np.float32).reshape(4, 6))

    class Holder(nn.Module):
        def __init__(self, values):
            self.weight = nn.Parameter(values)

    interop.save_weights(Holder(w), tmp_path / "w")
    assert_array_equal(loader.load_file(tmp_path / "w")["weight"].numpy(), w, strict=True)
    back = Holder(np.zeros(w.shape, np.float32))
    interop.load_weights(back, tmp_path / "w")
    assert_array_equal(back.weight.data, w, strict=True)


@pytest.mark.parametrize("view", VIEWS)
def test_the_file_holds_values_however_they_lie_in_memory(tmp_path, view):
    """Whoever calls: a state dict's copies lie in order anyway."""
    w = VIEWS[view](np.arange(24, dtype=np.float32).reshape(4, 6))
    (tmp_path / "w").write_bytes(files.packed("test", {"w": w, "zero": np.array(3.0)}, {}))
    arrays, metadata = files.read("test", tmp_path / "w")
    assert_array_equal(arrays["w"], w, strict=True)
    assert_array_equal(arrays["zero"], np.array(3.0), strict=True)
    assert metadata == {}


@given(
    hnp.arrays(
        st.sampled_from(["float16", "float32", "float64"]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0),
        elements=st.floats(width=16),
    ),
    st.text(st.characters(exclude_categories=["Cs", "Nd"], exclude_characters="."), min_size=1, max_size=5),
    st.booleans(),
)
def test_any_array_under_any_name_round_trips(tmp_path_factory, array, name, turned):
    holder = nn.Module()
    setattr(holder, f"p{name}", nn.Parameter(array.T if turned else array))
    path = tmp_path_factory.mktemp("any") / "w"
    interop.save_weights(holder, path)
    before = holder.state_dict()[f"p{name}"]
    getattr(holder, f"p{name}").data = np.zeros_like(before)
    interop.load_weights(holder, path)
    after = getattr(holder, f"p{name}").data
    assert after.dtype == before.dtype and after.shape == before.shape and after.tobytes() == before.tobytes()


def test_every_dtype_of_the_format(tmp_path):
    known = {
        "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "u2", "I16": "i2", "U32": "u4", "I32": "i4", "U64": "u8", "I64": "i8",
        "F16": "f2", "F32": "f4", "F64": "f8",
    }  # fmt: skip
    for name, code in known.items():
        layer = nn.Linear(3, 1, bias=False).double()
        interop.load_weights(layer, file_of(tmp_path / "w", {"weight": (name, (1, 3), np.array([0, 1, 1], code).tobytes())}))
        assert layer.weight.tolist() == [[0, 1, 1]], name
    values = np.array([[1.5, -2.0, 3.140625]], np.float32)
    upper = values.view(np.uint16)[:, 1::2].tobytes()
    interop.load_weights(layer, file_of(tmp_path / "w", {"weight": ("BF16", (1, 3), upper)}))
    assert_array_equal(layer.weight.data, values)
    for name, size in (("F8_E4M3", 3), ("C64", 24)):
        with pytest.raises(ValueError, match=f"got: weight of dtype {name}; expected one of BOOL, "):
            interop.load_weights(layer, file_of(tmp_path / "w", {"weight": (name, (1, 3), bytes(size))}))


def test_values_take_the_models_dtype_and_device(tmp_path, device):
    source, target = nn.Linear(3, 2).double(), nn.Linear(3, 2).to(device.name)
    interop.save_weights(source, tmp_path / "w")
    interop.load_weights(target, tmp_path / "w")
    assert target.weight.device == device.name and target.weight.dtype == "float32"
    assert_array_equal(device.numpy(target.weight), source.weight.data.astype("f"))
    interop.save_weights(target, tmp_path / "w")
    interop.load_weights(source, tmp_path / "w")
    assert_array_equal(source.weight.data.astype("f"), device.numpy(target.weight))


def test_what_does_not_fit_changes_nothing(tmp_path):
    interop.save_weights(model(), tmp_path / "w")
    other = nn.Linear(3, 2)
    before = other.weight.data.copy()
    with pytest.raises(ValueError, match="load_state_dict of Linear: missing weight, bias; unexpected .*0.weight"):
        interop.load_weights(other, tmp_path / "w")
    keys = interop.load_weights(other, tmp_path / "w", strict=False)
    assert keys.missing == ["weight", "bias"] and "0.weight" in keys.unexpected
    assert_array_equal(other.weight.data, before)


DAMAGED = {
    "empty": lambda data: b"",
    "short": lambda data: data[:-1],
    "long": lambda data: data + b"x",
    "a header beyond the end": lambda data: struct.pack("<Q", 1 << 40) + data[8:],
    "no JSON": lambda data: data[:8] + b"[" + data[9:],
    "another format": lambda data: b"PK\x03\x04" + data,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_a_value_error_that_names_it(tmp_path, damage):
    interop.save_weights(model(), tmp_path / "w")
    (tmp_path / "w").write_bytes(DAMAGED[damage]((tmp_path / "w").read_bytes()))
    with pytest.raises(ValueError, match="interop.load_weights expected an intact safetensors file .*w, got: "):
        interop.load_weights(model(), tmp_path / "w")


def test_missing_files_and_folders_are_os_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        interop.load_weights(model(), tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        interop.load_weights(model(), tmp_path)
    with pytest.raises(FileNotFoundError):
        interop.save_weights(model(), tmp_path / "no folder" / "w")


def test_an_error_names_the_file_that_was_to_be(tmp_path):
    for path in (tmp_path / "no folder" / "w", tmp_path):
        with pytest.raises(OSError) as error:
            interop.save_weights(model(), path)
        assert error.value.filename == str(path) and files.TEMPORARY not in str(error.value)
    assert not list(tmp_path.iterdir())


class Holder(nn.Module):
    def __init__(self, name, array):
        setattr(self, name, nn.Buffer(array))


def test_what_a_file_could_not_give_back_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="interop.save_weights expected no tensor of the name '__metadata__'"):
        interop.save_weights(Holder("__metadata__", np.ones(2)), tmp_path / "w")
    if np.dtype(np.longdouble) != np.float64:
        with pytest.raises(TypeError, match="interop.save_weights expected x of a dtype that safetensors has, got "):
            interop.save_weights(Holder("x", np.ones(2, np.longdouble)), tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_wrong_arguments(tmp_path):
    for name in ("save_weights", "load_weights"):
        with pytest.raises(TypeError, match=f"interop.{name} expected a Module, got dict"):
            getattr(interop, name)({}, tmp_path / "w")
        with pytest.raises(TypeError, match=f"interop.{name} expected a path, got int"):
            getattr(interop, name)(model(), 3)
    assert not list(tmp_path.iterdir())


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for name in ("save_weights", "load_weights"):
        with pytest.raises(RuntimeError, match=rf"interop.{name} needs safetensors: pip install 'tinygrad_bn\[interop\]'"):
            getattr(interop, name)(model(), tmp_path / "w")


def test_a_new_file_replaces_the_old_one_whole(tmp_path, monkeypatch):
    path = tmp_path / "w"
    interop.save_weights(model(), path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        interop.save_weights(model(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    interop.save_weights(model(), path)
    assert path.read_bytes() != before and list(tmp_path.iterdir()) == [path]
    if os.name == "posix":
        (tmp_path / "usual").touch()
        assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode  # as readable as any other new file


def test_loading_needs_no_more_memory_than_three_files(tmp_path):
    import tracemalloc

    big = nn.Linear(1000, 500, bias=False)
    interop.save_weights(big, tmp_path / "w")
    tracemalloc.start()
    try:
        interop.load_weights(big, tmp_path / "w")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3.1 * (tmp_path / "w").stat().st_size


def test_importing_the_package_imports_no_interop():
    code = (
        "import sys, tinygrad_bn as tg; "
        "print([m for m in sys.modules if m.startswith(('tinygrad_bn.interop', 'safetensors', 'onnx'))]); "
        "tg.interop.save_weights; print('safetensors' in sys.modules, 'torch' in sys.modules, 'interop' in dir(tg))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "False False True"]


def test_weights_hold_nothing_that_runs(tmp_path):
    """A pickle is refused as any other damage, and not opened."""
    import pickle

    class Trap:
        def __reduce__(self):
            return (print, ("opened",))

    (tmp_path / "w").write_bytes(pickle.dumps({"weight": Trap()}))
    with pytest.raises(ValueError, match="intact safetensors file"):
        interop.load_weights(tg.nn.Linear(2, 2), tmp_path / "w")
