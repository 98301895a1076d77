"""mnist() from each of its sources; the network is a server on the loopback address."""

import gzip
import hashlib
import socket
import struct
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from tinygrad_bn.datasets import download, fashion_mnist, make_subset, mnist, read_idx

ORIGINAL_FILES = Path(__file__).parents[3] / "shared" / "data" / "mnist"
needs_originals = pytest.mark.skipif(
    not ORIGINAL_FILES.is_dir(), reason=f"the original MNIST files are not in {ORIGINAL_FILES}"
)
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array):
    array = np.asarray(array, np.uint8)
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def tiny(train=7, test=3, height=5, width=4):
    """A data set of MNIST's layout: the four contents by name."""
    rng = np.random.default_rng(0)
    contents = {}
    for part, count in (("train", train), ("t10k", test)):
        contents[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, height, width)))
        contents[f"{part}-labels-idx1-ubyte"] = idx(np.arange(count) % 10)
    return contents


def write(folder, contents, name="{}", pack=bytes):
    folder.mkdir(exist_ok=True)
    for key, content in contents.items():
        (folder / name.format(key)).write_bytes(pack(content))
    return folder


def assert_equal(got, expected):
    for pair, other in zip(got, expected, strict=True):
        for a, b in zip(pair, other, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)


# The embedded subset


def test_embedded_shapes_dtypes_and_range():
    (x_train, y_train), (x_test, y_test) = mnist()
    for x, y, count in ((x_train, y_train, 10_000), (x_test, y_test, 2_000)):
        assert x.shape == (count, 1, 28, 28) and x.dtype == np.float32 and x.flags.c_contiguous
        assert x.min() == 0 and x.max() == 1
        assert y.shape == (count,) and y.dtype == np.int64
        share = np.bincount(y, minlength=10) / count
        assert len(share) == 10 and share.min() > 0.075 and share.max() < 0.125


def test_embedded_is_small_and_needs_no_pickle():
    file = files("tinygrad_bn.datasets") / "mnist_subset.npz"
    assert len(file.read_bytes()) < 3_000_000
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype == np.uint8 for name in ("x_train", "y_train", "x_test", "y_test"))


def test_embedded_calls_share_nothing():
    (x, y), _ = mnist()
    x[:], y[:] = 7, 7
    (fresh, labels), _ = mnist("embedded")
    assert fresh.max() == 1 and len(np.unique(labels)) == 10


def test_data_licence_names_authors_and_licence():
    text = (files("tinygrad_bn.datasets") / "DATA-LICENSE").read_text()
    for words in ("Yann LeCun", "Corinna Cortes", "Burges", "CC BY-SA 3.0", "images 0, 6, 12"):
        assert words in text


@needs_originals
@pytest.mark.parametrize("name", NAMES)
def test_original_files_have_the_published_sha256(name):
    assert download.sha256(ORIGINAL_FILES / f"{name}.gz") == download.ORIGINALS[name].sha256


@needs_originals
def test_directory_of_the_originals_and_the_subset_of_it():
    full = mnist(ORIGINAL_FILES)
    (x_train, y_train), (x_test, y_test) = full
    assert x_train.shape == (60_000, 1, 28, 28) and x_test.shape == (10_000, 1, 28, 28)
    assert y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4] and y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert_equal(mnist("embedded"), ((x_train[::6], y_train[::6]), (x_test[::5], y_test[::5])))


@needs_originals
def test_make_subset_makes_the_same_bytes_again(tmp_path):
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    make_subset.make_subset(ORIGINAL_FILES, one)
    make_subset.make_subset(ORIGINAL_FILES, two)
    assert one.read_bytes() == two.read_bytes()
    kept = files("tinygrad_bn.datasets") / "mnist_subset.npz"
    with np.load(one) as ours, kept.open("rb") as file, np.load(file) as theirs:
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name], strict=True)


def test_make_subset_takes_only_the_originals(tmp_path):
    target = tmp_path / "subset.npz"
    with pytest.raises(ValueError, match=r"make_subset expected content of SHA-256 .* got"):
        make_subset.make_subset(write(tmp_path / "data", tiny()), target)
    assert not target.exists()


# A directory


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("dotted", [False, True])
def test_directory_reads_every_spelling(tmp_path, dotted, pack):
    contents = tiny()
    names = {name.replace("-idx", ".idx") if dotted else name: content for name, content in contents.items()}
    write(tmp_path, names, "{}" if pack is bytes else "{}.gz", pack)
    (x_train, y_train), (x_test, y_test) = mnist(str(tmp_path))
    assert x_train.shape == (7, 1, 5, 4) and x_train.dtype == np.float32
    assert x_test.shape == (3, 1, 5, 4) and y_test.dtype == np.int64
    raw = read_idx(next(tmp_path.glob("train-images*")))
    np.testing.assert_array_equal(x_train[:, 0], (raw / 255.0).astype(np.float32))
    assert y_train.tolist() == list(range(7))
    assert_equal(fashion_mnist(tmp_path), ((x_train, y_train), (x_test, y_test)))


def test_missing_files_are_listed(tmp_path):
    contents = tiny()
    del contents["t10k-labels-idx1-ubyte"]
    with pytest.raises(FileNotFoundError, match="mnist expected these files in") as error:
        mnist(write(tmp_path, contents))
    assert "t10k-labels-idx1-ubyte or t10k-labels.idx1-ubyte" in str(error.value)
    assert "train" not in str(error.value).partition("did not find")[2]


def test_missing_directory_lists_what_is_looked_for(tmp_path):
    for source in (tmp_path / "none", str(tmp_path / "none")):
        with pytest.raises(FileNotFoundError, match="mnist expected a directory") as error:
            mnist(source)
        assert all(name in str(error.value) for name in NAMES)


def test_fashion_mnist_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt install dataset-fashion-mnist"):
        fashion_mnist(tmp_path)


@pytest.mark.parametrize("source", ["ful", "Embedded", ""])
def test_unknown_source_names_the_choices(source):
    with pytest.raises(ValueError, match=f"'embedded', 'full' or an existing directory, got '{source}'"):
        mnist(source)


@pytest.mark.parametrize("function", [mnist, fashion_mnist])
def test_source_of_a_wrong_type(function):
    with pytest.raises(TypeError, match="source to be a string or a path, got int"):
        function(3)


DAMAGE = {
    "labels for other images": (
        "t10k-labels-idx1-ubyte",
        idx([1, 2]),
        "as many labels as images, got 2 in .* and 3 in",
    ),
    "label out of range": ("train-labels-idx1-ubyte", idx([0, 1, 2, 3, 4, 5, 10]), "labels 0 to 9 in .* got 10"),
    "other image size": (
        "t10k-images-idx3-ubyte",
        idx(np.zeros((3, 5, 5))),
        r"one size in .* got \(5, 4\) and \(5, 5\)",
    ),
    "rank": ("t10k-images-idx3-ubyte", idx(np.zeros((3, 5))), r"uint8 images \(N, H, W\) in .* got uint8 \(3, 5\)"),
    "dtype": ("t10k-labels-idx1-ubyte", b"\0\0\x09\x01\0\0\0\x03abc", r"uint8 labels \(N,\) in .* got int8 \(3,\)"),
    "not idx": ("train-labels-idx1-ubyte", b"<html>", "two zero bytes"),
}


@pytest.mark.parametrize(("name", "content", "message"), DAMAGE.values(), ids=DAMAGE)
def test_wrong_content_is_a_clear_error(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        mnist(write(tmp_path, tiny() | {name: content}))


# The download


@pytest.fixture
def web(httpserver, tmp_path, monkeypatch):
    """A server with a tiny data set, its checksums in the place of MNIST's, and an empty cache."""
    pytest.importorskip("pooch")
    pytest.importorskip("tqdm")
    contents = tiny()
    zipped = {name: gzip.compress(content, mtime=0) for name, content in contents.items()}
    for name, content in contents.items():
        checksums = download.Checksums(hashlib.md5(zipped[name]).hexdigest(), hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(download.ORIGINALS, name, checksums)
        httpserver.expect_request(f"/good/{name}.gz").respond_with_data(zipped[name])
        httpserver.expect_request(f"/torn/{name}.gz").respond_with_data(zipped[name][:-1])
        httpserver.expect_request(f"/gone/{name}.gz").respond_with_data("gone", status=404)
    monkeypatch.setattr(download, "MIRRORS", (httpserver.url_for("/good/"),))
    monkeypatch.setenv("TINYGRAD_BN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    httpserver.expected = mnist(write(tmp_path / "expected", contents))
    return httpserver


def dead_address():
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "mnist").iterdir())


def test_full_downloads_once_with_a_progress_bar(web, tmp_path, capfd):
    assert_equal(mnist("full"), web.expected)
    assert "100%" in capfd.readouterr().err
    assert len(web.log) == 4 and cached(tmp_path) == sorted(f"{name}.gz" for name in NAMES)
    assert_equal(mnist("full"), web.expected)
    assert len(web.log) == 4


@pytest.mark.parametrize("first", ["dead", "torn", "gone"])
def test_second_mirror_stands_in_for_the_first(web, tmp_path, monkeypatch, first):
    broken = dead_address() if first == "dead" else web.url_for(f"/{first}/")
    monkeypatch.setattr(download, "MIRRORS", (broken, *download.MIRRORS))
    assert_equal(mnist("full"), web.expected)
    assert cached(tmp_path) == sorted(f"{name}.gz" for name in NAMES)


def test_all_mirrors_failing_is_one_error_that_names_each(web, tmp_path, monkeypatch):
    mirrors = (dead_address(), web.url_for("/torn/"), web.url_for("/gone/"))
    monkeypatch.setattr(download, "MIRRORS", mirrors)
    with pytest.raises(ConnectionError, match=r"could not download train-images-idx3-ubyte.gz") as error:
        mnist("full")
    message = str(error.value)
    assert all(f"{mirror}train-images-idx3-ubyte.gz: " in message for mirror in mirrors)
    assert "does not match the known hash" in message and "404" in message and "mnist(source=DIR)" in message
    assert cached(tmp_path) == []


def test_corrupted_file_in_the_cache_is_replaced(web, tmp_path):
    mnist("full")
    path = tmp_path / "cache" / "mnist" / f"{NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-1])
    assert_equal(mnist("full"), web.expected)
    assert len(web.log) == 5


@pytest.mark.parametrize("content", [gzip.compress(b"other content"), b"\x1f\x8b not gzip"], ids=["gzip", "no gzip"])
def test_content_of_another_sha256_is_rejected_and_removed(web, tmp_path, monkeypatch, content):
    md5, sha256 = hashlib.md5(content).hexdigest(), download.ORIGINALS[NAMES[0]].sha256
    monkeypatch.setitem(download.ORIGINALS, NAMES[0], download.Checksums(md5, sha256))
    web.expect_request(f"/odd/{NAMES[0]}.gz").respond_with_data(content)
    monkeypatch.setattr(download, "MIRRORS", (web.url_for("/odd/"),))
    with pytest.raises(ConnectionError, match=r"expected content of SHA-256|expected intact gzip"):
        mnist("full")
    assert cached(tmp_path) == []


@pytest.mark.parametrize("missing", ["pooch", "tqdm"])
def test_full_without_the_extra_says_what_to_install(monkeypatch, missing):
    if missing == "tqdm":
        pytest.importorskip("pooch")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing} to download: pip install 'tinygrad_bn\[examples\]'"):
        mnist("full")


def test_checksums_and_mirrors_are_complete():
    assert tuple(download.ORIGINALS) == NAMES
    for checksums in download.ORIGINALS.values():
        assert len(bytes.fromhex(checksums.gz_md5)) == 16 and len(bytes.fromhex(checksums.sha256)) == 32
    assert len(download.MIRRORS) == 2
    assert all(mirror.startswith("https://") and mirror.endswith("/mnist/") for mirror in download.MIRRORS)
