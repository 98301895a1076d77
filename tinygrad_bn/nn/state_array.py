"""The arrays of a state dict: NumPy's, which PyTorch's ``load_state_dict`` takes for tensors."""

from __future__ import annotations

from typing import Any

import numpy as np


class StateArray(np.ndarray):
    """A NumPy array that PyTorch may copy into its parameters; whatever is computed with it is an ordinary array again.

    PyTorch asks for no more than this method, so nothing here imports it.
    """

    @classmethod
    def __torch_function__(cls, function: Any, _types: Any, args: tuple = (), options: dict | None = None) -> Any:
        import torch

        def tensor(x: Any) -> Any:
            return torch.from_numpy(np.array(x)) if isinstance(x, cls) else x

        return function(*map(tensor, args), **{name: tensor(x) for name, x in (options or {}).items()})

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:  # noqa: ARG002
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain


def state_array(array: Any) -> Any:
    """A copy of an array for a state dict; from CUDA, an array of CuPy's own."""
    return array.copy().view(StateArray) if isinstance(array, np.ndarray) else array.copy()
