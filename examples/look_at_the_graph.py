"""Draw the autograd graph of a small network with BatchNorm: forward, backward, and second order.

python examples/look_at_the_graph.py [FOLDER]     # writes three pictures into results/, or FOLDER, and prints two tables
"""

import sys
from pathlib import Path

import numpy as np

import tinygrad_bn as tg
from tinygrad_bn import graph, nn

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
folder.mkdir(parents=True, exist_ok=True)
tg.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
x, labels, w = tg.randn(8, 2), np.array([0, 1] * 4), model[0].weight
tg.cross_entropy(model(x), labels).backward()  # once before, so that no time below is that of loading a kernel
model.zero_grad()

# A training step: what ran, what each rule keeps until backward, and what the gradients reached.
with graph.record(model) as tape:
    tg.cross_entropy(model(x), labels).backward()
(folder / "forward.svg").write_text(tape.to_svg(), encoding="utf-8")
print(tape.summary(), tape.profile(), sep="\n\n")

# With create_graph=True the gradient rules are operations like any others: here is what backward did.
with graph.record(model) as tape:
    (g,) = tg.grad(tg.cross_entropy(model(x), labels), w, create_graph=True)
(folder / "backward.svg").write_text(tape.to_svg(), encoding="utf-8")

# Any tensor shows the graph behind it, without a recording: this is the gradient of a gradient's squared length.
(second,) = tg.grad((g * g).sum(), w, create_graph=True)
(folder / "second_order.svg").write_text(graph.trace(second, model).to_svg(), encoding="utf-8")
print(f"\nwrote forward.svg, backward.svg and second_order.svg into {folder}")
