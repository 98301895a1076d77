"""Kernels on several threads: the same bits for any number; safe after fork, from several threads, beside the user's BLAS."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn.backend import cpu
from tinygrad_bn.backend.cpu import threads

numba = pytest.importorskip("numba", reason="compiled kernels need Numba: pip install 'tinygrad_bn[fast]'")
team = pytest.importorskip("tinygrad_bn.backend.cpu.team", reason="compiled kernels need SciPy")
blas = pytest.importorskip("tinygrad_bn.backend.cpu.blas", reason="compiled kernels need SciPy")


@pytest.fixture(autouse=True)
def number_of_threads():
    before = threads._number
    yield
    threads._number = before


def _losses(steps=4):
    tg.manual_seed(3)
    model = tg.nn.Sequential(
        *(tg.nn.Conv2d(3, 16, 3, padding=1), tg.nn.BatchNorm2d(16), tg.nn.ReLU(), tg.nn.MaxPool2d(2)),
        *(tg.nn.Conv2d(16, 24, 3, stride=2, groups=2), tg.nn.BatchNorm2d(24), tg.nn.ReLU(), tg.nn.Flatten()),
        *(tg.nn.Linear(24 * 36, 200), tg.nn.LayerNorm(200), tg.nn.Sigmoid(), tg.nn.Dropout(0.2), tg.nn.Linear(200, 10)),
    )
    optimizer = tg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, labels = tg.randn(64, 3, 28, 28), np.arange(64) % 10
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = tg.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.data.copy() for p in model.parameters()]


def test_any_number_of_threads_gives_the_same_bits():
    results = []
    for n in (1, 2, 3, 7):
        tg.set_num_threads(n)
        assert tg.get_num_threads() == n
        results.append(_losses())
    (losses, weights), *others = results
    for other, arrays in others:
        assert other == losses
        assert all(np.array_equal(a, b) for a, b in zip(weights, arrays, strict=True))


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "set_num_threads expected at least 1, got 0"),
        (-2, ValueError, "set_num_threads expected at least 1, got -2"),
        (1.5, TypeError, "set_num_threads expected a whole number, got float"),
        (True, TypeError, "set_num_threads expected a whole number, got bool"),
        ("2", TypeError, "set_num_threads expected a whole number, got str"),
    ],
)
def test_a_wrong_number_of_threads(n, error, message):
    before = tg.get_num_threads()
    with pytest.raises(error) as caught:
        tg.set_num_threads(n)
    assert str(caught.value) == message and tg.get_num_threads() == before


def test_several_python_threads_at_once():
    tg.set_num_threads(3)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((32, 8, 28, 28), np.float32), rng.standard_normal((16, 8, 3, 3), np.float32)
    how = (1, 1), (1, 1), (1, 1), 1
    expected = cpu.conv2d(x, w, None, *how)
    wrong = []

    def work():
        for _ in range(20):
            if not np.array_equal(cpu.conv2d(x, w, None, *how), expected):
                wrong.append(1)

    users = [threading.Thread(target=work) for _ in range(4)]
    for t in users:
        t.start()
    for t in users:
        t.join()
    assert not wrong


@numba.njit(nogil=True)
def _note(counter, items, slots, times, some, more):
    """Which thread did which item, and how often; with arguments of several kinds."""
    slot = team.join(counter)
    while True:
        item = team.take(counter, slot, items)
        if item >= items:
            return team.leave(counter, slot)
        for _ in range(1000):
            slots[item] = slot
        times[item] += some[0] + (more is None)


@pytest.mark.parametrize("helpers", [0, 1, 2, 5])
def test_each_item_is_done_once_and_threads_have_numbers(helpers):
    for items in (1, 2, 3, 50, 1000):
        slots, times = np.full(items, -1), np.zeros(items, np.int64)
        for _ in range(30):
            team.run(_note, items, slots, times, (1, 2.5), None, threads=helpers + 1)
        assert (times == 60).all() and slots.min() >= 0 and slots.max() <= helpers


@numba.njit(nogil=True)
def _wait_for_each_other(counter, items, slots):
    """Each item is done when a helper is there."""
    slot = team.join(counter)
    while True:
        item = team.take(counter, slot, items)
        if item >= items:
            return team.leave(counter, slot)
        for _ in range(1 << 32):  # (not for ever, should there never be one)
            if team.peek(counter, team.SLOTS):
                break
        slots[item] = slot


def test_threads_work_together():
    slots = np.full(2, -1)
    for _ in range(20):
        team.run(_wait_for_each_other, 2, slots, threads=2)
        assert set(slots) <= {0, 1} and team._workers.threads


def test_workers_that_are_somewhere_else_are_not_waited_for(monkeypatch):
    """Nobody comes: the caller does it all."""
    monkeypatch.setattr(team, "_workers", team._Workers())
    monkeypatch.setattr(team._Workers, "call", lambda self, count: None)
    slots, times = np.full(50, -1), np.zeros(50, np.int64)
    team.run(_note, 50, slots, times, (1, 2.5), None, threads=4)
    assert (times == 2).all() and (slots == 0).all()


def test_workers_end_when_they_are_told_to(monkeypatch):
    """Awake or asleep."""
    for patience in (1, 1 << 20):  # (asleep at once; awake for 40 ms)
        monkeypatch.setattr(team, "_PATIENCE", patience)
        workers = team._Workers()
        workers.call(3)
        assert all(thread.is_alive() for thread in workers.threads)
        workers.stop()
        assert not any(thread.is_alive() for thread in workers.threads)


def test_a_kernel_that_raises_lets_go_of_its_helpers():
    @numba.njit(nogil=True)
    def fails(counter, items):
        if team.join(counter) == 0:
            raise ValueError(items)

    for _ in range(20):
        with pytest.raises(ValueError, match="4"):
            team.run(fails, 4, threads=3)
        assert team._workers.team[team.ROUND] % 2 == 0 and team._workers.team[team.INSIDE] == 0
    slots, times = np.full(50, -1), np.zeros(50, np.int64)
    team.run(_note, 50, slots, times, (1, 2.5), None, threads=3)
    assert (times == 2).all()


def test_a_kernel_with_more_arguments_than_fit_is_refused():
    many = (0.0,) * 500

    @numba.njit
    def kernel(counter, many):
        return team.join(counter) + len(many)

    with pytest.raises(TypeError, match="more arguments than a team can pass on"):
        kernel(team.new(), many)


def test_the_users_blas_and_numba_settings_are_as_before():
    import numba
    from threadpoolctl import ThreadpoolController

    numba.get_num_threads()  # (starts Numba's own threads, which set the number of OpenMP's)
    controller = ThreadpoolController()
    with controller.limit(limits=2, user_api="blas"):
        before = controller.info(), numba.get_num_threads()
        _losses(1)
        tg.einsum("ij,jk->ik", tg.randn(200, 200), tg.randn(200, 200))
        assert (controller.info(), numba.get_num_threads()) == before


@pytest.fixture
def scipys_openblas():
    """How many threads SciPy's OpenBLAS uses: a function that says it. Two, to begin with."""
    with blas.one_thread:
        pass  # (the library is looked for at its first use)
    if not blas.one_thread.by_kernels:
        pytest.skip("SciPy's BLAS is not OpenBLAS")
    get, set_number = blas.one_thread._libraries[0]
    before = get()
    set_number(2)
    yield get
    set_number(before)


def test_kernels_limit_openblas_until_the_last_has_ended(scipys_openblas):
    blas._begin(blas.limit)
    with blas.one_thread:
        blas._begin(blas.limit)
        assert scipys_openblas() == 1
        blas._end(blas.limit)
        assert scipys_openblas() == 1
    assert scipys_openblas() == 1
    blas._end(blas.limit)
    assert scipys_openblas() == 2
    assert blas.limit[blas.INSIDE] == 0 and blas.limit[blas.DRAWN] == blas.limit[blas.TURN]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_product_limits_openblas_once(scipys_openblas, rng, threads):
    tg.set_num_threads(threads)
    x, w = rng.standard_normal((64, 300)), rng.standard_normal((200, 300))
    before = blas.limit[blas.DRAWN]
    tg.linear(x, w)
    assert blas.limit[blas.DRAWN] == before + 2  # the caller's begin and end, and no helper's
    assert blas.limit[blas.INSIDE] == 0 and scipys_openblas() == 2


def test_products_in_several_threads_at_once(scipys_openblas, rng):
    x, w = rng.standard_normal((64, 300)).astype("f"), rng.standard_normal((200, 300)).astype("f")
    expected = tg.linear(x, w)
    wrong: list[int] = []

    def many() -> None:
        wrong.extend(i for i in range(200) if not np.array_equal(tg.linear(x, w), expected))

    at_once = [threading.Thread(target=many) for _ in range(4)]
    for thread in at_once:
        thread.start()
    for thread in at_once:
        thread.join()
    assert not wrong and blas.limit[blas.INSIDE] == 0 and scipys_openblas() == 2


def test_a_child_forked_within_a_product_has_the_users_number(scipys_openblas):
    """It is the fork of a thread that was in no kernel, while another was: whose limit, and turn, end with it."""
    blas._begin(blas.limit)
    blas.limit[blas.DRAWN] += 1
    blas.one_thread.after_fork()
    assert scipys_openblas() == 2 and not blas.limit[: blas.GET].any()
    blas._begin(blas.limit)
    assert scipys_openblas() == 1
    blas._end(blas.limit)
    assert scipys_openblas() == 2


def test_scipy_is_as_ever_afterwards():
    code = (
        "import tinygrad_bn as tg\ntg.conv2d(tg.ones(2, 8, 5, 5), tg.ones(1, 8, 3, 3))\nimport sys\n"
        "assert 'scipy.linalg.cython_blas' in sys.modules and 'scipy.linalg' not in sys.modules\n"
        "import scipy.linalg, scipy.linalg.cython_blas as one\nfrom scipy.linalg import cython_blas as other\n"
        "from numba.extending import get_cython_function_address as find\n"
        "print(one is other, find('scipy.linalg.cython_blas', 'dgemm') != 0, scipy.linalg.norm([3.0, 4.0]))"
    )
    rc, out, err = _python(code)
    assert (rc, out.strip()) == (0, "True True 5.0"), err


def _python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


_STEP = """
import numpy as np, tinygrad_bn as tg
tg.set_num_threads(2)
conv = tg.nn.Conv2d(8, 16, 3, padding=1)
x = tg.randn(32, 8, 28, 28)
def step():
    y = conv(x); y.sum().backward(); g = conv.weight.grad.data.copy(); conv.zero_grad(); return g
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_after_the_workers_started():
    code = _STEP + (
        "import os\nfirst = step()\npid = os.fork()\nsame = np.array_equal(step(), first)\n"
        "if pid == 0: os._exit(0 if same else 1)\nstatus = os.waitpid(pid, 0)[1]\nprint(same, status)"
    )
    # (Python 3.12 warns of a fork with threads: here they are known not to matter)
    code = "import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\n" + code
    rc, out, err = _python(code)
    assert (rc, out.strip()) == (0, "True 0"), err


def test_what_is_cached_is_good_only_while_no_file_changes():
    """A kernel has parts of other files in it."""
    from tinygrad_bn.backend.cpu import jit, optim

    assert {"jit.py", "optim.py", "team.py"} <= {name for name, *_ in jit._STAMP}
    assert optim._sgd._cache._cache_file._source_stamp == jit._STAMP


def test_a_cached_kernel_is_never_taken_for_another(tmp_path):
    """Processes that compile at once may write different kernels under one number, each after the other looked.

    Broken by: Numba's own cache file, which gives back whatever lies there.
    """
    from tinygrad_bn.backend.cpu import jit, optim

    assert type(optim._sgd._cache._cache_file) is jit._CacheFile
    one, other = (jit._CacheFile(str(tmp_path), "kernel", jit._STAMP) for _ in range(2))
    empty = one._load_index()
    one.save("float32", "its code")
    other._load_index = lambda: dict(empty)  # it looked before that was written
    other.save("float64", "other code")
    one._save_index({"float32": "kernel.1.nbc"})  # and the first writes its index last
    assert one.load("float32") is None
    one.save("float32", "its code")
    assert one.load("float32") == "its code"
    one._source_stamp = "older source"
    one._save_index({"float32": "kernel.1.nbc"})  # the index comes before the code
    assert one.load("float32") is None


def test_a_cache_that_cannot_be_written_costs_time_only():
    """A package on read-only files, and no home: kernels compile, with one warning."""
    code = (
        "import os, warnings\n"
        "def refuse(path, *_, **__): raise PermissionError(path)\n"
        "os.makedirs = refuse\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import tinygrad_bn as tg, numpy as np\n"
        "    y = tg.conv2d(tg.ones(2, 8, 5, 5), tg.ones(1, 8, 3, 3))\n"
        "ours = [str(w.message) for w in caught if 'compiled kernels' in str(w.message)]\n"
        "print(len(ours), 'NUMBA_CACHE_DIR' in ours[0], bool((y.data == 72).all()))"
    )
    rc, out, err = _python(code)
    assert (rc, out.strip()) == (0, "1 True True"), err


@pytest.mark.parametrize("how", ["import numba fails", "NUMBA_DISABLE_JIT"])
def test_without_numba_the_portable_kernels_serve(how):
    """The same training, to rounding, in a process without Numba."""
    blocked = (
        "import sys, importlib.abc\n"
        "class No(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('numba', 'scipy'): raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, No())\n"
    )
    code = (
        "import numpy as np, tinygrad_bn as tg\nfrom tinygrad_bn.backend import cpu, portable\ntg.manual_seed(0)\n"
        "loss = tg.cross_entropy(tg.models.cnn()(tg.randn(8, 1, 28, 28)), np.arange(8))\n"
        "loss.backward()\nprint(repr(loss.item()), cpu.conv2d is portable.conv2d)"
    )
    rc, out, err = _python(
        (blocked if how == "import numba fails" else "") + code, **({} if "fails" in how else {"NUMBA_DISABLE_JIT": "1"})
    )
    assert rc == 0, err
    loss, portable_serves = out.split()
    assert portable_serves == "True"
    rc, out, err = _python(code)
    assert rc == 0, err
    assert out.split()[1] == "False" and abs(float(out.split()[0]) - float(loss)) < 1e-4
