"""The claims of examples/claims import each other by their plain names, as they do when run."""

import sys
from pathlib import Path

import pytest

CLAIMS = Path(__file__).resolve().parents[3] / "examples" / "claims"
sys.path.append(str(CLAIMS))
for library in ("matplotlib", "tqdm", "scipy"):
    pytest.importorskip(library)


@pytest.fixture
def results():
    """Results from pairs of a trial and what came of it."""
    import claim

    def made(*pairs):
        return claim.Results(claim.Record(trial, result, 1.0, "a commit") for trial, result in pairs)

    return made


@pytest.fixture
def draws():
    """Draws both pictures of a claim from results, and holds them to what every picture must be."""
    import style

    def check(module, done):
        for width in (style.WIDE, style.NARROW):
            canvas = style.picture(lambda canvas: module.draw(done, canvas), width)
            assert canvas.figure.get_size_inches()[0] == width
            for axes in canvas.figure.axes:
                assert axes.get_xlabel() or axes.get_ylabel() or not axes.axison, f"{axes.get_title(loc='left')} has no labels"
                box = axes.get_position()
                assert box.width * width > 1.2, "a panel is squeezed"
        assert module.headline(done).strip() and all(remark.endswith(".") for remark in module.remarks(done))

    return check
