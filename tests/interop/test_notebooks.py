"""How tensors and modules look in a notebook, and that the tour runs from the first cell to the last."""

from __future__ import annotations

import asyncio
import html.parser
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import models, nn

ROOT = Path(__file__).parent.parent.parent
TOUR = ROOT / "examples" / "tour.ipynb"
HOSTILE = '"><img src=x onerror=alert(1)></pre></td><script>alert(2)</script>&amp;'


class Reader(html.parser.HTMLParser):
    """The elements of a page and its text; every element that was opened must be closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.elements.append(tag)
        assert {name for name, _ in attrs} <= {"style"}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_a_tensor_says_what_it_is():
    x = tg.tensor([[1.0, 2.5]], requires_grad=True)
    for t, head in (
        (x, "(1, 2), float32, on cpu, requires grad"),
        (x * 2, "(1, 2), float32, on cpu, made by mul"),
        (tg.tensor(3), "(), int64, on cpu"),
        (tg.zeros(0, 2), "(0, 2), float32, on cpu"),
    ):
        page = Reader(t._repr_html_())
        assert page.elements == ["div", "b", "pre"] and page.text[:2] == ["tensor", f" {head}"]
    assert Reader(x._repr_html_()).text[2] == "[[1. , 2.5]]"


def test_a_large_tensor_is_cut_short():
    assert len(tg.zeros(1000, 1000)._repr_html_()) < 1000


def test_a_tensor_of_cuda(cuda_stand_in):
    page = Reader(tg.tensor([1.0], device="cuda")._repr_html_())
    assert page.text == ["tensor", " (1,), float32, on cuda", "[1.]"]


def test_a_hostile_name_of_an_operation_is_text():
    def double(x):
        return x * 2

    double.__name__ = HOSTILE
    op = tg.primitive(double)
    op.defvjp(lambda g, _out, _x: 2 * g)
    page = Reader(op(tg.tensor([1.0], requires_grad=True))._repr_html_())
    assert page.elements == ["div", "b", "pre"] and HOSTILE in page.text[1]


def test_a_module_is_a_table_of_its_layers():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Linear(2, 3, bias=False)))
    model[0].bias.requires_grad = False
    page = Reader(model.eval()._repr_html_())
    assert page.elements.count("tr") == 6 and page.elements.count("td") == 20 and page.elements.count("th") == 4
    text = "|".join(page.text)
    assert "Sequential|: 30 parameters, in evaluation mode" in text
    for row in (
        "layer|type|tensors|trained",
        "0|Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))|weight (2, 1, 3, 3), bias (2,)|18|",
        "1|BatchNorm2d(2, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)|"
        "weight (2,), bias (2,), running_mean (2,), running_var (2,)|4|",
        "2.0|Linear(in_features=2, out_features=3, bias=False)|weight (3, 2)|6|",
    ):
        assert row in text


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    text = "|".join(Reader(model._repr_html_()).text)
    assert ": 16 parameters" in text and text.count("weight (4, 4)|16") == 1


def test_hostile_names_of_modules_are_text():
    bad = type(HOSTILE, (nn.Module,), {"extra_repr": lambda self: HOSTILE})()
    setattr(bad, HOSTILE, nn.Parameter(np.zeros(2, np.float32)))
    outer = nn.Sequential()
    setattr(outer, HOSTILE, bad)
    assert set(Reader(outer._repr_html_()).elements) == {"b", "div", "table", "td", "th", "tr"}
    assert set(Reader(bad._repr_html_()).elements) == {"b", "div", "table", "td", "th", "tr"}


def test_every_model_of_the_package_has_one():
    for make in (models.mlp, models.cnn, models.resnet20):
        model = make()
        assert Reader(model._repr_html_()).elements.count("tr") == 1 + len(list(model.modules()))


# ----- the tour


def tour():
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'tinygrad_bn[test]'")
    return nbformat.read(TOUR, as_version=4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::PendingDeprecationWarning")
def test_the_tour_runs(monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'tinygrad_bn[test]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install 'tinygrad_bn[test]'")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'tinygrad_bn[examples]'")
    pytest.importorskip("onnx", reason="onnx is not installed: pip install 'tinygrad_bn[interop]'")
    notebook = tour()
    kernels = tmp_path / "kernels" / "this"  # this Python, whatever kernels the machine has
    kernels.mkdir(parents=True)
    command = f'["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    (kernels / "kernel.json").write_text(f'{{"argv": {command}, "display_name": "this", "language": "python"}}')
    for name, value in {
        "JUPYTER_PATH": str(tmp_path), "JUPYTER_PLATFORM_DIRS": "1", "IPYTHONDIR": str(tmp_path / "ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="this", resources={"metadata": {"path": str(tmp_path)}})
    asyncio.run(client.async_execute())  # it raises where a cell does
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code" and "import" not in cell.source)
    pages = [o.data["text/html"] for o in outputs if "data" in o and "text/html" in o.data]
    assert len(pages) >= 2 and all(Reader(p) for p in pages)
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "Traceback" not in printed


def test_the_tour_is_kept_without_outputs():
    notebook = tour()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 8 and not any(cell.outputs or cell.execution_count for cell in code)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert [cell.id for cell in notebook.cells] == [f"cell-{i}" for i in range(len(notebook.cells))]
