"""The shell of this package's pages: one HTML file that needs nothing else, with a policy that lets only its own script run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

_SHELL = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{css}
</style>
</head>
<body>
<header class="page-head">
<h1>{title}</h1>
<details id="badge" class="badge" data-state="waiting"><summary>self-test</summary><div></div></details>
<button type="button" id="keys-button" class="icon" aria-label="List the keys" title="List the keys (?)">?</button>
<button type="button" id="theme" class="icon" aria-label="Dark colours" title="Dark colours">◐</button>
</header>
{body}
<p id="live" class="unseen" role="status" aria-live="polite"></p>
<dialog id="keys" aria-labelledby="keys-title"><h2 id="keys-title">Keys</h2><dl></dl>
<form method="dialog"><button>Close</button></form></dialog>
{data}
<script>{script}</script>
</body>
</html>
"""


def html(title: str, body: str, *, css: str, script: str, data: Mapping[str, Any]) -> str:
    """A self-contained HTML document: the shell (page.css, page.js, head, badge, theme switch, list of keys) around ``body``.

    ``title`` is text, ``body`` is HTML that the caller vouches for; ``css`` and ``script`` follow page.css and page.js. Each
    entry of ``data`` becomes ``<script type="application/json" id="NAME">``, which ``Page.data("NAME")`` reads; what is in
    it may be hostile. The Content-Security-Policy allows the page's one script, by its SHA-256, and no request at all.

    Raises ValueError for data that JSON cannot hold (NaN, infinities), for a name that is no id, and for a script or a style
    that would end its own element; TypeError for data of a type that JSON does not know.
    """
    script = "\n".join([text("page.js"), script]).replace("\r\n", "\n")  # as the browser reads it, and hashes it
    _check_inside("script", script, r"</script|<!--|<script")
    css = "\n".join([text("page.css"), css])
    _check_inside("css", css, r"</style")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    embedded = "\n".join(_embedded(name, value) for name, value in data.items())
    return _SHELL.format(policy=policy, title=escape(title), css=css, body=body, data=embedded, script=script)


def text(name: str) -> str:
    """The text of a file of this package."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _check_inside(what: str, given: str, pattern: str) -> None:
    if found := re.search(pattern, given, re.IGNORECASE):
        raise ValueError(f"page.html expected a {what} without {found[0]!r}, which would end or change its element")


def _embedded(name: str, value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ValueError(f"page.html expected names of data to be letters, digits, - and _, got {name!r}")
    try:
        written = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise ValueError(f"page.html expected data that JSON can hold for {name!r}: {error}") from None
    except TypeError as error:
        raise TypeError(f"page.html expected data that JSON can hold for {name!r}: {error}") from None
    safe = written.replace("<", "\\u003c")  # with no < in it, no text can close the element or open a comment
    return f'<script type="application/json" id="{name}">{safe}</script>'
