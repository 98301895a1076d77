"""``python -m tinygrad_bn doctor FILE.py:make_model FILE.py:make_batches``: diagnose from the command line."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .diagnosis import diagnose


def doctor(arguments: argparse.Namespace) -> int:
    """Find what BatchNorm does wrong in a model; exit code 1 if something is, 2 if it could not be examined.

    Whatever goes wrong in the user's program is 2, so that 0 and 1 are said of a model that was looked at.
    """
    try:
        model = _named(arguments.model)()
        made = _named(arguments.batches)()
        both = isinstance(made, tuple) and len(made) == 2 and not hasattr(made[0], "shape")
        train, held_out = made if both else (made, None)
        report = diagnose(model, train, held_out)
        print(report)  # before it is written: what was measured is not lost to a path
        if arguments.html:
            report.to_html(arguments.html)
        if arguments.json:
            report.to_json(arguments.json)
    except (OSError, ImportError, AttributeError, TypeError, ValueError) as error:
        print(f"doctor: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit):
            print(f"doctor: the program ended itself with exit code {error.code}", file=sys.stderr)
        else:
            traceback.print_exc()  # a bug of the program: it needs the line
        return 2
    unexamined = bool(report.trouble) and report.cost is not None and report.cost.precise is None
    return 1 if report else 2 if unexamined else 0


_modules: dict[Path, Any] = {}


def _named(text: str) -> Callable[[], Any]:
    """The function that FILE.py:name names; a file is run once."""
    file, colon, name = text.rpartition(":")
    if not colon or not file or not name.isidentifier():
        raise ValueError(f"expected FILE.py:function, got {text!r}")
    path = Path(file).resolve()
    if path not in _modules:
        if not path.is_file():
            raise FileNotFoundError(f"{file} is not a file")
        spec = importlib.util.spec_from_file_location(f"doctor_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(path.parent))  # so that it finds its neighbours
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(path.parent))
        _modules[path] = module
    found = getattr(_modules[path], name, None)
    if not callable(found):
        raise AttributeError(f"{file} has no function {name!r}")
    return found
