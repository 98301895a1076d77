"""batches(): every example once, an order from seed and epoch alone, and a position that can be saved."""

import gc
import itertools
import json
from typing import Any, cast

import fake_cupy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_bn.backend import upload
from tinygrad_bn.datasets import Batches, batches


def data(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that can be told apart, and labels that name them."""
    return np.arange(2 * length, dtype=np.float32).reshape(length, 2), np.arange(length)


def rows(loop):
    """The row numbers handed out, batch by batch."""
    return [y.tolist() for _, y in loop]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


settings_drawn = st.fixed_dictionaries(
    {
        "length": st.integers(1, 40),
        "batch_size": st.integers(1, 45),
        "shuffle": st.booleans(),
        "drop_last": st.booleans(),
        "seed": st.integers(0, 1 << 70),
    }
).filter(lambda s: not (s["drop_last"] and s["batch_size"] > s["length"]))


def made(drawn):
    drawn = dict(drawn)
    return batches(*data(drawn.pop("length")), **drawn)


@settings(deadline=None, max_examples=100)
@given(drawn=settings_drawn)
def test_every_example_is_in_one_batch(drawn):
    length, size = drawn["length"], drawn["batch_size"]
    loop = made(drawn)
    for _ in range(2):
        seen = []
        sizes = []
        for x, y in loop:
            np.testing.assert_array_equal(x[:, 0], 2 * y)  # x and y are of the same rows
            seen += y.tolist()
            sizes.append(len(y))
        assert len(set(seen)) == len(seen) and set(seen) <= set(range(length))
        assert len(sizes) == len(loop)
        assert all(s == size for s in sizes[:-1])
        if drawn["drop_last"]:
            assert sizes[-1] == size and length - len(seen) < size
        else:
            assert len(seen) == length
        if not drawn["shuffle"]:
            assert seen == sorted(seen)


@settings(deadline=None, max_examples=50)
@given(drawn=settings_drawn, other_size=st.integers(1, 45), epoch=st.integers(0, 9), global_seed=st.integers(0, 99))
def test_order_is_a_function_of_seed_and_epoch_alone(drawn, other_size, epoch, global_seed):
    drawn = drawn | {"drop_last": False}
    one, two = made(drawn), made(drawn | {"batch_size": other_size})
    for _ in range(epoch):
        list(one)
    np.random.seed(global_seed)
    before = np.random.get_state(legacy=False)
    two.set_epoch(epoch)
    assert one.epoch == two.epoch == epoch
    assert flat(rows(one)) == flat(rows(two))
    np.testing.assert_equal(np.random.get_state(legacy=False), before)


@settings(deadline=None, max_examples=100)
@given(drawn=settings_drawn, handed_out=st.integers(0, 60))
def test_resumes_after_the_last_batch_handed_out(drawn, handed_out):
    whole = made(drawn)
    expected = flat(rows(whole) for _ in range(handed_out // len(whole) + 3))
    first = made(drawn)
    endless = itertools.chain.from_iterable(itertools.repeat(first))
    start = rows(itertools.islice(endless, handed_out))
    second = made(drawn)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    rest = rows(second)
    assert second.epoch == handed_out // len(whole) + 1
    rest += rows(second)
    assert start + rest == expected[: handed_out + len(rest)]


def test_the_order_is_pinned():
    """A change of this order changes every published run."""
    loop = batches(*data(10), 10, shuffle=True, seed=3)
    assert rows(loop) + rows(loop) == PINNED


PINNED = [[4, 6, 1, 5, 7, 0, 3, 8, 9, 2], [9, 0, 6, 7, 5, 8, 2, 1, 4, 3]]


def test_epochs_and_seeds_differ():
    orders = [rows(b) for seed in (0, 1) for b in [batches(*data(50), 50, shuffle=True, seed=seed)] for _ in range(2)]
    assert len({tuple(order[0]) for order in orders}) == 4


def test_large_seed_is_no_other_seed_in_another_epoch():
    large, small = (batches(*data(50), 50, shuffle=True, seed=seed) for seed in (5 + (3 << 32), 5))
    small.set_epoch(3)
    assert rows(large) != rows(small)


def test_every_row_is_equally_likely_to_come_first():
    loop = batches(*data(5), 5, shuffle=True)
    counts = np.bincount([rows(loop)[0][0] for _ in range(2000)], minlength=5)
    assert counts.min() > 320 and counts.max() < 480  # 400 each, within 4.5 standard deviations


def test_without_shuffle_batches_are_views():
    x, y = data(10)
    for xb, yb in batches(x, y, 4):
        assert np.shares_memory(xb, x) and np.shares_memory(yb, y)


def test_shuffled_batches_are_copies():
    x, y = data(10)
    assert not any(np.shares_memory(xb, x) for xb, _ in batches(x, y, 4, shuffle=True))


def test_length_and_type():
    x, y = data(10)
    assert isinstance(batches(x, y, 4), Batches)
    assert [len(batches(x, y, size)) for size in (1, 4, 5, 10, 11)] == [10, 3, 2, 1, 1]
    assert [len(batches(x, y, size, drop_last=True)) for size in (1, 4, 5, 10)] == [10, 2, 2, 1]
    size: Any = np.int32(4)
    assert len(batches(x, y, size)) == 3


def test_a_loop_left_early_starts_again():
    loop = batches(*data(10), 4, shuffle=True)
    first = rows(itertools.islice(loop, 1))
    assert loop.epoch == 0 and loop.state_dict()["batch"] == 1
    again = rows(loop)
    assert again[:1] == first and len(again) == 3 and loop.epoch == 1


def test_the_last_batch_ends_the_epoch():
    loop = batches(*data(10), 4)
    for _ in zip(range(3), loop, strict=False):
        pass
    assert loop.epoch == 1 and loop.state_dict()["batch"] == 0


def test_two_loops_at_once_see_the_same_epoch():
    loop = batches(*data(10), 4, shuffle=True)
    assert all((a[1] == b[1]).all() for a, b in zip(loop, loop, strict=True))
    assert loop.epoch == 1


def test_set_epoch_to_the_same_epoch_keeps_a_resumed_place():
    loop = batches(*data(10), 4)
    loop.load_state_dict(loop.state_dict() | {"epoch": 2, "batch": 1})
    loop.set_epoch(2)
    assert rows(loop) == [[4, 5, 6, 7], [8, 9]]
    assert rows(loop)[0] == [0, 1, 2, 3] and loop.epoch == 4


def test_a_resumed_loop_left_early_starts_its_epoch_again():
    loop = batches(*data(10), 4)
    loop.load_state_dict(loop.state_dict() | {"batch": 1})
    assert rows(itertools.islice(loop, 1)) == [[4, 5, 6, 7]]
    assert rows(loop) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_set_epoch_to_another_epoch_starts_it():
    loop = batches(*data(10), 4)
    loop.load_state_dict(loop.state_dict() | {"epoch": 2, "batch": 1})
    loop.set_epoch(7)
    assert len(rows(loop)) == 3 and loop.epoch == 8


def test_state_dict_is_a_copy():
    loop = batches(*data(10), 4)
    loop.state_dict()["batch_size"] = 1
    assert loop.state_dict() == {
        "epoch": 0, "batch": 0, "examples": 10, "batch_size": 4, "shuffle": False, "drop_last": False, "seed": 0,
    }  # fmt: skip


X, Y = data(100)
BAD = {
    "lengths": ((X, Y[:99], 4), {}, ValueError, "x and y of equal length, got 100 and 99"),
    "empty": ((X[:0], Y[:0], 4), {}, ValueError, "x and y to hold at least one example, got none"),
    "list": (([1, 2], Y[:2], 1), {}, TypeError, r"x to be an array of shape \(N, ...\), got list"),
    "rank 0": ((X, np.float32(3), 1), {}, TypeError, r"y to be an array of shape \(N, ...\), got one of shape \(\)"),
    "batch_size 0": ((X, Y, 0), {}, ValueError, "batch_size to be at least 1, got 0"),
    "batch_size float": ((X, Y, 4.0), {}, TypeError, "batch_size to be an integer, got 4.0"),
    "batch_size bool": ((X, Y, True), {}, TypeError, "batch_size to be an integer, got True"),
    "seed negative": ((X, Y, 4), {"seed": -1}, ValueError, "seed to be at least 0, got -1"),
    "seed None": ((X, Y, 4), {"seed": None}, TypeError, "seed to be an integer, got None"),
    "shuffle": ((X, Y, 4), {"shuffle": 1}, TypeError, "shuffle to be True or False, got 1"),
    "drop_last": ((X, Y, 4), {"drop_last": "no"}, TypeError, "drop_last to be True or False, got 'no'"),
    "no batch": ((X, Y, 101), {"drop_last": True}, ValueError, "batch_size <= 100, .* drop_last=True, got 101"),
}


@pytest.mark.parametrize(("args", "options", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(args, options, kind, message):
    with pytest.raises(kind, match=f"batches expected {message}"):
        batches(*args, **options)


@pytest.mark.parametrize(("epoch", "kind"), [(-1, ValueError), (1.5, TypeError), (False, TypeError)])
def test_bad_epoch(epoch, kind):
    loop = batches(X, Y, 4)
    with pytest.raises(kind, match="set_epoch expected epoch to be"):
        loop.set_epoch(epoch)
    assert loop.epoch == 0


BAD_STATES = {
    "seed": ({"seed": 1}, ValueError, "seed to be 0 as in batches.., got 1"),
    "examples": ({"examples": 99}, ValueError, "examples to be 100 as in batches.., got 99"),
    "batch": ({"batch": 25}, ValueError, "batch to be less than 25, got 25"),
    "negative batch": ({"batch": -1}, ValueError, "batch to be at least 0, got -1"),
    "epoch": ({"epoch": "2"}, TypeError, "epoch to be an integer, got '2'"),
    "unknown key": ({"lr": 1}, ValueError, "the keys .* got .*'lr'"),
}


@pytest.mark.parametrize(("change", "kind", "message"), BAD_STATES.values(), ids=BAD_STATES)
def test_bad_state_changes_nothing(change, kind, message):
    loop = batches(X, Y, 4)
    before = loop.state_dict()
    with pytest.raises(kind, match=f"load_state_dict expected {message}"):
        loop.load_state_dict(before | {"epoch": 3, "batch": 2} | change)
    assert loop.state_dict() == before


def test_state_of_a_wrong_type_or_with_missing_keys():
    loop, wrong = batches(X, Y, 4), cast(Any, [])
    with pytest.raises(TypeError, match="load_state_dict expected a mapping, got list"):
        loop.load_state_dict(wrong)
    with pytest.raises(ValueError, match="load_state_dict expected the keys"):
        loop.load_state_dict({"epoch": 1, "batch": 0})


# ----- on a GPU


class Recorder:
    """Stands for CuPy's streams and events, and writes down what each stream is asked to do, in order."""

    def __init__(self, monkeypatch):
        self.log, self.events, recorder = [], [], self

        class Stream:
            def __init__(self, name="side", **kwargs):
                self.name = self.ptr = name

            def wait_event(self, event):
                recorder.log.append((self.name, "waits for", event.number))

        class Event:
            done = False

            def __init__(self, **kwargs):
                self.number = len(recorder.events)
                recorder.events.append(self)

            def record(self, stream):
                recorder.log.append((stream.name, "reaches", self.number))

        def put(array, source, stream=None):
            recorder.log.append((stream.name, "copies", source.shape))
            array._a[...] = source

        current = Stream("main")
        for name, value in {"Stream": Stream, "Event": Event, "get_current_stream": lambda: current}.items():
            monkeypatch.setattr(fake_cupy.cuda, name, value)
        monkeypatch.setattr(fake_cupy.ndarray, "set", put)


def test_batches_on_a_gpu_are_those_of_the_host(cuda_stand_in):
    x, y = data(11)
    for how in ({}, {"shuffle": True}, {"drop_last": True}):
        loop, there = batches(x, y, 4, **how), batches(x, y, 4, **how, device="cuda")
        for _ in range(2):
            for (a, b), (c, d) in zip(loop, there, strict=True):
                assert type(c) is type(d) is fake_cupy.ndarray
                np.testing.assert_array_equal(a, cuda_stand_in.numpy(c))
                np.testing.assert_array_equal(b, cuda_stand_in.numpy(d))
                assert loop.state_dict() == there.state_dict()
    on_cpu = next(iter(batches(x, y, 4, device="cpu")))
    assert type(on_cpu[0]) is np.ndarray


def test_the_next_batch_is_sent_before_this_one_is_used(cuda_stand_in, monkeypatch):
    recorder = Recorder(monkeypatch)
    with cuda_stand_in.no_syncs():
        for number, _ in enumerate(batches(*data(12), 4, device="cuda")):
            recorder.log.append(("main", "step", number))

    def sent(number):
        copies = [("side", "copies", (4, 2)), ("side", "copies", (4,))]
        return [("main", "reaches", number), ("side", "waits for", number), *copies, ("side", "reaches", number + 1)]

    def used(step):
        return [("main", "waits for", 2 * step + 1), ("main", "step", step)]

    assert recorder.log == [*sent(0), *sent(2), *used(0), *sent(4), *used(1), *used(2)]


def test_a_loop_left_early_leaves_no_copy_behind(cuda_stand_in, monkeypatch):
    recorder = Recorder(monkeypatch)
    loop = batches(*data(12), 4, device="cuda")
    for _ in loop:
        break
    gc.collect()
    assert recorder.log[-1] == ("main", "waits for", 3)  # before the memory of that batch is anybody's again


def test_a_batch_left_on_another_stream_is_awaited_by_the_one_that_owns_its_memory(cuda_stand_in, monkeypatch):
    recorder = Recorder(monkeypatch)
    loop = iter(batches(*data(12), 4, device="cuda"))
    next(loop)
    other = fake_cupy.cuda.Stream("other")
    monkeypatch.setattr(fake_cupy.cuda, "get_current_stream", lambda: other)
    loop.close()
    assert recorder.log[-2:] == [("other", "waits for", 3), ("main", "waits for", 3)]


def test_pinned_memory_is_used_again_only_when_it_was_read(cuda_stand_in, monkeypatch):
    recorder, taken = Recorder(monkeypatch), []
    monkeypatch.setattr(upload, "_pinned", [])

    def alloc(nbytes):
        taken.append(nbytes)
        return bytearray(nbytes)

    monkeypatch.setattr(fake_cupy.cuda, "alloc_pinned_memory", alloc)
    seen = [cuda_stand_in.numpy(x).copy() for x, _ in batches(*data(20), 4, device="cuda")]
    gc.collect()
    assert len(taken) == len(upload._pinned) == 5  # the GPU is behind: none was read yet, so it is nobody else's either
    np.testing.assert_array_equal(np.concatenate(seen), data(20)[0])
    taken.clear()
    for _ in batches(*data(20), 4, device="cuda"):
        for event in recorder.events:
            event.done = True
    assert len(taken) == 2


def test_a_device_wants_arrays_of_the_host(cuda_stand_in):
    x, y = data(4)
    with pytest.raises(TypeError, match="batches expected y as a NumPy array with device='cuda', got a .*cupy.ndarray"):
        batches(x, cuda_stand_in.array(y), 2, device="cuda")
    with pytest.raises(ValueError, match="device expected 'cpu' or 'cuda', got 'tpu'"):
        batches(x, y, 2, device="tpu")
    for bad in (x.astype(">f4"), x.astype(object), x.astype(str), x.astype("complex64")):
        with pytest.raises(TypeError, match=f"batches expected x of floats, integers .*, got dtype {bad.dtype.str[:2]}"):
            batches(bad, y, 2, device="cuda")
