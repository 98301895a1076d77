"""The engine in 30 lines: a tensor, a graph, a gradient; on the CPU, or with --device cuda on a GPU."""

import argparse

import tinygrad_bn as tg

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--device", help="cpu or cuda; by default the environment's TINYGRAD_BN_DEVICE, else cpu")
device = parser.parse_args().device

# A tensor is an array that remembers how it was made.
x = tg.tensor([[1.0, 2.0], [3.0, 5.0], [5.0, 11.0]], device=device)  # three examples of two features
w = tg.tensor([0.5, -0.25], device=device, requires_grad=True)
print(f"x on {x.device}, {x.dtype}:\n{x}\nw = {w}")

# Every operation on w adds a node to a graph.
y = ((x - x.mean(axis=0)) @ w).tanh()
loss = (y * y).sum()
print(f"loss = {loss.item():.6f}, made by {loss.node.name} from {loss.node.parents[0].name}")

# backward() walks the graph from the loss to the leaves. Here is its gradient, and the slope measured by two small steps.
loss.backward()
step = tg.tensor([1e-2, 0.0], device=device)
ahead, behind = ((((x - x.mean(axis=0)) @ v).tanh() ** 2).sum().item() for v in (w.detach() + step, w.detach() - step))
print(f"dloss/dw = {w.grad}; measured along w[0]: {(ahead - behind) / 2e-2:.4f}")

# A gradient is made of operations too, so it has a gradient: here a row of the Hessian.
cube = (w**3).sum()
(slope,) = tg.grad(cube, w, create_graph=True)
(curvature,) = tg.grad(slope.sum(), w)
print(f"w**3 has the slope {slope.detach()} and the curvature {curvature}")
