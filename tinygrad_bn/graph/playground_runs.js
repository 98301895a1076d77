// Panel 6: recorded training runs, and which values each normalisation takes together.
const RunsPanel = (() => {
  const { find, fixed, number } = Page;
  const recorded = Page.data("recorded");
  const rates = recorded.learning_rates;
  const sweep = find("sweep-stage");
  const curves = find("curves-stage");
  const cube = find("cube-stage");
  const at = Draw.layers(sweep, "grid", "lines", "dots", "words", "handles");
  const to = Draw.layers(curves, "grid", "lines", "ends", "words");
  const cells = Draw.layers(cube, "cells", "words");
  const handles = Draw.handles(sweep, at.handles);
  const HEIGHT = 300;
  const NAMES = {
    none: "without",
    batch: "BatchNorm",
    layer: "LayerNorm",
    group: "GroupNorm",
    instance: "InstanceNorm",
  };
  const by = (arm, lr) => recorded.runs.filter(r => r.arm === arm && r.lr === lr);
  const median = values => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
  const score = run => run.accuracy ?? 0;
  find("runs-setup").textContent = recorded.setup + `; ${recorded.seeds} seeds.`;
  const arms = norm => (norm === "instance" ? ["none"] : ["none", norm]);

  const legend = norm => [
    Draw.text(4, 33, norm === "instance" ? "" : "●", { class: `${norm} key`, "text-anchor": "start" }),
    Draw.text(20, 33, norm === "instance" ? "" : NAMES[norm], { class: "tick", "text-anchor": "start" }),
    Draw.text(104, 33, "┅", { class: "none key", "text-anchor": "start" }),
    Draw.text(122, 33, "without", { class: "tick", "text-anchor": "start" }),
  ];

  const drawSweep = () => {
    const { state } = Store;
    const width = Draw.fit(sweep, HEIGHT);
    const x = Draw.scale(-2, 1.5, 40, width - 16);
    const y = Draw.scale(0, 100, HEIGHT - 36, 70);
    const place = lr => x(Math.log10(lr));
    const rate = rates[state.rate];
    const shown = arms(state.norm);
    Draw.lines(at.grid, [
      ...[0, 25, 50, 75, 100].map(v => [x(-2), y(v), x(1.5), y(v), v ? "faint" : "zero"]),
      [place(rate), y(0), place(rate), 56, "cursor"],
    ]);
    Draw.join(at.lines, "path", shown, arm => ({
      d: Draw.path(rates.map(lr => [place(lr), y(100 * median(by(arm, lr).map(score)))])),
      class: `run ${arm}`,
    }));
    const dots = shown.flatMap(arm => recorded.runs.filter(r => r.arm === arm));
    Draw.join(at.dots, "path", dots, r => ({
      d: r.accuracy === null ? Draw.shapes.cross(3.5) : Draw.shapes.circle(3),
      class: `dot ${r.arm}${r.accuracy === null ? " lost" : ""}`,
      transform: Draw.move(place(r.lr) + (r.arm === "none" ? 2 : -2), y(100 * score(r))),
    }));
    Draw.labels(at.words, [
      ...[0, 50, 100].map(v => Draw.text(34, y(v) + 4, String(v), { class: "tick", "text-anchor": "end" })),
      ...[0.01, 0.1, 1, 10].map(v => Draw.text(place(v), HEIGHT - 14, String(v), { class: "tick" })),
      Draw.text(4, 14, "test accuracy, %, by learning rate", { class: "axis-name", "text-anchor": "start" }),
      ...legend(state.norm),
      Draw.text(180, 33, "✗ diverged", { class: "wrong-ink", "text-anchor": "start" }),
    ]);
    handles.draw([
      {
        key: "rate",
        x: place(rate),
        y: 56,
        shape: "diamond",
        size: 8,
        kind: "pick",
        label: "learning rate:",
        value: state.rate,
        low: 0,
        high: rates.length - 1,
        step: 1,
        words: number(rate),
        along: "x",
        from: p => (x.invert(p) + 2) * 4,
        change: i => Store.change({ rate: Math.round(i) }),
        after: () => find("runs-finding").textContent,
      },
    ]);
  };

  const drawCurves = () => {
    const { state } = Store;
    const width = Draw.fit(curves, HEIGHT);
    const rate = rates[state.rate];
    const x = Draw.scale(0, 156, 44, width - 16);
    const y = Draw.scale(-2, 1, HEIGHT - 36, 70);
    const chosen = arms(state.norm).flatMap(arm => by(arm, rate));
    const level = loss => y.inside(Math.log10(Math.max(loss, 1e-9)));
    Draw.lines(
      to.grid,
      [-2, -1, 0, 1].map(v => [x(0), y(v), x(156), y(v), "faint"]),
    );
    Draw.join(to.lines, "path", chosen, r => ({
      d: Draw.path(r.losses.map((loss, i) => [x(i), loss === null ? y(1) : level(loss)])),
      class: `run ${r.arm}`,
    }));
    const lost = chosen.filter(r => r.losses.at(-1) === null);
    Draw.join(to.ends, "path", lost, r => ({
      d: Draw.shapes.cross(5),
      class: "dot lost",
      transform: Draw.move(x(r.losses.length - 1), y(1)),
    }));
    Draw.labels(to.words, [
      ...[-2, -1, 0, 1].map(v => Draw.text(38, y(v) + 4, String(10 ** v), { class: "tick", "text-anchor": "end" })),
      ...[0, 50, 100, 150].map(v => Draw.text(x(v), HEIGHT - 14, v === 150 ? "150" : String(v), { class: "tick" })),
      Draw.text(4, 14, "loss, by step", { class: "axis-name", "text-anchor": "start" }),
      ...legend(state.norm),
      Draw.text(180, 33, lost.length ? `✗ ${lost.length} of ${chosen.length} diverged` : "", {
        class: "wrong-ink",
        "text-anchor": "start",
      }),
    ]);
  };

  // Which values share a mean: examples to the right, positions down, channels into the depth. After Wu & He 2018, figure 2.
  const drawCube = () => {
    const { norm } = Store.state;
    const height = 190;
    const width = Draw.fit(cube, height);
    const s = 24;
    const n = 4;
    const left = Math.max(64, width / 2 - 76);
    const top = 66;
    const inside = (example, channel) =>
      ({
        batch: channel === 0,
        layer: example === n - 1,
        instance: example === n - 1 && channel === 0,
        group: example === n - 1 && channel < 2,
      })[norm];
    const point = (a, b, c) => `${(left + a * s + c * s * 0.6).toFixed(1)},${(top + b * s - c * s * 0.45).toFixed(1)}`;
    const faces = [];
    const range = [0, 1, 2, 3];
    for (const a of range)
      for (const b of range)
        faces.push([
          [
            [a, b, 0],
            [a + 1, b, 0],
            [a + 1, b + 1, 0],
            [a, b + 1, 0],
          ],
          inside(a, 0),
          "front",
        ]);
    for (const c of range)
      for (const b of range)
        faces.push([
          [
            [n, b, c],
            [n, b, c + 1],
            [n, b + 1, c + 1],
            [n, b + 1, c],
          ],
          inside(n - 1, c),
          "right",
        ]);
    for (const a of range)
      for (const c of range)
        faces.push([
          [
            [a, 0, c],
            [a + 1, 0, c],
            [a + 1, 0, c + 1],
            [a, 0, c + 1],
          ],
          inside(a, c),
          "top",
        ]);
    Draw.join(cells.cells, "polygon", faces, ([corners, marked, face]) => ({
      points: corners.map(c => point(...c)).join(" "),
      class: `${face} ${marked ? "together " + norm : ""}`,
    }));
    Draw.labels(cells.words, [
      Draw.text(left + 2 * s, top + 4 * s + 19, "examples N", { class: "tick" }),
      Draw.text(left - 8, top + 2 * s + 4, "positions", { class: "tick", "text-anchor": "end" }),
      Draw.text(left + 4 * s + 46, top + 3.2 * s + 18, "channels C", { class: "tick", "text-anchor": "start" }),
    ]);
  };

  const words = () => {
    const { state } = Store;
    const rate = rates[state.rate];
    const accuracy = arm => {
      const found = by(arm, rate);
      const lost = found.filter(r => r.accuracy === null).length;
      const good = found.filter(r => r.accuracy !== null).map(score);
      const range = good.length ? `${fixed(100 * Math.min(...good), 1)} to ${fixed(100 * Math.max(...good), 1)} %` : "";
      if (lost < found.length && Math.max(...good) < 0.15)
        return `${lost ? "none gets" : "no run gets"} beyond guessing (${range})`;
      return lost === found.length
        ? "every run diverges"
        : lost
          ? `${lost} of ${found.length} runs diverge, the others reach ${range}`
          : `the runs reach ${range}`;
    };
    find("runs-finding").textContent =
      state.norm === "instance"
        ? `At learning rate ${number(rate)}, without a normalisation ${accuracy("none")} after one epoch. ` +
          `InstanceNorm was not recorded: on this network’s last features it would leave only zeros.`
        : `At learning rate ${number(rate)}, with ${NAMES[state.norm]} ${accuracy(state.norm)} after one epoch; ` +
          `without it ${accuracy("none")}.`;
    find("cube-note").textContent = {
      batch:
        "BatchNorm: one mean for each channel, over all examples and positions, m = N · H · W values. It " +
        "alone needs the batch, and running statistics.",
      layer: "LayerNorm: one mean for each example, over its channels and positions. No example touches another.",
      instance:
        "InstanceNorm: one mean for each channel of each example, over its positions. Where there is one " +
        "position, as after a linear layer, nothing is left.",
      group:
        "GroupNorm: one mean for each group of channels of each example. One group is LayerNorm, one channel " +
        "a group is InstanceNorm.",
    }[state.norm];
    cube.setAttribute("aria-label", find("cube-note").textContent);
  };
  const draw = () => {
    drawSweep();
    drawCurves();
    drawCube();
    words();
  };
  return { draw, rates, uses: ["rate", "norm"] };
})();
