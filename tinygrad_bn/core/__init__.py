"""The engine: primitives that record nodes, and the walk that runs their gradient rules backwards.

A *primitive* is a function of arrays. A *rule* is ordinary code in ``(g, out, *inputs)``. When nobody watches, rules get
raw arrays; when the gradient is itself recorded (``create_graph=True``) they get Tensors, so that one rule serves every
order of differentiation. How to write both is told at the top of ``ops/__init__.py``.
"""

from . import graph, modes
from .autograd import backward, grad
from .graph import Absent, AddAt, Box, LeafHooks, Node, Wishes
from .modes import Listener, enable_grad, is_grad_enabled, listening, no_grad, set_grad_enabled
from .primitive import Primitive, primitive
from .walk import broadcast_to, cast, sum_to

__all__ = [
    "Absent", "AddAt", "Box", "LeafHooks", "Listener", "Node", "Primitive", "Wishes", "backward", "broadcast_to", "cast",
    "enable_grad", "grad", "graph", "is_grad_enabled", "listening", "modes", "no_grad", "primitive", "set_grad_enabled",
    "sum_to",
]  # fmt: skip
