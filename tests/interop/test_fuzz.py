"""Damaged files give a result or a ValueError; a few here, 100,000 by ``python tests/interop/fuzz.py``."""

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'tinygrad_bn[interop]'")
pytest.importorskip("resource", reason="only POSIX says how much memory a process has had")

import fuzz  # noqa: E402


@pytest.fixture
def trial(tmp_path):
    yield fuzz.Trial(tmp_path)
    tracemalloc.stop()


def test_whole_files_are_loaded(trial):
    for kind, content in fuzz.originals():
        assert trial.attempt(kind, content) == "loaded"


@pytest.mark.parametrize("kind", fuzz.KINDS)
@given(draw=st.randoms(use_true_random=False), data=st.data())
def test_a_damaged_file_is_a_result_or_a_value_error(trial, kind, draw, data):
    content = data.draw(st.sampled_from([whole for k, whole in fuzz.originals() if k == kind]))
    trial.attempt(kind, fuzz.damaged(draw, kind, content))


def test_some_of_the_damage_comes_through_to_every_check(trial):
    """Else the fuzzing would only test the outermost check."""
    for kind, wanted in {"weights": {"loaded", "refused"}, "checkpoint": {"loaded", "refused", "skipped"}}.items():
        contents = [whole for k, whole in fuzz.originals() if k == kind]
        seen = {trial.attempt(kind, fuzz.damaged(random.Random(i), kind, contents[i % len(contents)])) for i in range(120)}
        assert seen == wanted
