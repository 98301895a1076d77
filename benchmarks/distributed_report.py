"""What distributed.py measured, as tables, and in docs/distributed.md with its picture."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from math import ceil
from pathlib import Path
from typing import Any

import common
import cost_model
from cost_model import Model, Network

START, END = "<!-- measured: written by benchmarks/distributed.py --publish -->", "<!-- end of what was measured -->"
# What nobody could measure here: seconds a message from process to process, and bits a second.
ASSUMED = {"10 Gbit/s, TCP": Network(25e-6, 8 / 10e9), "100 Gbit/s, RDMA": Network(3e-6, 8 / 100e9)}
DEVICES = {"this core": 1, "50 times as fast": 50}
RANKS = 8, 64, 1024


def mpi_version() -> dict[str, str]:
    try:
        return {"mpich": importlib.metadata.version("mpich")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def text(results: dict[str, Any], markdown: bool = False) -> str:
    """All tables; in Markdown for docs/."""
    parts = [_conditions(results), _throughput(results, markdown), _hidden(results)]
    if "exchanges" in results:
        parts += [
            _exchanges(results, markdown),
            _checked(results, markdown),
            _predictions(results, markdown),
            _sync_waits(results, markdown),
        ]
    return "\n\n".join(parts)


def _table(header: list[str], rows: list[list[str]], markdown: bool) -> str:
    table = common.Table(header, [row[0] for row in rows], markdown)
    return "\n".join([table.head(), *map(table.line, rows)])


def _conditions(results: dict[str, Any]) -> str:
    on = results["measured_on"]
    versions = ", ".join(f"{name} {on[name]}" for name in ("python", "numpy", "numba", "mpi4py", "mpich") if name in on)
    said = f"Measured on {on['date']}: {on['processor']}, {on['cores']} cores, {versions}."
    for busy in results["others_cores"]:
        quiet = "." if busy < 0.05 else ": THE MACHINE WAS NOT QUIET, measure again."
        said += f" Meanwhile other processes kept {busy:.2f} cores busy{quiet}"
    return said


def _throughput(results: dict[str, Any], markdown: bool) -> str:
    measured = results["throughput"]
    rows = []
    for name, row in measured["rows"].items():
        asked = name.startswith("2 ranks")
        least = f"{measured['at_least']:.1f}" if asked else "-"
        holds = ("yes" if row["ratio"] >= measured["at_least"] else "NO") if asked else "-"
        low_high = f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}"
        rows.append(
            [name, f"{row['step_ms']:.1f}", f"{row['images_per_s']:.0f}", f"{row['ratio']:.2f}", low_high, least, holds]
        )
    header = [
        f"{measured['workload']}, one thread a rank",
        "ms a step",
        "images/s",
        "times 1 rank",
        "rounds",
        "at least",
        "holds",
    ]
    return _table(header, rows, markdown)


def _hidden(results: dict[str, Any]) -> str:
    lines = []
    for kind, name in (("batch", "BatchNorm"), ("sync", "SyncBatchNorm")):
        h = results["hidden"][kind]
        low, high = min(h["shares"]), max(h["shares"])
        lines.append(
            f"* With {name}, {h['gradient_bytes'] / 1e6:.1f} MB of gradients add {1e3 * h['exchange_s']:.2f} ms to a step of "
            f"{1e3 * h['without_s']:.1f} ms in one bare all-reduce after backward, and {1e3 * h['shown_s']:.2f} ms as "
            f"DataParallel does it, which also fills and empties its buckets: backward hides {100 * h['share']:.0f} % of the "
            f"exchange (rounds: {100 * low:.0f} to {100 * high:.0f} %)."
        )
    return "\n".join(lines)


# ----- exchanges, and what they predict


def fitted(results: dict[str, Any]) -> dict[str, tuple[Network, float]]:
    """The network behind each series of all-reduces, and its largest error; without 8 bytes, which MPICH sends in one round."""
    found = {}
    for name, e in results["exchanges"].items():
        sizes, times = zip(*((n, t) for n, t in zip(e["sizes"], e["all_reduce_s"], strict=True) if n > 8), strict=True)
        found[name] = cost_model.fit(sizes, times, e["ranks"])
    return found


def _checked(results: dict[str, Any], markdown: bool) -> str:
    """The model's steps on two ranks beside measured ones."""
    rows = []
    model = model_of(results, "cnn", "this core")
    for name, (network, _) in fitted(results).items():
        for kind, measured in results["exchanges"][name].get("steps_s", {}).items():
            said = cost_model.step(model, network, 2, sync=kind == "sync")
            kind = {"batch": "BatchNorm", "sync": "SyncBatchNorm"}[kind]
            rows.append([f"cnn, {kind}; {name}", f"{1e3 * said:.1f}", f"{1e3 * measured:.1f}", f"{measured / said:.2f}"])
    return _table(["a step on two ranks", "predicted, ms", "measured, ms", "ratio"], rows, markdown)


def _exchanges(results: dict[str, Any], markdown: bool) -> str:
    rows = []
    for name, (network, error) in fitted(results).items():
        e = results["exchanges"][name]
        by_size = dict(zip(e["sizes"], e["all_reduce_s"], strict=True))
        times = [_time(by_size[size]) for size in (8, 512, 1 << 18, 1 << 26)]
        rate = f"{1 / network.per_byte / 1e9:.2f}" if network.per_byte else "-"
        ping = _time(e["round_trip_s"]) if "round_trip_s" in e else "-"
        rows.append([name, ping, *times, _time(e["all_gather_s"][2]), _time(network.latency), rate, f"{error:.0%}"])
    header = [
        "all-reduce over",
        "round trip",
        "8 B",
        "512 B",
        "256 kB",
        "64 MB",
        "gather 512 B",
        "latency",
        "GB/s",
        "off by at most",
    ]
    return _table(header, rows, markdown)


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def networks(results: dict[str, Any]) -> dict[str, Network]:
    """Those to predict for: shared memory as measured between two ranks, and what is assumed."""
    return {"shared memory, as here": fitted(results)["shared memory, 2 ranks"][0], **ASSUMED}


def model_of(results: dict[str, Any], name: str, device: str) -> Model:
    m, faster = results["models"][name], DEVICES[device]
    return Model(m["step_s"] / faster, m["gradient_bytes"], m["hideable_s"] / faster, m["channels"])


def _predictions(results: dict[str, Any], markdown: bool) -> str:
    """The pace of a rank, in percent of a single one's."""
    rows = []
    for name in results["models"]:
        for device in DEVICES:
            model = model_of(results, name, device)
            for where, network in networks(results).items():
                for kind, sync in (("BatchNorm", False), ("SyncBatchNorm", True)):
                    pace = [100 * model.compute / cost_model.step(model, network, r, sync) for r in RANKS]
                    rows.append([f"{name}, {kind}, {device}, {where}", *(f"{p:.0f}" for p in pace)])
    return _table(["pace of a rank, % of a single one's", *(f"{r:,} ranks" for r in RANKS)], rows, markdown)


def _sync_waits(results: dict[str, Any], markdown: bool) -> str:
    """What SyncBatchNorm waits on 1,024 ranks, and from which batch on that is a tenth of the computing."""
    rows = []
    for name in results["models"]:
        for where, network in ASSUMED.items():
            models = [model_of(results, name, device) for device in DEVICES]
            wait = cost_model.sync_batch_norm(network, 1024, models[0].channels)
            gather = sum(1023 * 8 * (1 + 2 * c) * network.per_byte for c in models[0].channels)
            batches = [f"{ceil(64 * wait / (0.1 * model.compute)):,}" for model in models]
            rows.append([f"{name}, {where}", str(len(models[0].channels)), _time(wait), _time(gather), *batches])
    header = [
        "SyncBatchNorm on 1,024 ranks",
        "layers",
        "waits a step",
        "for bytes",
        *(f"batch, {device}" for device in DEVICES),
    ]
    return _table(header, rows, markdown)


# ----- docs/


def publish(results: dict[str, Any], docs: Path) -> None:
    """The tables between the marks in distributed.md, and distributed.png."""
    page = docs / "distributed.md"
    between = f"{START}\n\n{text(results, markdown=True)}\n\n{END}"
    written, times = re.subn(f"{re.escape(START)}.*?{re.escape(END)}", lambda _: between, page.read_text(), flags=re.S)
    if times != 1:
        raise ValueError(f"{page} expected the line {START!r} and its end once, got them {times} times")
    draw(results, docs / "distributed.png")
    page.write_text(written)


def draw(results: dict[str, Any], path: Path) -> None:
    """All-reduce by size, with fits; and the predicted throughput of each rank by their number."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    import look

    slow, fast = (model_of(results, "cnn", device) for device in DEVICES)
    network = ASSUMED["10 Gbit/s, TCP"]
    kept = [model.compute / cost_model.step(model, network, 1024, True) for model in (slow, fast)]
    kept_by_core, kept_by_fast = (f"{100 * share:.0f} %" for share in kept)
    on = results["measured_on"]
    with look.style():
        figure = look.new_figure(
            f"1,024 ranks, SyncBatchNorm, 10 Gbit/s: a core keeps {kept_by_core} of its pace, a fast device {kept_by_fast}",
            f"Left: measured, two ranks on {on['cores']} cores of an {on['processor']}, {on['date']}. Right: predicted by the "
            f"cost model,\na CNN with batch 64 a rank, {1e3 * slow.compute:.0f} ms of computing a step on such a core; "
            "networks: see the text.",
            (7, 4.2),
        )
        left, right = figure.add_axes((0.115, 0.12, 0.345, 0.65)), figure.add_axes((0.57, 0.12, 0.25, 0.65))
        _draw_exchanges(left, results, look)
        _draw_predictions(right, slow, fast, look)
        look.save(figure, path)


def _draw_exchanges(axes: Any, results: dict[str, Any], look: Any) -> None:
    axes.set(xscale="log", yscale="log", xlabel="bytes", ylabel="all-reduce, ms")
    names = []
    looks = {
        "shared memory, 2 ranks": ("o", look.BATCHNORM),
        "TCP, 2 ranks": ("s", "#009E73"),
        "20 ms, TCP, 2 ranks": ("D", "#AA4499"),
    }
    for name, (mark, colour) in looks.items():
        if name not in results["exchanges"]:
            continue
        e = results["exchanges"][name]
        network, _ = fitted(results)[name]
        axes.plot(e["sizes"], [1e3 * s for s in e["all_reduce_s"]], mark, color=colour, markersize=4.5)
        sizes = [2**k for k in range(6, 27)]
        line = [1e3 * cost_model.halving_and_doubling(network, 2, n) for n in sizes]
        axes.plot(sizes, line, color=colour, linewidth=1.0)
        names.append((e["sizes"][0], line[0], name.removesuffix(", 2 ranks"), colour))
    ticks = [8, 512, 1 << 15, 1 << 21, 1 << 26]
    axes.set_xticks(ticks, ["8", "512", "32 k", "2 M", "64 M"])
    axes.minorticks_off()
    look.plain_ticks(axes.yaxis, [0.001, 0.01, 0.1, 1, 10, 100, 1000, 10000])
    axes.set_ylim(0.0006, 10000)
    for x, y, name, colour in names:
        look.note(axes, name, (x, y), (0, 14 if "shared" not in name else -11), color=colour)
    axes.text(
        0.03, 0.97, "marks: measured; lines: 2 latency + bytes / bandwidth", transform=axes.transAxes, fontsize=6.8, va="top"
    )


def _draw_predictions(axes: Any, slow: Model, fast: Model, look: Any) -> None:
    ranks = [1 << k for k in range(11)]
    axes.set(xscale="log", xlabel="ranks", ylabel="pace of a rank, % of a single one's", xlim=(1, 1024), ylim=(0, 104))
    ten, hundred = ASSUMED.values()
    curves = [
        ("a core,\n10 Gbit/s", slow, ten, True, look.BATCHNORM, "o-"),
        ("50 times as fast,\n100 Gbit/s", fast, hundred, True, "#009E73", "s-"),
        ("50 times as fast,\n10 Gbit/s", fast, ten, True, "#AA4499", "D-"),
        ("the same without\nSyncBatchNorm", fast, ten, False, look.PLAIN, "x--"),
    ]
    names = []
    for name, model, network, sync, colour, marks in curves:
        pace = [100 * model.compute / cost_model.step(model, network, r, sync) for r in ranks]
        axes.plot(ranks, pace, marks, color=colour, markersize=3.5, clip_on=False)
        names.append((ranks[-1], pace[-1], name, colour))
    look.plain_ticks(axes.xaxis, ranks, [1, 8, 64, 1024])
    look.name_curves(axes, names)
