"""Data to train on: MNIST and its relatives as NumPy arrays, and batches that can be shuffled and resumed."""

from .batches import Batches, batches
from .idx import read_idx
from .mnist import fashion_mnist, mnist

__all__ = ["Batches", "batches", "fashion_mnist", "mnist", "read_idx"]
