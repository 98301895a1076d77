"""Make the embedded subset of MNIST: python -m tinygrad_bn.datasets.make_subset DIR_WITH_THE_ORIGINAL_IDX_FILES

It takes every 6th training and every 5th test image rather than the first ones, since the files are not shuffled: the
two halves of the test set come from different NIST databases. Nearest neighbour on the first 10,000 training images
errs on 7.3% of the first half and on 3.4% of the second, so the first 2,000 test images would not speak for the rest.
"""

import sys
from pathlib import Path

import numpy as np

from .download import ORIGINALS, sha256
from .idx import read_idx
from .mnist import SUBSET, find_originals

TRAIN_STEP, TEST_STEP = 6, 5


def make_subset(directory: Path, target: Path) -> None:
    """Write the subset of the original files in `directory` to `target`, an .npz; the same bytes every time.

    It holds x_train (10000, 28, 28), y_train (10000,), x_test (2000, 28, 28) and y_test (2000,), all uint8.
    Raises FileNotFoundError for a missing file, ValueError for one that is not the original.
    """
    arrays = {}
    for name, path in find_originals(directory, "make_subset").items():
        got, expected = sha256(path), ORIGINALS[name].sha256
        if got != expected:
            raise ValueError(f"make_subset expected content of SHA-256 {expected} in {path}, got {got}")
        arrays[name] = read_idx(path)
    with target.open("wb") as file:
        np.savez_compressed(  # it dates every member 1980, so the bytes depend on the pixels (and on zlib) alone
            file,
            x_train=arrays["train-images-idx3-ubyte"][::TRAIN_STEP],
            y_train=arrays["train-labels-idx1-ubyte"][::TRAIN_STEP],
            x_test=arrays["t10k-images-idx3-ubyte"][::TEST_STEP],
            y_test=arrays["t10k-labels-idx1-ubyte"][::TEST_STEP],
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tinygrad_bn.datasets.make_subset DIR")
    make_subset(Path(sys.argv[1]), Path(__file__).with_name(SUBSET))
