"""Elementwise operations. Inputs broadcast; the walk sums the gradients back."""

# ruff: noqa: A001 (abs and pow are the names that users know)
from __future__ import annotations

import math

from ..backend import kernels_of, xp_of
from ..core import primitive

_LARGE = 1 << 14  # elements, from which an addition is worth a kernel: a smaller one takes less time than to look for it


def _xp(*arrays):
    """The namespace of the first array among arrays and numbers."""
    for a in arrays:
        if hasattr(a, "dtype"):
            return xp_of(a)
    return xp_of(arrays[0])


# ----- arithmetic


@primitive
def add(x, y):
    """x + y, broadcast."""
    try:
        return kernels_of(x).add(x, y) if x.size > _LARGE else x + y
    except AttributeError:  # a number
        return x + y


@primitive
def sub(x, y):
    """x - y, broadcast."""
    return x - y


@primitive
def mul(x, y):
    """x * y, broadcast."""
    return x * y


@primitive
def div(x, y):
    """x / y, broadcast."""
    return x / y


@primitive
def neg(x):
    """-x."""
    return -x


@primitive
def pow(x, y):
    """x ** y, broadcast; each of x and y may be a number."""
    return x**y


add.defvjp(lambda g, _out, _x, _y: g, lambda g, _out, _x, _y: g)
sub.defvjp(lambda g, _out, _x, _y: g, lambda g, _out, _x, _y: -g)
mul.defvjp(lambda g, _out, _x, y: g * y, lambda g, _out, x, _y: g * x)
div.defvjp(lambda g, _out, _x, y: g / y, lambda g, _out, x, y: -g * x / (y * y))
neg.defvjp(lambda g, _out, _x: -g)


def _pow_base(g, _out, x, y):
    if isinstance(y, (int, float)):
        return 0.0 * g if y == 0 else g * (y * x ** (y - 1))
    # Where y = 0 the derivative is 0, also at x = 0, where y * x ** (y - 1) would be 0 * inf.
    return where(y == 0, 0.0, g * y * x ** where(y == 0, 1.0, y - 1))


def _pow_exponent(g, out, x, _y):
    if isinstance(x, (int, float)):
        return g * out * math.log(x) if x > 0 else g * (0.0 if x == 0 else math.nan)
    return where(x == 0, 0.0, g * out * log(where(x == 0, 1.0, x)))  # the limit at x = 0 for y > 0


pow.defvjp(_pow_base, _pow_exponent)


# ----- smooth functions of one argument


@primitive
def exp(x):
    """e ** x."""
    return _xp(x).exp(x)


@primitive
def log(x):
    """The natural logarithm; NaN for x < 0, -inf at 0."""
    return _xp(x).log(x)


@primitive
def log1p(x):
    """log(1 + x), exact for small x."""
    return _xp(x).log1p(x)


@primitive
def expm1(x):
    """e ** x - 1, exact for small x."""
    return _xp(x).expm1(x)


@primitive
def sqrt(x):
    """The square root; NaN for x < 0."""
    return _xp(x).sqrt(x)


@primitive
def rsqrt(x):
    """1 / sqrt(x)."""
    return 1.0 / _xp(x).sqrt(x)


@primitive
def square(x):
    """x * x."""
    return x * x


@primitive
def tanh(x):
    """The hyperbolic tangent."""
    return _xp(x).tanh(x)


@primitive
def sigmoid(x):
    """1 / (1 + e ** -x), without overflow."""
    return kernels_of(x).sigmoid(x)


@primitive
def softplus(x):
    """log(1 + e ** x), without overflow."""
    xp = _xp(x)
    return xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(x)))


@primitive
def erf(x):
    """The error function, 2 / sqrt(pi) times the integral of e ** -t**2 from 0 to x."""
    return kernels_of(x).erf(x)


@primitive
def silu(x):
    """x * sigmoid(x). Elfwing et al. 2018; Ramachandran et al. 2017 ("swish")."""
    return x * (0.5 * _xp(x).tanh(0.5 * x) + 0.5)


@primitive
def gelu(x):
    """x * (1 + erf(x / sqrt(2))) / 2, the exact form. Hendrycks & Gimpel 2016."""
    return 0.5 * x * (1.0 + kernels_of(x).erf(x * math.sqrt(0.5)))


exp.defvjp(lambda g, out, _x: g * out)
log.defvjp(lambda g, _out, x: g / x)
log1p.defvjp(lambda g, _out, x: g / (1.0 + x))
expm1.defvjp(lambda g, out, _x: g * (out + 1.0))
sqrt.defvjp(lambda g, out, _x: 0.5 * g / out)
rsqrt.defvjp(lambda g, out, _x: -0.5 * g * out * out * out)
square.defvjp(lambda g, _out, x: 2.0 * g * x)
tanh.defvjp(lambda g, out, _x: g * (1.0 - out * out))
sigmoid.defvjp(lambda g, out, _x: g * out * (1.0 - out))
sigmoid.fused_vjp(lambda g, out, _x: (kernels_of(g).sigmoid_backward(g, out),))
softplus.defvjp(lambda g, _out, x: g * sigmoid(x))
erf.defvjp(lambda g, _out, x: g * (2.0 / math.sqrt(math.pi)) * exp(-x * x))


@silu.vjp
def _(g, _out, x):
    s = sigmoid(x)
    return (g * (s + x * s * (1.0 - s)),)


@gelu.vjp
def _(g, _out, x):  # the derivative is Phi(x) + x phi(x), of the normal distribution
    density = exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
    return (g * (0.5 + 0.5 * erf(x * math.sqrt(0.5)) + x * density),)


# ----- functions with kinks: masks are constants


@primitive
def abs(x):
    """|x|, with the derivative 0 at 0."""
    return _xp(x).abs(x)


@primitive
def sign(x):
    """-1, 0 or 1. No gradient."""
    return _xp(x).sign(x)


@primitive
def relu(x):
    """max(x, 0), with the derivative 0 at 0. NaN stays NaN."""
    return kernels_of(x).relu(x)


@primitive
def leaky_relu(x, *, negative_slope=0.01):
    """x where x > 0, else negative_slope * x."""
    return _xp(x).where(x > 0, x, negative_slope * x)


@primitive
def elu(x, *, alpha=1.0):
    """x where x > 0, else alpha * (e ** x - 1). Clevert et al. 2016."""
    xp = _xp(x)
    return xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0.0)))


@primitive
def maximum(x, y):
    """The larger of x and y, broadcast; where they are equal each gets half of the gradient. NaN if either is."""
    return _xp(x, y).maximum(x, y)


@primitive
def minimum(x, y):
    """The smaller of x and y, broadcast; where they are equal each gets half of the gradient. NaN if either is."""
    return _xp(x, y).minimum(x, y)


@primitive
def where(condition, x, y):
    """x where the condition, of booleans, holds, else y, broadcast. The condition gets no gradient."""
    if not isinstance(condition, bool) and condition.dtype.kind != "b":
        raise TypeError(f"where expected a condition of booleans, got {condition.dtype}")
    out = _xp(condition, x, y).where(condition, x, y)
    if out.dtype.kind not in "fiub":
        raise TypeError(f"where expected numbers, got a result of {out.dtype}")
    return out


@primitive
def clip(x, *, lo=None, hi=None):
    """x, limited to [lo, hi]; None is no limit. The derivative is 1 from lo to hi, both included, and 0 outside."""
    if lo is None and hi is None:
        return x.copy()
    xp = _xp(x)
    try:
        return xp.clip(x, lo, hi)
    except TypeError as error:
        limits = f"{type(lo).__name__} and {type(hi).__name__}"
        raise TypeError(f"clip expected lo and hi to be numbers or None, got {limits}; use maximum and minimum") from error


def _share(x, y, larger):
    """The part of the gradient that goes to x: 1, 0, or half where x and y are equal."""
    return _xp(larger).where(x == y, 0.5, 1.0 * larger)


sign.defvjp(None)
abs.defvjp(lambda g, _out, x: g * sign(x))
relu.defvjp(lambda g, out, _x: g * (out > 0))
relu.fused_vjp(lambda g, out, _x: (kernels_of(g).relu_backward(g, out),))
leaky_relu.defvjp(lambda g, _out, x, *, negative_slope: where(x > 0, g, negative_slope * g))
elu.defvjp(lambda g, _out, x, *, alpha: where(x > 0, g, alpha * g * exp(minimum(x, 0.0))))
maximum.defvjp(
    lambda g, _out, x, y: g * cast_like(g, _share(x, y, x > y)), lambda g, _out, x, y: g * cast_like(g, _share(x, y, y > x))
)
minimum.defvjp(
    lambda g, _out, x, y: g * cast_like(g, _share(x, y, x < y)), lambda g, _out, x, y: g * cast_like(g, _share(x, y, y < x))
)
where.defvjp(None, lambda g, _out, c, _x, _y: where(c, g, 0.0), lambda g, _out, c, _x, _y: where(c, 0.0, g))


@clip.vjp
def _(g, _out, x, *, lo, hi):
    inside = True
    if lo is not None:
        inside = inside & (x >= lo)
    if hi is not None:
        inside = inside & (x <= hi)
    return (g if inside is True else g * inside,)


def cast_like(g, mask):
    """A mask of weights in the dtype of g, so that it does not promote it."""
    return mask.astype(g.dtype)
