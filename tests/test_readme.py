"""The README's code runs, and what it says of the commands is so."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
@pytest.mark.parametrize("device_name", ["cpu", "cuda"])
def test_each_block_of_python_runs(number, device_name, capsys, tmp_path, monkeypatch, cuda_stand_in):
    if device_name == "cuda" and "np.savez" in BLOCKS[number]:
        pytest.skip("NumPy saves arrays of the CPU")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYGRAD_BN_DEVICE", device_name)
    code = BLOCKS[number]
    if "import tinygrad_bn" not in code:  # a fragment: it needs the names that the text around it speaks of
        code = "from tinygrad_bn import primitive\n" + code
    exec(compile(code, f"README.md, block {number}", "exec"), {"__name__": "readme"})
    if number == 0:
        assert float(capsys.readouterr().out) > 0.9


def test_the_first_example_is_short():
    assert len(BLOCKS[0].strip().splitlines()) <= 12


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in target or (ROOT / target).exists(), target
    for path in re.findall(r"`((?:examples|benchmarks|tests|tinygrad_bn)/[\w/.-]+)`", README):
        assert (ROOT / path).exists(), path


def test_core_imports_none_of_the_extras():
    import subprocess

    code = (
        "import sys, tinygrad_bn; "
        "print([m for m in ('cupy', 'matplotlib', 'tqdm', 'pooch', 'torch', 'threadpoolctl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
