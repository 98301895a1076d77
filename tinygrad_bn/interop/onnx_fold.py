"""Steps of a recording that become one: a convolution with what its layer did around it; BatchNorm folded into its layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from ..batchnorm.folding import affine, fold_arrays
from .onnx_trace import Step, Trace, Value, needed, values_of


class _Uses:
    """Who makes a value, and how many read it; the model's caller reads the outputs."""

    def __init__(self, recorded: Trace):
        self.maker = {id(step.out): step for step in recorded.steps}
        self.readers = Counter(id(v) for step in recorded.steps for v in values_of(step))
        self.readers.update(map(id, recorded.outputs))

    def made(self, x: Any, *ops: str) -> Step | None:
        """The step that made x, if it is one of these operations, and nobody but the asker reads x."""
        step = self.maker.get(id(x))
        return step if step is not None and step.op in ops and self.readers[id(x)] == 1 else None

    def before(self, x: Any) -> Any:
        """What was reshaped to x, or None."""
        step = self.maker.get(id(x))
        return step.inputs[0] if step is not None and step.op == "reshape" else None


def merge(recorded: Trace) -> Trace:
    """One step for what ``conv1d`` and ``conv_transpose2d`` do by several: ONNX has an operation for each."""
    uses = _Uses(recorded)
    merged: dict[int, Step] = {}
    for step in recorded.steps:
        one = _conv1d(uses, step) if step.op == "reshape" else _conv_transpose2d(uses, step) if step.op == "add" else None
        if one is not None:
            merged[id(step)] = one
    steps = [merged.get(id(step), step) for step in recorded.steps]
    return replace(recorded, steps=needed(steps, recorded.outputs))


def _conv1d(uses: _Uses, step: Step) -> Step | None:
    """(N, C, L) as (N, C, 1, L), conv2d, and back."""
    conv = uses.made(step.inputs[0], "conv2d")
    if conv is None:
        return None
    x, w = uses.before(conv.inputs[0]), uses.before(conv.inputs[1])
    for small, large in ((x, conv.inputs[0]), (w, conv.inputs[1]), (step.out, conv.out)):
        if small is None or large.shape != (*small.shape[:2], 1, *small.shape[2:]):
            return None
    how = {k: v[1:] if isinstance(v, tuple) else v for k, v in conv.options.items()}
    return replace(step, op="conv1d", inputs=[x, w, conv.inputs[2]], options=how, changing=[])


def _conv_transpose2d(uses: _Uses, step: Step) -> Step | None:
    """The product, plus the bias along axis 1."""
    product = uses.made(step.inputs[0], "conv2d_input")
    bias = uses.before(step.inputs[1])
    if product is None or bias is None or bias.ndim != 1 or step.inputs[1].shape != (1, *bias.shape, 1, 1):
        return None
    return replace(step, op="conv_transpose2d", inputs=[*product.inputs, bias], options=product.options, changing=[])


# ----- BatchNorm: which of the recorded ones a layer can take in. What then becomes of its arrays, batchnorm.folding knows (it
# folds modules in place; here a layer that is called twice may take in another BatchNorm each time). What comes after BatchNorm
# is left alone: zeros that a convolution pads are not normalised.


def fold(recorded: Trace) -> Trace:
    """The recording without those BatchNorms that a linear or convolution layer before them can take in."""
    uses = _Uses(recorded)
    folded: dict[int, Step] = {}
    for step in recorded.steps:
        if step.op == "batch_norm_inference":
            layer = uses.made(step.inputs[0], *_LAYERS)
            if layer is not None and _constant(step.inputs[1:]) and _constant(layer.inputs[1:]) and _by_channel(layer):
                folded[id(step)] = _folded(layer, step)
    steps = [folded.get(id(step), step) for step in recorded.steps]
    return replace(recorded, steps=needed(steps, recorded.outputs))


_LAYERS = "conv1d", "conv2d", "conv2d_input", "conv_transpose2d", "linear"


def _constant(values: list[Any]) -> bool:
    return all(v is None or (isinstance(v, Value) and v.kind in ("parameter", "buffer", "constant")) for v in values)


def _by_channel(layer: Step) -> bool:
    """Whether the layer's outputs lie along axis 1, as BatchNorm's channels do."""
    return layer.op != "linear" or layer.out.ndim == 2


def _folded(layer: Step, norm: Step) -> Step:
    """The layer with the normalisation's scale in its weight and the rest in its bias, computed in float64."""
    w, b = layer.inputs[1], layer.inputs[2] if len(layer.inputs) > 2 else None
    gamma, beta, mean, var = (None if v is None else v.numpy() for v in norm.inputs[1:])
    a, c = affine(gamma, beta, mean, var, norm.options["eps"])
    transposed = layer.op in ("conv2d_input", "conv_transpose2d")
    groups = layer.options["groups"] if transposed else None
    weight, bias = fold_arrays(w.numpy(), None if b is None else b.numpy(), a, c, groups)
    b_name = b.name if b is not None else f"{layer.path}.bias" if layer.path else "bias"
    arrays = [Value("parameter", f"{name}.folded", v, v.shape) for name, v in ((w.name, weight), (b_name, bias))]
    op = "conv_transpose2d" if transposed else layer.op
    return replace(layer, op=op, inputs=[layer.inputs[0], *arrays], out=norm.out)
