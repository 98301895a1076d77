"""How many floating-point operations an operation takes.

An addition, a multiplication, a division, a comparison and a function such as exp count one each; moving elements counts
nothing. So a product of matrices counts 2 n k m, which is exact for the textbook's loop; for the rest it is a count of the
textbook's formula, not of what a kernel does.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from .tape import Step, Tape

Shape = tuple[int, ...]


def _einsum(_: Shape, shapes: list[Any], options: dict) -> int:
    sizes: dict[str, int] = {}
    for letters, shape in zip(options["inputs"], shapes, strict=True):
        for letter, n in zip(letters, shape, strict=True):
            sizes[letter] = max(n, sizes.get(letter, 0))
    return len(shapes) * prod(sizes.values())


def _windows(shape: Shape, options: dict) -> int:
    return prod(shape) * prod(options["kernel"])


PRODUCTS: dict[str, Callable[[Shape, list[Any], dict], int]] = {
    "matmul": lambda out, shapes, _: 2 * prod(out) * shapes[0][-1],
    "linear": lambda out, shapes, _: 2 * prod(out) * shapes[1][1],
    "einsum": _einsum,
    "conv2d": lambda out, shapes, _: 2 * prod(out) * prod(shapes[1][1:]),
    "conv2d_input": lambda _, shapes, __: 2 * prod(shapes[0]) * prod(shapes[1][1:]),
    "conv2d_weight": lambda out, shapes, _: 2 * prod(shapes[0]) * prod(out[1:]),
}
POOLS: dict[str, Callable[[Shape, list[Any], dict], int]] = {
    "avg_pool2d": lambda out, _, options: _windows(out, options),
    "max_pool2d": lambda out, _, options: _windows(out, options),
    "avg_pool2d_spread": lambda _, shapes, options: _windows(shapes[0], options),
    "max_pool2d_scatter": lambda _, shapes, __: prod(shapes[0]),
}
FOR_EACH_OUTPUT = {
    **dict.fromkeys(
        "abs add div erf exp expm1 log log1p maximum minimum mul neg pow relu sign sqrt square sub tanh".split(), 1
    ),
    **{"where": 1, "clip": 2, "dropout": 2, "leaky_relu": 2, "rsqrt": 2, "elu": 3},
    **{"gelu": 5, "sigmoid": 4, "silu": 5, "softplus": 5, "batch_norm_inference": 2},
}
FOR_EACH_INPUT = {
    **dict.fromkeys("all_reduce argmax cumsum max mean min reduce sum sum_pixels sum_to".split(), 1),
    **{"var": 4, "logsumexp": 4, "softmax": 5, "log_softmax": 5, "cross_entropy": 6},
    **dict.fromkeys("batch_norm layer_norm group_norm sync_batch_norm".split(), 7),
}
MOVES = frozenset(
    "broadcast broadcast_to cast concatenate flip getitem max_pool2d_gather pad put reshape to_device transpose weigh".split()
)


def forward_flops(tape: Tape, step: Step) -> int | None:
    """Of running the operation once; None for one that is not known here."""
    shapes = [tape.shape_of(ref) for ref in step.inputs]
    if step.op in MOVES:
        return 0
    if step.op in FOR_EACH_OUTPUT:
        return FOR_EACH_OUTPUT[step.op] * prod(step.shape)
    if step.op in FOR_EACH_INPUT:
        return FOR_EACH_INPUT[step.op] * prod(shapes[0] or ())
    count = {**PRODUCTS, **POOLS}.get(step.op)
    if count is None or any(s is None for s in shapes[:2]):
        return None
    bias = prod(step.shape) if step.op in ("linear", "conv2d") and len(shapes) > 2 and shapes[2] is not None else 0
    return count(step.shape, shapes, step.options) + bias


def backward_flops(tape: Tape, step: Step) -> int | None:
    """Of the step's rule in the first walk that reached it: for a product one product for each of its factors that got a
    gradient, and a sum for its bias; for any other operation, as an estimate, as many as forward for each gradient of an
    array of at least half the output's size, and the output's size for a smaller one."""
    total = 0
    for i in step.contributions:
        if step.op in PRODUCTS:
            if i == 2 and step.op in ("linear", "conv2d"):
                total += prod(step.shape)
                continue
            total += PRODUCTS[step.op](step.shape, [tape.shape_of(ref) for ref in step.inputs], step.options)
        else:
            forward = forward_flops(tape, step)
            if forward is None:
                return None
            small = 2 * prod(tape.shape_of(step.inputs[i]) or ()) < prod(step.shape)
            total += min(forward, prod(step.shape)) if small else forward
    return total
