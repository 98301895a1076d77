// Panel 2: the gradient on its way back, as what a line in x_hat leaves of it.
const BackwardPanel = (() => {
  const { find, fixed, number } = Page;
  const { UPSTREAM, cents, name } = State;
  const svg = find("line-stage");
  const bars = find("parts-stage");
  const at = Draw.layers(svg, "grid", "line", "removed", "residuals", "words", "handles");
  const parts = Draw.layers(bars, "grid", "level", "slope", "kept", "totals", "down", "words");
  const handles = Draw.handles(svg, at.handles);
  const HEIGHT = 320;

  const draw = () => {
    const { state, now } = Store;
    const { forward, backward: back } = now;
    const shown = Store.shown();
    const width = Draw.fit(svg, HEIGHT);
    const reach = Math.max(2, Math.ceil(Math.max(...forward.xHat.map(Math.abs)) + 0.2));
    const to = Draw.scale(-reach, reach, 34, width - 12);
    const up = Draw.scale(-UPSTREAM, UPSTREAM, HEIGHT - 34, 26);
    const ticks = [-3, -2, -1, 0, 1, 2, 3];
    const across = Array.from({ length: 2 * reach + 1 }, (_, i) => i - reach);
    Draw.lines(at.grid, [
      ...ticks.map(v => [to(-reach), up(v), to(reach), up(v), v ? "faint" : "zero"]),
      [to(0), up(-3), to(0), up(3), "zero"],
    ]);
    const line = v => back.level + back.slope * v;
    Draw.lines(at.line, [[to(-reach), up.inside(line(-reach)), to(reach), up.inside(line(reach)), "statistic"]]);
    Draw.lines(
      at.residuals,
      forward.xHat.map((v, i) => [
        to(v),
        up.inside(line(v)),
        to(v),
        up.inside(state.g[i]),
        i === shown ? "residual shown" : "residual",
      ]),
    );
    const order = [shown, ...state.x.keys()].filter((i, k, all) => all.indexOf(i) === k);
    const circles = forward.xHat.map((v, i) => ({ x: to(v), y: up(state.g[i]) }));
    const placed = [];
    const spots = order.map(i => ({ x: circles[i].x + 16, y: circles[i].y + 4 }));
    const crossed = p =>
      circles.some(
        (q, i) => Math.abs(q.x - p.x) < 7 && (p.y - 4 - up.inside(line(forward.xHat[i]))) * (p.y - 4 - q.y) < 0,
      );
    const free = spots.map(
      (p, k) =>
        (k === 0 || !crossed(p)) &&
        circles.every((q, i) => i === order[k] || Math.hypot(p.x - q.x, p.y - 4 - q.y) > 13) &&
        placed.every(q => Math.abs(p.x - q.x) > 14 || Math.abs(p.y - q.y) > 16) &&
        placed.push(p) > 0,
    );
    Draw.labels(at.words, [
      ...ticks.map(v => Draw.text(24, up(v) + 4, number(v), { class: "tick", "text-anchor": "end" })),
      ...across
        .filter(v => reach < 4 || v % 2 === 0)
        .map(v => Draw.text(to(v), HEIGHT - 14, number(v), { class: "tick" })),
      Draw.text(28, 14, "g, upstream gradient", { class: "axis-name", "text-anchor": "start" }),
      Draw.text(width - 12, HEIGHT - 38, "x̂", { class: "axis-name", "text-anchor": "end" }),
      ...order.map((i, k) =>
        Draw.text(spots[k].x, spots[k].y, free[k] ? name(i) : "", { class: i === shown ? "name shown" : "name" }),
      ),
    ]);
    handles.draw(
      state.g.map((g, i) => ({
        key: `g${i}`,
        example: i,
        x: to(forward.xHat[i]),
        y: up(g),
        shape: "circle",
        size: i === shown ? 8 : 6,
        kind: i === shown ? "gradient shown" : "gradient",
        label: `upstream gradient of example ${name(i)}:`,
        value: g,
        low: -UPSTREAM,
        high: UPSTREAM,
        step: 0.1,
        words: fixed(g),
        along: "y",
        first: i === state.chosen,
        skip: i !== state.chosen,
        from: up.invert,
        begin: () => {
          if (Store.state.chosen !== i) Store.change({ chosen: i });
        },
        focused: () => {
          if (Store.state.chosen !== i) Store.change({ chosen: i });
        },
        change: value => Store.change({ g: State.replaced(Store.state.g, i, cents(value)) }),
        after: () => `dx ${fixed(Store.now.backward.dx[i], 3)}`,
      })),
    );
    drawParts(shown);
    words(shown);
  };

  const drawParts = shown => {
    const { state, now } = Store;
    const { forward, backward: back } = now;
    const width = Draw.fit(bars, HEIGHT);
    const m = state.m;
    const slot = (width - 40) / m;
    const wide = Math.min(22, slot * 0.66);
    const middle = i => 36 + slot * (i + 0.5);
    const pieces = state.g.map((_, i) => [back.level, back.slope * forward.xHat[i], back.kept[i]]);
    const tall = Math.max(1, ...pieces.flatMap(p => [1, -1].map(s => p.reduce((t, v) => t + Math.max(0, s * v), 0))));
    const up = Draw.scale(-tall, tall, 186, 30);
    const most = Math.max(1e-3, ...back.dx.map(Math.abs));
    const down = Draw.scale(-most, most, 296, 226);
    const stacked = pieces.map(p => {
      let above = 0;
      let below = 0;
      return p.map(v => (v >= 0 ? [above, (above += v)] : [below, (below += v)]));
    });
    ["level", "slope", "kept"].forEach((part, k) =>
      Draw.join(parts[part], "rect", stacked, (p, i) => {
        const [a, b] = p[k].map(v => up(v));
        return {
          x: middle(i) - wide / 2,
          width: wide,
          y: Math.min(a, b),
          height: Math.abs(a - b),
          class: i === shown ? `${part} shown` : part,
        };
      }),
    );
    Draw.join(parts.down, "rect", back.dx, (v, i) => ({
      x: middle(i) - wide / 2,
      width: wide,
      y: Math.min(down(0), down(v)),
      height: Math.max(Math.abs(down(v) - down(0)), 0.5),
      class: i === shown ? "kept shown" : "kept",
    }));
    Draw.lines(parts.grid, [
      [32, up(0), width, up(0), "zero"],
      [32, down(0), width, down(0), "zero"],
    ]);
    const fits = Draw.thinned(
      [shown, ...state.g.keys()].map(i => middle(i)),
      13,
    );
    const all = [shown, ...state.g.keys()];
    const legend = width < 330 ? ["mean", "along x̂", "kept"] : ["mean of g", "along x̂", "kept"];
    Draw.labels(parts.words, [
      Draw.text(34, 14, "g =", { class: "axis-name", "text-anchor": "start" }),
      ...legend.map((words, k) =>
        Draw.text(64 + [0, 92, 170][k], 14, words, {
          class: ["muted-ink", "statistic-ink", "backward-ink"][k],
          "text-anchor": "start",
        }),
      ),
      Draw.text(34, 214, "dx", { class: "axis-name", "text-anchor": "start" }),
      Draw.text(28, up(0) + 4, "0", { class: "tick", "text-anchor": "end" }),
      Draw.text(28, down(0) + 4, "0", { class: "tick", "text-anchor": "end" }),
      Draw.text(width, 214, `largest ${number(Math.max(...back.dx.map(Math.abs)), 3)}`, {
        class: "tick",
        "text-anchor": "end",
      }),
      ...all.map((i, k) =>
        Draw.text(middle(i), HEIGHT - 6, fits[k] ? name(i) : "", { class: i === shown ? "name shown" : "name" }),
      ),
    ]);
  };

  const words = i => {
    const { state, now } = Store;
    const { forward, backward: back } = now;
    const v = Draw.value;
    const whole = BatchNorm.dot(state.g, state.g);
    const share = whole ? 1 - BatchNorm.dot(back.kept, back.kept) / whole : 0;
    find("backward-finding").textContent =
      state.m === 2
        ? `With two examples the line passes through both points: nothing is left, and dx is 0 up to ε, ±γ/2 · ` +
          `ε/s³ · (g₁ − g₂) = ${number(back.dx[0], 3)}. The network below cannot learn.`
        : `A line in x̂ explains ${fixed(100 * State.clamp(share, 0, 1), 0)} % of this gradient (of its squared ` +
          `length), and that much never reaches x: ` +
          `${state.m} examples keep ${state.m - 2} directions of ${state.m}.`;
    Draw.formula(
      find("backward-formula"),
      `d x of ${name(i)} = gamma over s times (g minus its mean minus x hat times the mean of g x hat) = ` +
        `${fixed(back.dx[i], 3)}`,
      ["dx = ", Draw.fraction("γ", Draw.root("σ² + ε")), " (g − mean(g) − x̂ · mean(g x̂))"],
      [
        "= ",
        Draw.fraction(v("parameter", fixed(state.gamma, 1)), v("statistic", fixed(forward.std, 3))),
        " (",
        v("backward", fixed(state.g[i])),
        " − ",
        Draw.signed(back.level, 3),
        " − ",
        v("forward", Draw.signed(forward.xHat[i], 3)),
        " · ",
        v("statistic", Draw.signed(back.slope, 3)),
        ")",
      ],
      ["= ", v("backward", fixed(back.dx[i], 3))],
    );
    const rows = [
      [
        "Σ dx",
        number(Math.abs(BatchNorm.sum(back.dx)) < 1e-12 ? 0 : BatchNorm.sum(back.dx), 3),
        "0: shifting all of x changes nothing",
      ],
      [
        "Σ dx x̂",
        number(BatchNorm.dot(back.dx, forward.xHat), 3),
        `γ/s · dγ · ε/(σ² + ε) = ${number(back.along, 3)}: 0 but for ε`,
      ],
      ["dγ = Σ g x̂", fixed(back.dgamma, 3), "what goes to γ"],
      ["dβ = Σ g", fixed(back.dbeta, 3), "what goes to β"],
    ];
    const list = find("backward-readout");
    Draw.join(list, "div", rows, () => ({}), Page.html).forEach((row, k) => {
      Draw.join(row, "span", rows[k], (words, j) => ({ text: words, class: ["term", "number", "why"][j] }), Page.html);
    });
    Draw.table(
      find("backward-table"),
      state.g.map((g, j) => [
        name(j),
        fixed(g),
        fixed(back.level, 3),
        fixed(back.slope * forward.xHat[j], 3),
        fixed(back.kept[j], 3),
        fixed(back.dx[j], 3),
      ]),
      { marked: i, pointed: Store.point },
    );
  };
  return { draw, uses: ["x", "g", "gamma", "eps", "chosen"], points: true };
})();
