"""examples/toys.py, as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import toys

    return toys


def test_quick_draws_the_picture_and_prints_the_table(toys, tmp_path, capsys):
    out = tmp_path / "new" / "toys.png"
    assert toys.main(["--quick", "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and [p.name for p in out.parent.iterdir()] == ["toys.png"]
    text, progress = capsys.readouterr()
    assert all(toy.name in text and toy.name in progress for toy in toys.TOYS)
    assert "smoke test" in text and "\x1b" not in text
    assert max(map(len, text.splitlines()[:-1])) <= 100


@pytest.mark.parametrize(
    "plain, batchnorm, accuracy, error",
    [
        ([90.0, 92.0], [95.0, 96.0], "BatchNorm helped", "BatchNorm hurt"),
        ([95.0, 96.0], [90.0, 92.0], "BatchNorm hurt", "BatchNorm helped"),
        ([90.0, 95.0], [94.0, 99.0], "no difference", "no difference"),
        ([float("inf")], [1.0], "BatchNorm hurt", "BatchNorm helped"),
    ],
)
def test_a_verdict_needs_seeds_that_do_not_overlap(toys, plain, batchnorm, accuracy, error):
    spirals, _, curve = toys.TOYS
    assert toys.verdict(spirals, plain, batchnorm) == accuracy
    assert toys.verdict(curve, plain, batchnorm) == error


def test_the_same_seed_gives_the_same_network(toys):
    (_, first), (_, again), (_, other) = (toys.train(toys.TOYS[2], "batch", seed, 5, lambda: None) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seed", "-1"], "expected a number of at least 0, got -1"),
        (["--seed", "x"], "invalid int value"),
        (["--out", "/dev/null/toys.png"], "cannot write into /dev/null"),
        (["--out", "/tmp"], "expected a file for the picture"),
    ],
)
def test_bad_flags_are_refused_before_any_work(toys, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        toys.main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
