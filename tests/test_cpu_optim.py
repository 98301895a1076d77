"""The compiled update rules: the portable ones in float64 are the oracle, and any number of threads gives the same bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

numba = pytest.importorskip("numba", reason="the compiled kernels need Numba: pip install 'tinygrad_bn[fast]'")
pytest.importorskip("scipy", reason="the compiled kernels need SciPy: pip install 'tinygrad_bn[fast]'")
if numba.config.DISABLE_JIT:
    pytest.skip("NUMBA_DISABLE_JIT is set, and nothing is compiled", allow_module_level=True)

import tinygrad_bn as tg  # noqa: E402
from tinygrad_bn.backend import portable  # noqa: E402
from tinygrad_bn.backend.cpu import optim, threads  # noqa: E402
from tinygrad_bn.optim import SGD, Adam  # noqa: E402

DTYPES = ["float32", "float64"]
LARGE = 3 * optim._ITEM + 5  # several items of work, the last one short
SPLIT = 1 << 15

SGD_OPTIONS = [
    {"first": f, "lr": 0.1, "momentum": m, "dampening": d, "weight_decay": w, "nesterov": n}
    for f, m, d, w, n in itertools.product((True, False), (0.0, 0.9), (0.0, 0.3), (0.0, 0.05), (False, True))
    if not (n and (d or not m))
]
ADAM_OPTIONS = [
    {"step": s, "lr": 0.01, "betas": b, "eps": e, "weight_decay": w, "decoupled": d}
    for s, b, e, w, d in itertools.product((1, 7), ((0.9, 0.999), (0.0, 0.5)), (1e-8, 0.1), (0.0, 0.3), (False, True))
]


class Step:
    """The arguments of a step: weights, state and memory are slices out of longer arrays, whose margins must stay."""

    margin = 3

    def __init__(self, rng, kind, sizes, dtype, options, memory=np.nan):
        self.kind, self.options = kind, options
        self.long = [rng.normal(size=sum(sizes) + 2 * self.margin).astype(dtype) for _ in range(3)]
        if kind == "adam":
            self.long[2] **= 2  # the mean of squares
        self.grads = [rng.normal(size=n).astype(dtype) for n in sizes]
        self.memory = memory

    def copy(self, dtype):
        other = object.__new__(Step)
        other.kind, other.options, other.memory = self.kind, self.options, self.memory
        other.long = [a.astype(dtype) for a in self.long]
        other.grads = [g.astype(dtype) for g in self.grads]
        return other

    def run(self, kernels):
        """Do the step; returns the long arrays of weights and state."""
        weights, state, more = (a[self.margin : -self.margin] for a in self.long)
        grad, spare = np.full_like(weights, self.memory), np.full_like(weights, self.memory)
        if self.kind == "sgd":
            state = state if self.options["momentum"] else None
            kernels.sgd(weights, self.grads, grad, spare, state, *self.options.values())
        else:
            kernels.adam(weights, self.grads, grad, spare, state, more, *self.options.values())
        return self.long


def check(step, dtype):
    """The compiled step is the portable one in float64, up to rounding, and touches nothing but what it should."""
    tolerance = {"float32": 4e-6, "float64": 1e-13}[dtype]
    ours = step.copy(dtype)
    with np.errstate(all="ignore"):
        expected = step.copy("float64").run(portable)
    for a, e, before in zip(ours.run(optim), expected, step.long, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)
        for margin in (slice(None, Step.margin), slice(-Step.margin, None)):
            np.testing.assert_array_equal(a[margin], before[margin])
    for g, before in zip(ours.grads, step.grads, strict=True):
        np.testing.assert_array_equal(g, before)  # they are the user's


@pytest.fixture
def number_of_threads():
    """A function that sets it, undone afterwards. Whatever is large is worth threads."""
    before = threads._number, optim._WORTH_THREADS
    optim._WORTH_THREADS = 0
    yield threads.set_num_threads
    threads._number, optim._WORTH_THREADS = before


SIZES = [(0,), (1,), (0, 3, 0, 4), (7, 1, 130), (LARGE,), (5, SPLIT, 3, SPLIT + 1, SPLIT, 2)]


def name(options):
    return "-".join(map(str, options.values())) if isinstance(options, dict) else str(options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", SGD_OPTIONS, ids=name)
def test_sgd_is_the_portable_one(rng, options, dtype):
    for sizes in SIZES:
        check(Step(rng, "sgd", sizes, dtype, options), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", ADAM_OPTIONS, ids=name)
def test_adam_is_the_portable_one(rng, options, dtype):
    for sizes in SIZES:
        check(Step(rng, "adam", sizes, dtype, options), dtype)


sizes = st.lists(st.integers(0, 40) | st.sampled_from([optim._ITEM, optim._ITEM + 1, SPLIT - 1, SPLIT]), min_size=1, max_size=5)
fractions = st.floats(0, 0.9375, width=32)


@given(
    sizes=sizes,
    dtype=st.sampled_from(DTYPES),
    first=st.booleans(),
    lr=fractions,
    momentum=fractions,
    dampening=st.floats(-1, 1),
    weight_decay=fractions,
    nesterov=st.booleans(),
)
def test_sgd_of_any_options(rng, sizes, dtype, nesterov, dampening, **options):
    options = {name: options[name] for name in ("first", "lr", "momentum")} | {
        "dampening": 0.0 if nesterov else dampening,
        "weight_decay": options["weight_decay"],
        "nesterov": nesterov and options["momentum"] > 0,
    }
    check(Step(rng, "sgd", sizes, dtype, options), dtype)


@given(
    sizes=sizes,
    dtype=st.sampled_from(DTYPES),
    step=st.integers(1, 10**6),
    lr=st.floats(0, 0.1),
    betas=st.tuples(fractions, fractions),
    eps=st.floats(1e-3, 1),
    weight_decay=fractions,
    decoupled=st.booleans(),
)
def test_adam_of_any_options(rng, sizes, dtype, step, lr, betas, eps, weight_decay, decoupled):
    options = {"step": step, "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decoupled": decoupled}
    check(Step(rng, "adam", sizes, dtype, options), dtype)


CASES = [("sgd", o) for o in SGD_OPTIONS] + [("adam", o) for o in ADAM_OPTIONS]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind, options", CASES, ids=name)
def test_nan_and_infinity_spread_as_in_numpy(rng, kind, options, dtype):
    """Each special value of a gradient meets each of a weight; a weight decay of zero must not make NaN of an infinite one."""
    values = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, np.finfo(dtype).max, np.finfo(dtype).tiny]
    step = Step(rng, kind, [len(values) ** 3], dtype, options)
    grid = np.array(list(itertools.product(values, repeat=3)), dtype)
    inner = slice(Step.margin, -Step.margin)
    step.grads[0][:], step.long[0][inner], step.long[1][inner] = grid.T
    if kind == "adam":
        step.long[2][inner] = np.abs(grid[:, 1])
    ours = step.copy(dtype).run(optim)
    with np.errstate(all="ignore"):
        expected = step.copy(dtype).run(portable)
    for a, e in zip(ours, expected, strict=True):
        # Where the largest number is among the values, one rounding more or less may overflow.
        clear = np.abs(grid).max(axis=1) != np.finfo(dtype).max
        np.testing.assert_allclose(a[inner][clear], e[inner][clear], rtol=1e-6)
        np.testing.assert_array_equal(np.isnan(a[inner][clear]), np.isnan(e[inner][clear]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind, options", [("sgd", SGD_OPTIONS[-1]), ("sgd", SGD_OPTIONS[0]), ("adam", ADAM_OPTIONS[-1])])
def test_the_same_bits_for_any_number_of_threads(rng, number_of_threads, kind, options, dtype):
    step = Step(rng, kind, [10 * optim._ITEM + 7, 100], dtype, options)
    results = []
    for n in (1, 2, 3):
        number_of_threads(n)
        results.append([a.tobytes() for a in step.copy(dtype).run(optim)])
    assert results[0] == results[1] == results[2]
    assert results[0][0] != step.long[0].tobytes()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_other_dtypes_are_portable(rng, kind):
    options = SGD_OPTIONS[-1] if kind == "sgd" else ADAM_OPTIONS[-1]
    step = Step(rng, kind, [9], "float16", options)
    for a, e in zip(step.copy("float16").run(optim), step.copy("float16").run(portable), strict=True):
        assert a.dtype == "float16"
        np.testing.assert_array_equal(a, e)


def test_a_gradient_that_lies_in_the_weights(rng):
    """Each parameter's step takes what the weights of the other were before."""
    step = Step(rng, "sgd", [5, 5, 3], "float32", SGD_OPTIONS[-1])
    expected = step.copy("float32")
    expected.grads[1] = expected.long[0][Step.margin :][:5].copy()
    step.grads[1] = step.long[0][Step.margin :][:5]
    for a, e in zip(step.run(optim), expected.run(portable), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6)


def test_a_gradient_of_another_dtype(rng):
    step = Step(rng, "sgd", [5, 40, 3], "float32", SGD_OPTIONS[-1])
    expected = step.copy("float32")
    step.grads[1] = step.grads[1].astype("float64")
    for a, e in zip(step.run(optim), expected.run(portable), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6)


@given(sizes=st.lists(st.integers(0, 50_000), min_size=1, max_size=6))
def test_items_are_all_weights_once(sizes):
    """Each piece belongs to one gradient, and is no longer than an item may be."""
    starts = np.cumsum([0, *sizes])
    seen = np.zeros(starts[-1], int)
    for number, offset, start, stop in optim._items(tuple(sizes)):
        assert 0 < stop - start <= optim._ITEM and start - starts[number] == offset and stop <= starts[number + 1]
        seen[start:stop] += 1
    assert (seen == 1).all()


def turned(g):
    return np.asfortranarray(g)


def frozen(g):
    g = g.copy()
    g.flags.writeable = False
    return g


def spread(g):
    return np.broadcast_to(g[:1], g.shape)


def unaligned(g):
    memory = np.empty(g.nbytes + 1, "u1")[1:].view(g.dtype).reshape(g.shape)
    memory[...] = g
    return memory


@pytest.mark.parametrize("layout", [turned, frozen, spread, unaligned])
@pytest.mark.parametrize("rows", [3, SPLIT // 100 + 1])
def test_gradients_in_any_layout(rng, layout, rows):
    """A gradient is read where it lies only if kernels are compiled for that; however it lies, the step is the same."""
    step = Step(rng, "sgd", [4, rows * 100, 5], "float32", SGD_OPTIONS[-1])
    step.grads[1] = layout(step.grads[1].reshape(rows, 100))
    plain = step.copy("float32")
    plain.grads[1] = step.grads[1].copy()
    compiled_for = len(optim._sgd.signatures)
    for a, e in zip(step.run(optim), plain.run(portable), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6)
    plain.run(optim)
    assert len(optim._sgd.signatures) <= max(compiled_for, len(DTYPES))


def test_a_gradient_may_be_another_weight(rng):
    """All gradients are those of before the step, also where a large one is memory that the step changes."""
    n = SPLIT
    expected = rng.normal(size=2 * n)
    weights = expected.copy()
    memory = [np.empty(2 * n) for _ in range(2)]
    for kernels, w in ((portable, expected), (optim, weights)):
        kernels.sgd(w, [w[n:], w[:n]], *memory, None, True, 0.5, 0.0, 0.0, 0.0, False)
    np.testing.assert_allclose(weights, expected, rtol=1e-14)


@pytest.mark.parametrize("n", [10, SPLIT + 3])
@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1), lambda p: Adam(p, lr=0.1)])
def test_a_step_leaves_the_gradients_alone(rng, make, n):
    ps = [tg.tensor(rng.normal(size=size), requires_grad=True) for size in (3, n, 4)]
    optimizer = make(ps)
    for p in ps:
        p.grad = tg.tensor(rng.normal(size=p.shape))
    before = [p.grad.data.copy() for p in ps]
    optimizer.step()
    optimizer.step()
    for p, b in zip(ps, before, strict=True):
        np.testing.assert_array_equal(p.grad.data, b)


# ----- what a step remembers of its options


def test_an_option_that_passed_is_checked_again_when_it_changes(rng):
    p = tg.tensor([1.0], requires_grad=True)
    p.grad = tg.tensor([1.0])
    adam, sgd = Adam([p]), SGD([p], lr=1.0, momentum=0.5)
    group, betas = adam.param_groups[0], [0.5, 0.5]
    group["betas"] = betas
    adam.step()
    betas[1] = 2.0  # the same list
    with pytest.raises(ValueError, match=r"betas\[1\] expected"):
        adam.step()
    sgd.step()
    before = p.item()
    group = sgd.param_groups[0]
    for option, value in (("nesterov", 1), ("lr", True)):  # equal to what passed, but of another type
        good, group[option] = group[option], value
        with pytest.raises(TypeError, match=option):
            sgd.step()
        group[option] = good
    lr = group.pop("lr")
    with pytest.raises(ValueError, match="misses the option lr"):
        sgd.step()
    assert p.item() == before
    group["lr"] = lr / 2
    sgd.step()
    assert p.item() == before - 0.5 * (0.5 + 1.0)
