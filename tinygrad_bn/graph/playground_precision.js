// Panel 5: what rounding does to a variance.
const PrecisionPanel = (() => {
  const { find, number } = Page;
  const { OFFSETS } = State;
  const svg = find("precision-stage");
  const HEIGHT = 330;
  const at = Draw.layers(svg, "grid", "areas", "curves", "words", "handles");
  const handles = Draw.handles(svg, at.handles);
  const wrong = v => !Number.isFinite(v) || Math.abs(v - 1) > 0.05;
  const shown = v => number(v, Math.abs(v) < 1e6 ? 8 : 3);

  const draw = () => {
    const { state } = Store;
    const width = Draw.fit(svg, HEIGHT);
    const offset = OFFSETS[state.offset];
    const d = state.dtype;
    const place = o => Math.log10(Math.max(o, 0.1));
    const x = Draw.scale(-1, 8, 56, width - 22);
    const y = Draw.scale(-17, 17, HEIGHT - 40, 34);
    const log = v => Math.log10(v);
    const grid = Array.from({ length: 91 }, (_, i) => 10 ** (-1 + i / 10));
    const step = v => BatchNorm.spacing(v, d);
    Draw.lines(at.grid, [
      ...[-16, -8, 8, 16].map(v => [x(-1), y(v), x(8), y(v), "faint"]),
      [x(-1), y(0), x(8), y(0), "truth strong"],
      [x(place(offset)), y(-17), x(place(offset)), y(17), "faint"],
    ]);
    Draw.join(
      at.curves,
      "path",
      [
        [1, "curve forward"],
        [2, "curve backward"],
      ],
      ([power, kind]) => ({
        d: Draw.path(grid.map(o => [x(log(o)), y(log(step(o ** power)))])),
        class: kind,
      }),
    );
    const label = p => y(log(step((10 ** 5.4) ** p)));
    Draw.labels(at.words, [
      ...[-16, -8, 0, 8, 16].map(v =>
        Draw.text(48, y(v) + 4, v ? number(10 ** v) : "1", { class: "tick", "text-anchor": "end" }),
      ),
      ...[0, 2, 4, 6, 8].map(v => Draw.text(x(v), HEIGHT - 16, number(10 ** v), { class: "tick" })),
      Draw.text(4, 14, `distance between neighbouring ${d} numbers${width < 400 ? "" : ", by offset"}`, {
        class: "axis-name",
        "text-anchor": "start",
      }),
      Draw.text(x(5.4), label(2) - 22, "near offset²", { class: "backward-ink small", "text-anchor": "end" }),
      Draw.text(x(5.6), label(1) + 26, "near offset", { class: "forward-ink small", "text-anchor": "start" }),
      Draw.text(x(-1) + 4, y(0) - 6, "the variance, 1", { class: "tick", "text-anchor": "start" }),
    ]);
    handles.draw([
      {
        key: "offset",
        x: x(place(offset)),
        y: y(0),
        shape: "diamond",
        size: 9,
        kind: "statistic",
        label: "offset:",
        value: state.offset,
        low: 0,
        high: OFFSETS.length - 1,
        step: 1,
        words: number(offset),
        along: "x",
        from: p =>
          OFFSETS.reduce(
            (best, o, i) =>
              Math.abs(place(o) - x.invert(p)) < Math.abs(place(OFFSETS[best]) - x.invert(p)) ? i : best,
            0,
          ),
        change: i => Store.change({ offset: Math.round(i) }),
        after: () => find("precision-finding").textContent,
      },
    ]);
    words(offset);
  };

  // What there is to say of an offset: whether the values themselves are lost, or only their variance, or nothing.
  const finding = offset => {
    const d = Store.state.dtype;
    const [one, two, welford, ours] = Store.now.precision[Store.state.offset].results;
    const where = `At an offset of ${number(offset)}, ${d}`;
    const apart = v => number(BatchNorm.spacing(v, d));
    if (!Number.isFinite(BatchNorm.DTYPES[d](offset))) {
      return `${where} has no numbers so large: the values themselves become infinite.`;
    }
    if (wrong(ours)) {
      return `${where} numbers are ${apart(offset + 1)} apart: the ± 1 is lost in the values themselves.`;
    }
    if (wrong(one)) {
      const others = wrong(two) || wrong(welford) ? `${shown(two)} and ${shown(welford)}` : "1";
      return (
        `${where} makes the variance ${shown(one)} instead of 1 by E[x²] − E[x]². ` +
        `Two passes and Welford’s algorithm give ${others}.`
      );
    }
    return `${where} gets the variance right by every algorithm: near offset² its numbers are ${apart(offset ** 2)} apart.`;
  };
  const consequence = () => {
    const [one, , , ours] = Store.now.precision[Store.state.offset].results;
    const here = "This package stores the values in this type, and takes their statistics by two passes in float64.";
    if (wrong(ours)) {
      return "No algorithm brings them back. The cure is upstream: subtract the offset before the values are stored.";
    }
    if (!wrong(one)) return here;
    if (!Number.isFinite(one)) return `The squares, or their sum, are beyond the largest float16, 65,504. ${here}`;
    if (one < 0) return `The root of a negative variance is not a number: the training run is lost. ${here}`;
    return `An x̂ that should be ±1 is then ±${number(1 / Math.sqrt(one + 1e-5), 3)} (ε = 10⁻⁵). ${here}`;
  };
  const words = offset => {
    find("precision-finding").textContent = finding(offset);
    find("precision-note").textContent = consequence();
    Draw.table(
      find("precision-table"),
      Store.now.precision.map(row => [
        number(row.offset),
        ...row.results.map(v => (wrong(v) ? [`✗ ${Number.isNaN(v) ? "no number" : shown(v)}`, "wrong"] : shown(v))),
      ]),
      { marked: Store.state.offset },
    );
  };
  const choose = i => Store.change({ offset: i });
  find("precision-table").addEventListener("click", event => {
    const row = event.target.closest("tr");
    if (row) choose([...row.parentElement.children].indexOf(row));
  });
  return { draw, uses: ["dtype", "offset"] };
})();
