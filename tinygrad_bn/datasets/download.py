"""The four original MNIST files, from public mirrors into a cache, with their checksums."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from .idx import unzipped

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


class Checksums(NamedTuple):
    gz_md5: str  # of the .gz file, as the mirrors publish it
    sha256: str  # of what is in it


ORIGINALS = {
    "train-images-idx3-ubyte": Checksums(
        "f68b3c2dcbeaaa9fbdd348bbdeb94873", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train-labels-idx1-ubyte": Checksums(
        "d53e105ee54ea40749a09fcbcd1e9432", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "t10k-images-idx3-ubyte": Checksums(
        "9fb629c4189551a2d022fa330f9573f3", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "t10k-labels-idx1-ubyte": Checksums(
        "ec29112dd5afa0611ce80d1b7f02629c", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
}


def download() -> Path:
    """The directory that holds the four original files as .gz, downloading those that are not there yet.

    It is `mnist` in the cache: $TINYGRAD_BN_CACHE, or the system's place for caches. Raises ImportError without
    pooch and tqdm, ConnectionError if no mirror serves an intact file, OSError if the cache cannot be written.
    """
    try:
        import pooch  # type: ignore[import-untyped]
        import tqdm  # type: ignore[import-untyped]  # noqa: F401  (pooch would ask for it only mid-way)
    except ImportError as error:
        raise ImportError(
            f"mnist('full') needs {error.name} to download: pip install 'tinygrad_bn[examples]'", name=error.name
        ) from error
    folder = Path(os.environ.get("TINYGRAD_BN_CACHE") or pooch.os_cache("tinygrad_bn")) / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    for name, checksums in ORIGINALS.items():
        _fetch(name, checksums, folder)
    return folder


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, unzipped if it is gzip. ValueError if the gzip data is damaged."""
    digest = hashlib.sha256()
    with unzipped(path) as stream:
        while chunk := stream.read(1 << 18):
            digest.update(chunk)
    return digest.hexdigest()


def _keep_if_original(path: Path, expected: str) -> None:
    """Remove the file and raise ValueError if its content is another."""
    try:
        got = sha256(path)
        if got != expected:
            raise ValueError(f"expected content of SHA-256 {expected}, got {got}")
    except ValueError:
        path.unlink()
        raise


def _fetch(name: str, checksums: Checksums, folder: Path) -> None:
    """Put one file into the folder from the first mirror that serves it intact; an intact one there is kept."""
    import pooch

    failures = []
    for mirror in MIRRORS:
        address = f"{mirror}{name}.gz"
        try:
            # pooch moves a file into the folder only once its MD5 is right, and needs no network if it already is
            path = Path(pooch.retrieve(address, f"md5:{checksums.gz_md5}", f"{name}.gz", path=folder, progressbar=True))
            _keep_if_original(path, checksums.sha256)
            return
        except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong checksum is a ValueError
            failures.append(f"  {address}: {error}")
    raise ConnectionError(
        f"mnist('full') could not download {name}.gz:\n"
        + "\n".join(failures)
        + "\nmnist(source=DIR) reads files downloaded by hand; mnist() needs no download."
    )
