"""Checkpoint: a run that goes on has the bits of one that never stopped; what does not fit is refused."""

import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from small_run import OPTIMIZERS, SCHEDULES, STEPS, bits, make, names, train

import tinygrad_bn as tg
from tinygrad_bn import interop, nn, optim
from tinygrad_bn.datasets import batches
from tinygrad_bn.interop import files

pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'tinygrad_bn[interop]'")

# ----- going on


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resuming_is_bit_identical_to_never_having_stopped(tmp_path, optimizer, schedule):
    stayed = make(optimizer, schedule)
    losses = train(stayed, 0, STEPS)
    expected = bits(stayed)
    train(make(optimizer, schedule), 0, 13, interop.Checkpoint(tmp_path))
    parts = make(optimizer, schedule)
    tg.manual_seed(77)  # another process would begin anywhere
    loaded = interop.Checkpoint(tmp_path).load_latest(*parts)
    assert (loaded.step, loaded.path) == (13, tmp_path / "step-00000013.safetensors")
    assert loaded.extra == {"losses": losses[:13]}
    assert train(parts, 13, STEPS) == losses[13:]
    assert bits(parts) == expected


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes_and_devices(tmp_path, device, dtype):
    stayed = make("momentum", dtype=dtype, device=device.name)
    train(stayed, 0, 9)
    expected = bits(stayed)
    train(make("momentum", dtype=dtype, device=device.name), 0, 4, interop.Checkpoint(tmp_path))
    parts = make("momentum", dtype=dtype, device=device.name)
    assert interop.Checkpoint(tmp_path).load_latest(*parts).step == 4
    train(parts, 4, 9)
    assert bits(parts) == expected


def test_resuming_at_the_end_of_an_epoch_and_again_and_again(tmp_path):
    stayed = make()
    train(stayed, 0, STEPS)
    expected, step = bits(stayed), 0
    for until in (9, 10, 18, STEPS):
        parts, checkpoint = make(), interop.Checkpoint(tmp_path)
        loaded = checkpoint.load_latest(*parts)
        assert (loaded.step if loaded else 0) == step
        train(parts, step, until, checkpoint)
        step = until
    assert bits(parts) == expected


def test_a_parameter_without_a_gradient_has_no_state(tmp_path):
    parts = make("momentum")
    parts[0][5].requires_grad_(False)
    train(parts, 0, 3, interop.Checkpoint(tmp_path))
    fresh = make("momentum")
    interop.Checkpoint(tmp_path).load_latest(*fresh)
    assert bits(fresh) == bits(parts) and len(fresh[1].state_dict()["state"]) < len(list(fresh[0].parameters()))


def test_a_model_alone_and_a_part_of_a_checkpoint(tmp_path):
    train(make(), 0, 2, interop.Checkpoint(tmp_path / "whole"))
    model, *_ = make()
    assert interop.Checkpoint(tmp_path / "whole").load_latest(model).step == 2
    interop.Checkpoint(tmp_path / "alone").save(5, model)
    other = make()
    assert interop.Checkpoint(tmp_path / "alone").load_latest(other[0]) == (
        5,
        None,
        tmp_path / "alone" / "step-00000005.safetensors",
    )
    assert_array_equal(other[0][0].weight.data, model[0].weight.data)
    for part, name in enumerate(["optimizer", "schedule", "batches"]):
        wanted = [None, None, None]
        wanted[part] = other[part + 1]
        with pytest.raises(ValueError, match=f"step-00000005.safetensors was saved without {name}"):
            interop.Checkpoint(tmp_path / "alone").load_latest(other[0], *wanted)


def test_a_learning_rate_that_was_set_by_hand_stays_so(tmp_path):
    """Though the schedule would have another: it sets its own with its next step."""
    parts = make("momentum", "warm-up")
    train(parts, 0, 3)
    parts[1].param_groups[0]["lr"] = 0.123
    interop.Checkpoint(tmp_path).save(3, *parts)
    fresh = make("momentum", "warm-up")
    interop.Checkpoint(tmp_path).load_latest(*fresh)
    assert fresh[1].param_groups[0]["lr"] == 0.123 and bits(fresh) == bits(parts)


def test_options_that_are_numpys_numbers(tmp_path):
    parts = make()
    parts[1].param_groups[0]["lr"] = np.float32(0.1)
    interop.Checkpoint(tmp_path).save(1, *parts, extra=[np.int64(3), np.float64(0.1), None, float("inf")])
    loaded = interop.Checkpoint(tmp_path).load_latest(*parts[:2])
    assert parts[1].param_groups[0]["lr"] == float(np.float32(0.1)) and loaded.extra == [3, 0.1, None, float("inf")]


def test_extra_comes_back_as_json_has_it(tmp_path):
    path = interop.Checkpoint(tmp_path).save(1, make()[0], extra={"pair": (1, 2), 3: None})
    assert interop.Checkpoint(tmp_path).load_latest(make()[0]) == (1, {"pair": [1, 2], "3": None}, path)


@pytest.mark.parametrize("order", "<>")
def test_a_buffer_in_the_byte_order_of_another_machine(tmp_path, order):
    """Such as a mean that came from an old file."""
    model = nn.Linear(2, 2)
    model.mean = nn.Buffer(np.array([1.5, -2.0], f"{order}f8"))
    interop.Checkpoint(tmp_path).save(1, model)
    model.mean = nn.Buffer(np.zeros(2, f"{order}f8"))
    assert interop.Checkpoint(tmp_path).load_latest(model).step == 1
    assert model.mean.data.tolist() == [1.5, -2.0] and model.mean.dtype.str == f"{order}f8"


# ----- the folder


def test_the_newest_are_kept(tmp_path):
    folder = tmp_path / "a" / "b"
    checkpoint = interop.Checkpoint(folder, keep=2)
    assert not folder.exists() and checkpoint.load_latest(make()[0]) is None
    model, *_ = make()
    for step in (0, 7, 7, 99_999_999, 123_456_789):
        assert checkpoint.save(step, model).exists()
    assert names(folder) == ["step-123456789.safetensors", "step-99999999.safetensors"]
    (folder / "step-7.safetensors").touch()  # not ours
    (folder / "step-0000000000000007.safetensors").touch()
    (folder / "notes.txt").touch()
    assert interop.Checkpoint(folder).load_latest(model).step == 123_456_789
    checkpoint.save(123_456_790, model)
    assert len(names(folder)) == 5


def test_another_runs_checkpoints_are_not_overwritten(tmp_path):
    train(make(), 0, 5, interop.Checkpoint(tmp_path))
    before = names(tmp_path)
    parts = make()
    with pytest.raises(ValueError, match="has checkpoints up to step 5 of another run, and this is step 5; load_latest"):
        interop.Checkpoint(tmp_path).save(5, *parts)
    assert names(tmp_path) == before
    checkpoint = interop.Checkpoint(tmp_path)
    checkpoint.load_latest(*parts)
    checkpoint.save(6, *parts)
    with pytest.raises(ValueError, match="expected a step of at least 6, the last one, got 4"):
        checkpoint.save(4, *parts)


@pytest.mark.parametrize("before", [0, 1])
def test_an_interrupt_just_after_the_rename_leaves_a_checkpoint_like_any_other(tmp_path, monkeypatch, before):
    checkpoint, parts = interop.Checkpoint(tmp_path), make()
    for step in range(before):
        checkpoint.save(step, *parts)

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_folder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(5, *parts)
    checkpoint.save(5, *parts)  # such as one that a program makes when it is interrupted
    assert names(tmp_path) == [*(f"step-{step:08d}.safetensors" for step in range(before)), "step-00000005.safetensors"]


def test_what_a_killed_writer_left_is_cleared(tmp_path):
    leftover = tmp_path / f".step-00000009.safetensors.abc{files.TEMPORARY}"
    leftover.write_bytes(b"half")
    checkpoint = interop.Checkpoint(tmp_path)
    assert checkpoint.load_latest(*make()) is None
    checkpoint.save(1, *make())
    assert names(tmp_path) == ["step-00000001.safetensors"]


# ----- what does not fit


def another(part: int):
    parts = list(make())
    x = np.zeros((42, 6), np.float32)
    parts[part] = {
        0: nn.Sequential(nn.Linear(6, 9, bias=False), *list(parts[0])[1:]),
        1: optim.SGD(parts[0].parameters(), lr=0.1),
        2: optim.StepLR(parts[1], 3),
        3: batches(x, x[:, 0], 6, shuffle=True, seed=3),
    }[part]
    return parts


@pytest.mark.parametrize("part", range(4), ids=["model", "optimizer", "schedule", "batches"])
def test_what_does_not_fit_raises_and_changes_nothing(tmp_path, part):
    trained = make()
    train(trained, 0, 3, interop.Checkpoint(tmp_path))
    parts = another(part)
    tg.manual_seed(8)
    before = bits(parts)
    with pytest.raises(ValueError, match="step-00000003.safetensors does not fit: ") as error:
        interop.Checkpoint(tmp_path).load_latest(*parts)
    assert bits(parts) == before, str(error.value)


def test_another_dtype_would_not_be_the_same_bits(tmp_path):
    interop.Checkpoint(tmp_path).save(1, *make())
    with pytest.raises(ValueError, match="does not fit: 0.weight expected float64, got float32"):
        interop.Checkpoint(tmp_path).load_latest(*make(dtype="float64"))


def test_wrong_arguments(tmp_path):
    model, optimizer, schedule, data = make()
    checkpoint = interop.Checkpoint(tmp_path)
    with pytest.raises(TypeError, match="interop.Checkpoint expected a path, got int"):
        interop.Checkpoint(3)
    for keep in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="interop.Checkpoint expected keep to be an int of at least 1"):
            interop.Checkpoint(tmp_path, keep)
    for step in (-1, 0.5, True, "3"):
        with pytest.raises(ValueError, match="Checkpoint.save expected step to be an int of at least 0"):
            checkpoint.save(step, model)
    unfit = [
        ((optimizer,), "model to be a Module, got Adam"),
        ((None,), "model to be a Module, got NoneType"),
        ((model, schedule), "optimizer to be a Optimizer, got CosineAnnealingLR"),
        ((model, None, optimizer), "schedule to be a Schedule, got Adam"),
        ((model, None, None, [data]), "batches to be a Batches, got list"),
    ]
    for bad, name in unfit:
        with pytest.raises(TypeError, match=f"interop.Checkpoint expected {name}"):
            checkpoint.save(1, *bad)
        with pytest.raises(TypeError, match=f"interop.Checkpoint expected {name}"):
            checkpoint.load_latest(*bad)
    for extra in ({1, 2}, np.ones(3), object(), {"a": b"bytes"}, {(1, 2): 3}):
        with pytest.raises(TypeError, match="Checkpoint.save expected extra to be what JSON can hold, got "):
            checkpoint.save(1, model, extra=extra)
    assert not names(tmp_path)


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(RuntimeError, match=r"interop.Checkpoint needs safetensors: pip install 'tinygrad_bn\[interop\]'"):
        interop.Checkpoint(tmp_path).save(1, *make())


def test_a_folder_that_is_a_file(tmp_path):
    """A run that would start anew now, and find no place for its first checkpoint later."""
    parts = make("momentum")
    (tmp_path / "runs").write_text("notes")
    with pytest.raises(NotADirectoryError, match="runs"):
        interop.Checkpoint(tmp_path / "runs").load_latest(parts[0])
