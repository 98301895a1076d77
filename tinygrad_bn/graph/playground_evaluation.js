// Panel 4: running statistics, what evaluation makes of them, and the classic bugs.
const EvaluationPanel = (() => {
  const { find, fixed, number } = Page;
  const { FED, POPULATION } = State;
  const running = find("running-stage");
  const probe = find("probe-stage");
  const law = find("law-stage");
  const at = Draw.layers(running, "grid", "batches", "curves", "words");
  const to = Draw.layers(probe, "grid", "lines", "dots", "words", "handles");
  const curve = Draw.layers(law, "grid", "curves", "words", "handles");
  const probeHandles = Draw.handles(probe, to.handles);
  const lawHandles = Draw.handles(law, curve.handles);

  const drawRunning = () => {
    const { history } = Store.now;
    const height = 230;
    const width = Draw.fit(running, height);
    const TOP = 6;
    const x = Draw.scale(0, FED, 30, width - 132);
    const y = Draw.scale(-0.5, TOP, height - 34, 14);
    const truth = [POPULATION.mean, POPULATION.std ** 2];
    const kinds = ["mean", "variance"];
    const step = width < 460 ? 30 : 10;
    const ticks = [];
    for (let v = 0; v <= FED; v += step) ticks.push(v);
    Draw.lines(at.grid, [
      ...[0, 2, 4, 6].map(v => [x(0), y(v), x(FED), y(v), v ? "faint" : "zero"]),
      ...truth.map(v => [x(0), y(v), x(FED), y(v), "truth"]),
    ]);
    Draw.join(
      at.batches,
      "path",
      kinds.flatMap(kind => history.batches.map((b, i) => [kind, b[kind], i])),
      ([kind, v, i]) => ({
        d: kind === "mean" ? Draw.shapes.circle(2.2) : Draw.shapes.diamond(2.4),
        transform: Draw.move(x(i + 1), y.inside(v)),
        class: kind,
      }),
    );
    Draw.join(at.curves, "path", kinds, kind => ({
      d: Draw.path(history.steps.map((s, i) => [x(i), y.inside(s[kind])])),
      class: `curve ${kind}`,
    }));
    const places = kinds.map(kind => y.inside(history.last[kind]));
    const gap = 34 - Math.abs(places[0] - places[1]);
    const lower = places[0] > places[1] ? 0 : 1;
    if (gap > 0) {
      places[lower] += gap / 2;
      places[1 - lower] -= gap / 2;
    }
    Draw.labels(at.words, [
      ...[0, 2, 4, 6].map(v => Draw.text(24, y(v) + 4, number(v), { class: "tick", "text-anchor": "end" })),
      ...ticks.map(v => Draw.text(x(v), height - 14, v === FED ? `${FED} batches` : String(v), { class: "tick" })),
      ...kinds.flatMap((kind, k) => [
        Draw.text(width - 122, places[k] - 1, `running ${kind}`, {
          class: "statistic-ink small",
          "text-anchor": "start",
        }),
        Draw.text(width - 122, places[k] + 14, `${fixed(history.last[kind])} (true ${fixed(truth[k])})`, {
          class: "tick",
          "text-anchor": "start",
        }),
      ]),
    ]);
  };

  const drawProbe = () => {
    const { state, now } = Store;
    const height = 250;
    const width = Draw.fit(probe, height);
    const { scale, shift } = now.evaluation;
    const x = Draw.scale(-2, 8, 32, width - 12);
    const y = Draw.scale(-4, 4, height - 34, 48);
    const line = v => scale * v + shift;
    const truth = v => (v - POPULATION.mean) / POPULATION.std;
    const clipped = f => {
      // the part of a line that the picture has room for
      const ends = [-2, 8, ...[-4, 4].map(edge => (edge - f(0)) / (f(1) - f(0) || 1e-12))].filter(
        v => v >= -2 && v <= 8 && Math.abs(f(v)) <= 4.001,
      );
      return ends.length
        ? [Math.min(...ends), Math.max(...ends)].map(v => [x(v), y(f(v))])
        : [
            [x(-2), y.inside(f(-2))],
            [x(-2), y.inside(f(-2))],
          ];
    };
    Draw.lines(to.grid, [
      ...[-4, -2, 0, 2, 4].map(v => [x(-2), y(v), x(8), y(v), v ? "faint" : "zero"]),
      [x(state.probe), y(-4), x(state.probe), y(4), "faint"],
    ]);
    const lines = [
      [truth, "truth"],
      [line, "curve forward"],
    ];
    Draw.join(to.lines, "path", lines, ([f, kind]) => ({ d: Draw.path(clipped(f)), class: kind }));
    Draw.join(to.dots, "circle", now.scattered, (v, i) => ({
      cx: x(state.probe) + 2 * (i - 11.5),
      cy: y.inside(v),
      r: 4.5,
      class: state.bug === "eval" ? "ghost wrong-dot" : "ghost",
    }));
    Draw.labels(to.words, [
      ...[-4, -2, 0, 2, 4].map(v => Draw.text(26, y(v) + 4, number(v), { class: "tick", "text-anchor": "end" })),
      ...[-2, 0, 2, 4, 6, 8].map(v => Draw.text(x(v), height - 14, number(v), { class: "tick" })),
      Draw.text(4, 14, "output of one test example", { class: "axis-name", "text-anchor": "start" }),
      Draw.text(4, 33, "● evaluation", { class: "forward-ink small", "text-anchor": "start" }),
      Draw.text(98, 33, "○ training", { class: "tick", "text-anchor": "start" }),
      Draw.text(168, 33, "- - truth", { class: "tick", "text-anchor": "start" }),
    ]);
    probeHandles.draw([
      {
        key: "probe",
        x: x(state.probe),
        y: y.inside(line(state.probe)),
        shape: "circle",
        size: 8,
        kind: "value shown",
        label: "the test example:",
        value: state.probe,
        low: -2,
        high: 8,
        step: 0.1,
        words: fixed(state.probe),
        along: "x",
        from: x.invert,
        change: v => Store.change({ probe: State.cents(v) }),
        after: () =>
          `output in evaluation ${fixed(Store.now.evaluation.scale * Store.state.probe + Store.now.evaluation.shift)}`,
      },
    ]);
  };

  const drawLaw = () => {
    const { state } = Store;
    const height = 250;
    const width = Draw.fit(law, height);
    const x = Draw.scale(1, 5, 32, width - 66);
    const y = Draw.scale(0, 1, height - 34, 48);
    const place = m => x(Math.log2(m));
    const all = Array.from({ length: 31 }, (_, i) => [i + 2, BatchNorm.trainingSlope(i + 2)]);
    Draw.lines(
      curve.grid,
      [0, 0.5, 1].map(v => [x(1), y(v), x(5), y(v), v ? "faint" : "zero"]),
    );
    Draw.join(curve.curves, "path", ["slope", "noise"], kind => ({
      d: Draw.path(all.map(([m, v]) => [place(m), y(v[kind])])),
      class: `curve ${kind === "slope" ? "forward" : "backward"}`,
    }));
    const { slope, noise } = BatchNorm.trainingSlope(32);
    Draw.labels(curve.words, [
      ...[0, 0.5, 1].map(v => Draw.text(26, y(v) + 4, number(v), { class: "tick", "text-anchor": "end" })),
      ...[2, 4, 8, 16, 32].map(m => Draw.text(place(m), height - 14, m === 2 ? "m = 2" : String(m), { class: "tick" })),
      Draw.text(
        4,
        14,
        width < 340 ? "in training: example and batch" : "in training: how much is the example, how much its batch",
        { class: "axis-name", "text-anchor": "start" },
      ),
      Draw.text(x(5) + 14, y(slope) + 4, "slope", { class: "forward-ink small", "text-anchor": "start" }),
      Draw.text(x(5) + 14, y(noise) + 4, "noise", { class: "backward-ink small", "text-anchor": "start" }),
    ]);
    const now = Store.now.law;
    const dot = (kind, v) => ({
      key: kind,
      x: place(state.m),
      y: y(v),
      shape: "circle",
      size: 7,
      kind: kind === "slope" ? "value shown" : "gradient shown",
      label: `m, by its ${kind}:`,
      value: state.m,
      low: 2,
      high: 32,
      step: 1,
      words: `${state.m}, ${kind} ${fixed(v)}`,
      along: "x",
      from: p => 2 ** x.invert(p),
      change: m => Store.resize(Math.round(m)),
    });
    lawHandles.draw([dot("slope", now.slope), dot("noise", now.noise)]);
  };

  const words = () => {
    const { state, now } = Store;
    const { history, served, scattered } = now;
    const v = Draw.value;
    const { scale, shift } = now.evaluation;
    const output = scale * state.probe + shift;
    const left = (1 - history.momentum) ** state.fed;
    const spread = Math.max(...scattered) - Math.min(...scattered);
    const bugged = state.bug;
    find("evaluation-finding").textContent = {
      none:
        state.fed === 0
          ? "No batch was seen yet: in evaluation the layer still uses mean 0 and variance 1, and lets x through as it is."
          : `After ${state.fed} batches, ${number(100 * left, 2)} % of the running statistics is still the 0 ` +
            `and 1 that they began with: (1 − ` +
            `${number(history.momentum)})${state.fed === 1 ? "" : " to the power " + state.fed}.`,
      eval:
        `Forgot eval(): the same test example comes out anywhere from ${fixed(Math.min(...scattered))} to ` +
        `${fixed(Math.max(...scattered))}, depending on what else is in its batch.`,
      swapped:
        `With the momentum the wrong way round, ${number(100 * history.momentum)} % of the running statistics ` +
        `are the last batch’s: they follow its noise.`,
      unsaved: "Running statistics that are not saved are mean 0 and variance 1 after loading, whatever was learned.",
    }[bugged];
    find("momentum-note").textContent =
      `${number(state.momentum)} is the weight of the new batch, as PyTorch means it. In TensorFlow and Keras ` +
      `the same is momentum ${number(Math.round((1 - state.momentum) * 1e4) / 1e4)}: the weight of the old.`;
    Draw.formula(
      find("evaluation-formula"),
      `In evaluation the output is (${fixed(state.probe)} minus ${fixed(served.mean)}) over the root of ` +
        `${fixed(served.variance, 3)} plus ${number(now.eps)} = ${fixed(output, 3)}`,
      ["y = ", Draw.fraction("x − running mean", Draw.root("running variance + ε"))],
      [
        "= ",
        Draw.fraction(
          [v("forward", fixed(state.probe)), " − ", v("statistic", Draw.signed(served.mean))],
          [Draw.root(v("statistic", fixed(served.variance, 3)), ` + ${number(now.eps)}`)],
        ),
        " = ",
        v("forward", fixed(output, 3)),
      ],
    );
    const factor = Math.sqrt(state.m / (state.m - 1));
    const true_ = (state.probe - POPULATION.mean) / POPULATION.std;
    find("evaluation-note").textContent =
      `With the true mean and variance (dashed) it would be ${fixed(true_, 3)}. In training, among ` +
      `${State.MOST - 8} other batches of ${state.m} (open circles, side by side), it varies by ` +
      `${fixed(spread)}: ` +
      `slope ${fixed(now.law.slope, 3)}, noise variance ${fixed(now.law.noise, 3)}. ` +
      (state.variance === "biased"
        ? `The biased variance is too small by m/(m − 1), so that outputs in evaluation are ` +
          `√(${state.m}/${state.m - 1}) = ${fixed(factor, 3)} times too large.`
        : "The unbiased running variance is what the paper, PyTorch and this package use; Flax takes the biased one.");
  };
  const draw = () => {
    drawRunning();
    drawProbe();
    drawLaw();
    words();
  };
  const actions = {
    feed: () => Store.change({ fed: Store.state.fed + 1 }),
    feed10: () => Store.change({ fed: Store.state.fed + 10 }),
    forget: () => Store.change({ fed: 0 }),
  };
  return { draw, actions, uses: ["seed", "m", "eps", "fed", "momentum", "variance", "bug", "probe"] };
})();
