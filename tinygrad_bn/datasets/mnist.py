"""MNIST and Fashion-MNIST as arrays: embedded, downloaded, or from a directory of idx files."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .download import ORIGINALS, download
from .idx import read_idx

SUBSET = "mnist_subset.npz"
DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Data = tuple[tuple[Images, Labels], tuple[Images, Labels]]


def mnist(source: str | os.PathLike[str] = "embedded") -> Data:
    """`(x_train, y_train), (x_test, y_test)`: handwritten digits, 10 classes.

    Images are float32 (N, 1, 28, 28), 0 background to 1 ink; labels are int64 (N,), 0 to 9.

    `source` is one of
    - "embedded": every 6th of the training images and every 5th of the test images, 10,000 and 2,000; no download.
    - "full": all 60,000 and 10,000, downloaded on first use into a cache ($TINYGRAD_BN_CACHE, or the system's place
      for caches), with their checksums verified. Needs pooch and tqdm: pip install 'tinygrad_bn[examples]'.
    - a directory with the four idx files, gzip-compressed or not. Any data set of that layout will do: images of any
      one size, labels 0 to 9. A directory called "full" is written "./full".

    Raises ValueError for an unknown source or a damaged file, FileNotFoundError for a missing one, and for "full"
    ConnectionError if no mirror serves an intact file and ImportError without pooch or tqdm.

    Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits"; CC BY-SA 3.0.
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"mnist expected source to be a string or a path, got {type(source).__name__}")
    if source == "embedded":
        return _read_subset()
    if source == "full":
        return _read_directory(download(), "mnist")
    if isinstance(source, str) and os.path.basename(source) == source and not os.path.exists(source):
        raise ValueError(f"mnist expected source to be 'embedded', 'full' or an existing directory, got {source!r}")
    return _read_directory(Path(source), "mnist")


def fashion_mnist(source: str | os.PathLike[str] = DEBIAN_FASHION_MNIST) -> Data:
    """`(x_train, y_train), (x_test, y_test)`: articles of clothing, 10 classes, in MNIST's shapes and dtypes.

    `source` is a directory with the four idx files, gzip-compressed or not. It defaults to where the Debian package
    dataset-fashion-mnist puts them. Nothing is downloaded.

    Raises FileNotFoundError for a missing file and ValueError for a damaged one.

    Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", arXiv:1708.07747;
    https://github.com/zalandoresearch/fashion-mnist; MIT licence.
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"fashion_mnist expected source to be a string or a path, got {type(source).__name__}")
    hint = (
        "; `apt install dataset-fashion-mnist` installs it on Debian, "
        "https://github.com/zalandoresearch/fashion-mnist has it for download"
    )
    return _read_directory(Path(source), "fashion_mnist", hint)


def find_originals(directory: Path, caller: str, hint: str = "") -> dict[str, Path]:
    """The path of each of MNIST's four files, in any of its usual spellings; FileNotFoundError says what is missing."""
    found, missing = {}, []
    for name in ORIGINALS:
        spellings = [name, name.replace("-idx", ".idx")]
        candidates = [directory / (spelling + ending) for ending in ("", ".gz") for spelling in spellings]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            missing.append(" or ".join(spellings))
        else:
            found[name] = path
    if missing:
        what = "these files in" if directory.is_dir() else "a directory"
        raise FileNotFoundError(
            f"{caller} expected {what} {directory}, and did not find: {', '.join(missing)} (each with or without .gz)" + hint
        )
    return found


def _read_subset() -> Data:
    with (files(__package__) / SUBSET).open("rb") as file, np.load(file, allow_pickle=False) as subset:
        return (
            (_scaled(subset["x_train"]), subset["y_train"].astype(np.int64)),
            (_scaled(subset["x_test"]), subset["y_test"].astype(np.int64)),
        )


def _read_directory(directory: Path, caller: str, hint: str = "") -> Data:
    paths = find_originals(directory, caller, hint)
    x_train, y_train = _read_pair(paths["train-images-idx3-ubyte"], paths["train-labels-idx1-ubyte"], caller)
    x_test, y_test = _read_pair(paths["t10k-images-idx3-ubyte"], paths["t10k-labels-idx1-ubyte"], caller)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"{caller} expected training and test images of one size in {directory}, "
            f"got {x_train.shape[1:]} and {x_test.shape[1:]}"
        )
    return (_scaled(x_train), y_train.astype(np.int64)), (_scaled(x_test), y_test.astype(np.int64))


def _read_pair(images_path: Path, labels_path: Path, caller: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    labels, images = read_idx(labels_path), read_idx(images_path)
    expected = (images, 3, "images (N, H, W)", images_path), (labels, 1, "labels (N,)", labels_path)
    for array, rank, what, path in expected:
        if array.dtype != np.uint8 or array.ndim != rank:
            raise ValueError(f"{caller} expected uint8 {what} in {path}, got {array.dtype} {array.shape}")
    if len(images) != len(labels):
        raise ValueError(
            f"{caller} expected as many labels as images, got {len(labels)} in {labels_path} and {len(images)} in {images_path}"
        )
    if labels.max() > 9:
        raise ValueError(f"{caller} expected labels 0 to 9 in {labels_path}, got {labels.max()}")
    return images, labels


def _scaled(images: npt.NDArray[Any]) -> Images:
    """(N, H, W) bytes as (N, 1, H, W) in [0, 1]."""
    scaled: Images = np.divide(images[:, None], 255, dtype=np.float32)
    return scaled
