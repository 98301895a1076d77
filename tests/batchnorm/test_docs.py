"""docs/batchnorm.md names tests that exist, every code of the doctor, and the benchmark's table in its own form."""

import re
import sys
from pathlib import Path

from tinygrad_bn.batchnorm.report import CODES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/batchnorm.md").read_text()
sys.path.insert(0, str(ROOT / "benchmarks"))
import doctor  # noqa: E402 (benchmarks/ is no package)


def test_each_pitfall_names_a_test_that_exists():
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    defined = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 40 and not named - defined
    for row in re.findall(r"^\| .* \|$", TEXT[TEXT.index("## Pitfalls") : TEXT.index("## How the doctor")], re.M)[2:]:
        assert re.search(r"`test_\w+` \|$", row), row


def test_every_code_stands_among_the_pitfalls_and_in_the_table():
    pitfalls, table = TEXT.split("<!-- written by benchmarks/doctor.py -->")
    for code in CODES:
        assert f"| `{code}` |" in pitfalls and f"| `{code}` |" in table, code


def test_the_example_of_the_tools_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(compile(block, "docs/batchnorm.md", "exec"), {"__name__": "docs"})
    said = capsys.readouterr().out
    assert said.startswith("nothing found in Sequential") and "folded into 0, before it" in said and "stays" not in said


def test_the_benchmark_runs_and_its_table_has_the_form_of_the_one_in_the_docs():
    result = doctor.measure(8, 2000)
    assert result["healthy"] == 3 and sum(r["planted"] for r in result["codes"].values()) == 5
    assert doctor.table(result).splitlines()[0] in TEXT
