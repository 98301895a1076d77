"""What distributed.py measured, as tables, and in docs/distributed.md with its picture."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Any

import common
import cost_model
from cost_model import Model, Network

START, END = "<!-- measured: written by benchmarks/distributed.py --publish -->", "<!-- end of what was measured -->"
# What nobody could measure here: seconds a message from process to process, and bits a second.
ASSUMED = {"10 Gbit/s, TCP": Network(25e-6, 8 / 10e9), "100 Gbit/s, RDMA": Network(3e-6, 8 / 100e9)}
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
        parts += [_exchanges(results, markdown), _predictions(results, markdown), _sync_share(results)]
    return "\n\n".join(parts)


def _table(header: list[str], rows: list[list[str]], markdown: bool) -> str:
    table = common.Table(header, [row[0] for row in rows], markdown)
    return "\n".join([table.head(), *map(table.line, rows)])


def _conditions(results: dict[str, Any]) -> str:
    on = results["measured_on"]
    busy = results["throughput"]["busy_cores_before"]
    versions = ", ".join(f"{name} {on[name]}" for name in ("python", "numpy", "numba", "mpi4py", "mpich") if name in on)
    quiet = "the machine was quiet" if max(busy) < 0.2 else "THE MACHINE WAS NOT QUIET: measure again"
    return (
        f"Measured on {on['date']}: {on['processor']}, {on['cores']} cores, {versions}. Before the rounds other processes kept "
        f"{min(busy):.2f} to {max(busy):.2f} cores busy: {quiet}."
    )


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
            f"{1e3 * h['without_s']:.1f} ms if they are sent after backward, and {1e3 * h['shown_s']:.2f} ms "
            f"if they are sent while it goes on: {100 * h['share']:.0f} % of the exchange is hidden (rounds: {100 * low:.0f} to "
            f"{100 * high:.0f} %)."
        )
    return "\n".join(lines)


# ----- exchanges, and what they predict


def fitted(results: dict[str, Any]) -> dict[str, tuple[Network, float]]:
    """The network behind each series of all-reduces, as one message between two ranks; and the fit's largest error."""
    return {name: cost_model.fit(e["sizes"], e["all_reduce_s"]) for name, e in results["exchanges"].items()}


def _exchanges(results: dict[str, Any], markdown: bool) -> str:
    rows = []
    for name, (network, error) in fitted(results).items():
        e = results["exchanges"][name]
        by_size = dict(zip(e["sizes"], e["all_reduce_s"], strict=True))
        times = [_time(by_size[size]) for size in (8, 1 << 18, 1 << 26)]
        rate = f"{1 / network.per_byte / 1e9:.2f}" if network.per_byte else "-"
        ping = _time(e["round_trip_s"]) if "round_trip_s" in e else "-"
        rows.append([name, ping, *times, _time(e["all_gather_s"][2]), _time(network.latency), rate, f"{error:.0%}"])
    header = ["all-reduce over", "round trip", "8 B", "256 kB", "64 MB", "gather 512 B", "latency", "GB/s", "off by at most"]
    return _table(header, rows, markdown)


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def networks(results: dict[str, Any]) -> dict[str, Network]:
    """Those to predict for: shared memory as measured between two ranks, and what is assumed."""
    return {"shared memory, as here": fitted(results)["shared memory, 2 ranks"][0], **ASSUMED}


def model_of(results: dict[str, Any], name: str) -> Model:
    m = results["models"][name]
    return Model(m["step_s"], m["gradient_bytes"], m["hideable_s"], m["channels"])


def _predictions(results: dict[str, Any], markdown: bool) -> str:
    """Times one rank's throughput, for each network to be trained, kind of normalisation, and network."""
    rows = []
    for name in results["models"]:
        model = model_of(results, name)
        for where, network in networks(results).items():
            for kind, sync in (("BatchNorm", False), ("SyncBatchNorm", True)):
                figures = [r * model.compute / cost_model.step(model, network, r, sync) for r in RANKS]
                rows.append([f"{name}, {kind}; {where}", *(f"{f:,.1f}" for f in figures)])
    return _table(["times 1 rank, predicted", *(f"{r:,} ranks" for r in RANKS)], rows, markdown)


def _sync_share(results: dict[str, Any]) -> str:
    lines = []
    for name in results["models"]:
        model = model_of(results, name)
        for where, network in ASSUMED.items():
            wait = cost_model.sync_batch_norm(network, 1024, model.channels)
            gather = sum(1023 * 8 * (1 + 2 * c) * network.per_byte for c in model.channels)
            least = wait / (0.1 * model.compute / 64)
            lines.append(
                f"* {name}, {where}, 1,024 ranks: the {len(model.channels)} SyncBatchNorm layers wait {_time(wait)} a step, "
                f"{_time(gather)} of it for the bytes of the all-gathers; that is below a tenth of the computing from a batch of "
                f"{least:.0f} a rank on."
            )
    return "\n".join(lines)


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

    model = model_of(results, "cnn")
    slow = ASSUMED["10 Gbit/s, TCP"]
    kept = model.compute / cost_model.step(model, slow, 1024, True)
    on = results["measured_on"]
    with look.style():
        figure = look.new_figure(
            f"1,024 ranks on 10 Gbit/s would keep {kept:.0%} of each rank's pace",
            f"Left: measured between two ranks on {on['cores']} cores of an {on['processor']} ({on['date']}). Right: the cost model,\n"
            f"a CNN with batch 64 and one thread a rank, {1e3 * model.compute:.0f} ms of computing a step; networks as assumed.",
            (7, 4.2),
        )
        left, right = figure.add_axes((0.085, 0.12, 0.36, 0.65)), figure.add_axes((0.585, 0.12, 0.27, 0.65))
        _draw_exchanges(left, results, look)
        _draw_predictions(right, model, look)
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
        line = [1e3 * (network.latency + n * network.per_byte) for n in e["sizes"]]
        axes.plot(e["sizes"], line, color=colour, linewidth=1.0)
        names.append((e["sizes"][0], line[0], name.removesuffix(", 2 ranks"), colour))
    ticks = [8, 512, 1 << 15, 1 << 21, 1 << 26]
    axes.set_xticks(ticks, ["8", "512", "32 k", "2 M", "64 M"])
    axes.minorticks_off()
    look.plain_ticks(axes.yaxis, [0.001, 0.01, 0.1, 1, 10, 100, 1000, 10000])
    axes.set_ylim(0.002, 10000)
    for x, y, name, colour in names:
        look.note(axes, name, (x, y), (0, 11 if "shared" not in name else -9), color=colour)
    axes.text(
        0.03, 0.97, "dots: measured; lines: latency + bytes / bandwidth", transform=axes.transAxes, fontsize=7.5, va="top"
    )


def _draw_predictions(axes: Any, model: Model, look: Any) -> None:
    ranks = [1 << k for k in range(11)]
    axes.set(xscale="log", xlabel="ranks", ylabel="pace of a rank, % of a single one's", ylim=(0, 104))
    names = []
    short = {"10 Gbit/s, TCP": "10 Gbit/s", "100 Gbit/s, RDMA": "100 Gbit/s"}
    for (where, network), colour in zip(ASSUMED.items(), ("#D55E00", look.BATCHNORM), strict=True):
        for sync, dashes in ((True, "-"), (False, "--")):
            pace = [100 * model.compute / cost_model.step(model, network, r, sync) for r in ranks]
            axes.plot(ranks, pace, dashes, color=colour, marker="o" if sync else "x", markersize=3)
            names.append((ranks[-1], pace[-1], f"{short[where]},\n{'Sync' if sync else ''}BatchNorm", colour))
    axes.set_xlim(1, 1024)
    look.plain_ticks(axes.xaxis, [1 << k for k in range(11)], [1, 8, 64, 1024])
    look.name_curves(axes, names)
    axes.text(1.3, 3, "cost model, no measurement", fontsize=7.5)
