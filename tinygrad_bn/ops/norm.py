"""Normalisations, and dropout.

Each has a fused kernel for the forward pass, one for the gradient when nobody watches, and a rule written in operations, from
differentiable inputs alone, that is exact at every order.
"""

from __future__ import annotations

from math import prod

from .. import random
from ..backend import kernels_of
from ..core import Box, cast, primitive
from .checks import axes_of, is_int, need_floating, need_number, shape_of
from .elementwise import rsqrt, sqrt
from .reduce import mean
from .reduce import sum as sum_
from .shape import reshape


def channel_axes(ndim):
    """The axes over which BatchNorm takes its statistics: all but 1."""
    return (0, *range(2, ndim))


def check_parameters(name, x, parameters, shape, what="one value per channel"):
    """Shapes and dtypes of a normalisation's input and of its parameters by name, of which gamma and beta may be None."""
    need_floating(name, x)
    dtype = x.dtype
    for label, p in parameters.items():
        if p is None and label in ("gamma", "beta"):
            continue
        if getattr(p, "shape", None) != shape and shape_of(name, p, label) != shape:
            raise ValueError(
                f"{name} expected {label} of shape {shape} ({what}) for an input of shape {x.shape}, got {p.shape}"
            )
        # float16 inputs go with float32 parameters: statistics in half precision are not worth having
        if p.dtype != dtype and not (dtype == "float16" and p.dtype == "float32"):
            raise TypeError(f"{name} expected one dtype, got an input of {x.dtype} and {label} of {p.dtype}")
    if (parameters.get("gamma") is None) != (parameters.get("beta") is None):
        raise ValueError(f"{name} expected both gamma and beta, or neither")


def _wide(x):
    """float16 as float32."""
    return cast(x, dtype="float32") if x.dtype == "float16" else x


def rule(g, x, gamma, axes, eps, view, affine_axes, mean=mean):
    """dx, dgamma, dbeta of gamma (x - mean) / sqrt(var + eps) + beta, in operations. Ioffe & Szegedy 2015, section 3.

    ``axes``: of the statistics; ``view``: gamma's shape when it is multiplied; ``affine_axes``: along which gamma repeats;
    ``mean``: another one, over more than this x.
    """
    g, x = _wide(g), _wide(x)
    d = x - mean(x, axes, keepdims=True)
    d = d - mean(d, axes, keepdims=True)  # the mean of large numbers is rounded; nothing in exact arithmetic
    inv_std = rsqrt(mean(d * d, axes, keepdims=True) + eps)
    x_hat = d * inv_std
    h = g if gamma is None else g * reshape(gamma, view)
    dx = inv_std * (h - mean(h, axes, keepdims=True) - x_hat * mean(h * x_hat, axes, keepdims=True))
    if gamma is None:
        return dx, None, None
    return dx, reshape(sum_(g * x_hat, affine_axes), gamma.shape), reshape(sum_(g, affine_axes), gamma.shape)


# ----- batch normalisation


@primitive(aux=True)
def batch_norm(x, gamma=None, beta=None, *, eps=1e-5):
    """(N, C, *S), (C,), (C,) -> (N, C, *S), with statistics of the batch: y = gamma (x - mu) / sqrt(var + eps) + beta.

    aux: the batch's mean and biased variance, (C,), in at least float32. gamma and beta may both be None. Ioffe & Szegedy
    2015, Algorithm 1. Raises ValueError for fewer than two values per channel.
    """
    eps = _check_batch(x, gamma, beta, eps)
    return kernels_of(x).batch_norm(x, gamma, beta, eps)


def _check_batch(x, gamma, beta, eps):
    """eps as a float; the rest is for raising."""
    eps = check_batch("batch_norm", x, gamma, beta, eps)
    m = x.size // x.shape[1] if x.shape[1] else 0
    if m < 2:
        raise ValueError(
            f"batch_norm expected more than 1 value per channel in training, got {m} (input of shape {x.shape}); is this a "
            "last, partial batch? Leave it out with drop_last=True"
        )
    return eps


def check_batch(name, x, gamma, beta, eps):
    """eps as a float, of any number of examples; the rest is for raising."""
    if len(shape_of(name, x)) < 2:
        raise ValueError(f"{name} expected an input of shape (N, C, ...), got {x.shape}")
    check_parameters(name, x, {"gamma": gamma, "beta": beta}, x.shape[1:2])
    return need_number(name, "eps", eps, 0)


@batch_norm.vjp
def _(g, _y, x, gamma, _beta, *, aux, eps):
    axes = channel_axes(len(x.shape))
    return rule(g, x, gamma, axes, eps, (1, -1) + (1,) * (len(x.shape) - 2), axes)


@batch_norm.fused_vjp
def _(g, _y, x, gamma, _beta, *, aux, eps):
    return kernels_of(x).batch_norm_backward(g, x, gamma, *aux, eps)


def batch_norm_composed(x, gamma=None, beta=None, eps=1e-5):
    """What batch_norm computes, as a graph of primitive operations: to be looked at, and to hold the fused one against."""
    return composed(x, gamma, beta, _check_batch(x, gamma, beta, eps))


def composed(x, gamma, beta, eps, mean=mean):
    """batch_norm_composed, of checked arguments. ``mean``: another one, over more than this x."""
    dtype, x = x.dtype, _wide(x)
    axes = channel_axes(len(x.shape))
    mu = mean(x, axes, keepdims=True)
    centred = x - mu
    rest = mean(centred, axes, keepdims=True)  # the mean of large numbers is rounded; nothing in exact arithmetic
    mu, centred = mu + rest, centred - rest
    var = mean(centred * centred, axes, keepdims=True)
    y = centred / sqrt(var + eps)
    if gamma is not None:
        y = y * _column(gamma, x) + _column(beta, x)
    statistics = tuple((v._data if isinstance(v, Box) else v).reshape(-1) for v in (mu, var))
    return (y if y.dtype == dtype else cast(y, dtype=dtype)), statistics


@primitive
def batch_norm_inference(x, gamma=None, beta=None, mean=None, var=None, *, eps=1e-5):
    """(N, C, *S), four times (C,) -> (N, C, *S): y = gamma (x - mean) / sqrt(var + eps) + beta, with the given statistics.

    An affine map for each channel: no example depends on another. gamma and beta may both be None, mean and var may not.
    Ioffe & Szegedy 2015, Algorithm 2.
    """
    if x.ndim < 2:
        raise ValueError(f"batch_norm_inference expected an input of shape (N, C, ...), got {x.shape}")
    parameters = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    check_parameters("batch_norm_inference", x, parameters, x.shape[1:2])
    eps = need_number("batch_norm_inference", "eps", eps, 0)
    return kernels_of(x).batch_norm_inference(x, gamma, beta, mean, var, eps)


def _column(v, x):
    """(C,) so that it multiplies (N, C, *S)."""
    return reshape(v, (1, -1) + (1,) * (len(x.shape) - 2))


def _scale(gamma, var, eps):
    return rsqrt(var + eps) if gamma is None else gamma * rsqrt(var + eps)


batch_norm_inference.defvjp(
    lambda g, _y, _x, gamma, _beta, _mean, var, *, eps: g * _column(_scale(gamma, var, eps), _x),
    lambda g, _y, x, _gamma, _beta, mean, var, *, eps: (
        sum_(g * (x - _column(mean, x)), channel_axes(len(x.shape))) * rsqrt(var + eps)
    ),
    lambda g, _y, _x, _gamma, _beta, _mean, _var, *, eps: sum_(g, channel_axes(len(_x.shape))),
    lambda g, _y, _x, gamma, _beta, _mean, var, *, eps: -sum_(g, channel_axes(len(_x.shape))) * _scale(gamma, var, eps),
    lambda g, _y, x, gamma, _beta, mean, var, *, eps: (
        sum_(g * (x - _column(mean, x)), channel_axes(len(x.shape))) * (-0.5 * _scale(gamma, var, eps) / (var + eps))
    ),
)


# ----- layer and group normalisation


@primitive(aux=True)
def _layer_norm(x, gamma=None, beta=None, *, axes, eps):
    return kernels_of(x).layer_norm(x, gamma, beta, axes, eps)


def _layer_view(shape, axes):
    return tuple(n if i in axes else 1 for i, n in enumerate(shape))


@_layer_norm.vjp
def _(g, _y, x, gamma, _beta, *, aux, axes, eps):
    others = tuple(i for i in range(len(x.shape)) if i not in axes)
    return rule(g, x, gamma, axes, eps, _layer_view(x.shape, axes), others)


@_layer_norm.fused_vjp
def _(g, _y, x, gamma, _beta, *, aux, axes, eps):
    return kernels_of(x).layer_norm_backward(g, x, gamma, *aux, axes, eps)


def layer_norm(x, gamma=None, beta=None, axes=-1, eps=1e-5):
    """Normalise each example over ``axes`` (an int or a tuple); gamma and beta have the shape of x along them, or are None.

    y = gamma (x - mean) / sqrt(var + eps) + beta. No example depends on another. Ba, Kiros & Hinton 2016.
    """
    axes = tuple(sorted(axes_of("layer_norm", len(shape_of("layer_norm", x)), axes)))
    shape = tuple(x.shape[a] for a in axes)
    if not axes or prod(shape) == 0:
        raise ValueError(f"layer_norm expected at least one element to normalise over, got an input of shape {x.shape}")
    check_parameters("layer_norm", x, {"gamma": gamma, "beta": beta}, shape, "that of the normalised axes")
    eps = need_number("layer_norm", "eps", eps, 0)
    return _layer_norm(x, gamma, beta, axes=axes, eps=eps)[0]


@primitive(aux=True)
def _group_norm(x, gamma=None, beta=None, *, num_groups, eps):
    return kernels_of(x).group_norm(x, gamma, beta, num_groups, eps)


@_group_norm.vjp
def _(g, _y, x, gamma, _beta, *, aux, num_groups, eps):
    n, c, *rest = x.shape
    grouped = (n, num_groups, c // num_groups, *rest)
    axes = tuple(range(2, len(grouped)))
    view = (1, num_groups, c // num_groups, *(1,) * len(rest))
    dx, dgamma, dbeta = rule(reshape(g, grouped), reshape(x, grouped), gamma, axes, eps, view, (0, *axes[1:]))
    return reshape(dx, x.shape), dgamma, dbeta


@_group_norm.fused_vjp
def _(g, _y, x, gamma, _beta, *, aux, num_groups, eps):
    return kernels_of(x).group_norm_backward(g, x, gamma, *aux, num_groups, eps)


def group_norm(x, gamma=None, beta=None, num_groups=1, eps=1e-5):
    """(N, C, *S), (C,), (C,) -> (N, C, *S): normalise each example over each of ``num_groups`` groups of channels.

    gamma and beta may both be None. No example depends on another. Wu & He 2018.
    """
    if len(shape_of("group_norm", x)) < 2:
        raise ValueError(f"group_norm expected an input of shape (N, C, ...), got {x.shape}")
    if not is_int(num_groups) or num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(f"group_norm expected num_groups to divide the {x.shape[1]} channels, got {num_groups!r}")
    if prod(x.shape[1:]) == 0:
        raise ValueError(f"group_norm expected at least one element to normalise over, got an input of shape {x.shape}")
    check_parameters("group_norm", x, {"gamma": gamma, "beta": beta}, x.shape[1:2])
    eps = need_number("group_norm", "eps", eps, 0)
    return _group_norm(x, gamma, beta, num_groups=int(num_groups), eps=eps)[0]


# ----- dropout


@primitive
def _dropout(x, *, p, key):
    return kernels_of(x).dropout(x, p, key)


_dropout.defvjp(lambda g, _out, _x, *, p, key: _dropout(g, p=p, key=key))  # linear, and its own adjoint: no mask is kept


def dropout(x, p=0.5, training=True):
    """x with each element zeroed with probability p, the others divided by 1 - p; x itself when not training.

    Srivastava et al. 2014. The mask is a function of one key drawn from the package's generator (``manual_seed``) and of the
    element's position: the same on every device, whatever the dtype.
    """
    p = need_number("dropout", "a probability p", p, 0, 1)
    shape_of("dropout", x)
    need_floating("dropout", x)
    return _dropout(x, p=float(p), key=random.draw_key()) if training and p else x
