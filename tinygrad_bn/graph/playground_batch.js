// Panel 1: one channel of one batch, its points to drag.
const BatchPanel = (() => {
  const { find, fixed, number } = Page;
  const { EDGE, cents, name } = State;
  const kept = v => State.clamp(v, -EDGE, EDGE);
  const svg = find("batch-stage");
  const at = Draw.layers(svg, "grid", "band", "threads", "axes", "marks", "names", "statistics", "words", "handles");
  const handles = Draw.handles(svg, at.handles);
  const ROWS = { x: 78, hat: 186, y: 276 };
  const HEIGHT = 326;

  const shifted = by => {
    const { x } = Store.state;
    const room = by > 0 ? EDGE - Math.max(...x) : -EDGE - Math.min(...x);
    const step = by > 0 ? Math.min(by, room) : Math.max(by, room);
    return x.map(v => Math.round((v + step) * 1e4) / 1e4);
  };
  const scaled = by => {
    // about the mean
    const { x } = Store.state;
    const mu = BatchNorm.mean(x);
    const most = Math.min(
      ...x.map(v => (v === mu ? Infinity : (EDGE - Math.sign(by * (v - mu)) * mu) / Math.abs(v - mu))),
    );
    const factor = Math.sign(by) * Math.min(Math.abs(by), most);
    return { x: x.map(v => kept(mu + factor * (v - mu))), moved: State.clamp(Store.state.moved * factor, -12, 12) };
  };
  // Do something to the whole batch, and say what became of y.
  const whole = (what, patch, sign = 1) => {
    const before = Store.now.forward.y;
    const beta = Store.state.beta;
    Store.change(patch);
    const change = Math.max(...Store.now.forward.y.map((v, i) => Math.abs(v - beta - sign * (before[i] - beta))));
    const same = change < 5e-4 ? (sign < 0 ? "y turned round about β, and" : "y did not move:") : "y moved:";
    say(
      `${what} ${same} the largest ${sign < 0 ? "other " : ""}change is ` +
        `${number(change, 2)}.${change >= 5e-4 ? " With an ε this large beside σ², the scale matters." : ""}`,
    );
  };
  const say = words => {
    find("batch-said").textContent = words;
    Page.say(words);
  };

  const actions = {
    draw: () => {
      Store.change({ seed: 1 + (Store.state.seed % 9999), x: undefined, g: undefined });
      say("A new batch.");
    },
    outlier: () => {
      const i = Store.state.chosen;
      const far = Store.state.x[i] >= BatchNorm.mean(Store.state.x) ? EDGE : -EDGE;
      Store.change({
        x: State.replaced(Store.state.x, i, far),
        moved: State.clamp(far - Store.state.x[i], -12, 12) || Store.state.moved,
      });
      const most = Math.sqrt(Store.state.m - 1);
      say(
        `${name(i)} is an outlier: x̂ is ${fixed(Store.now.forward.xHat[i])}. Among ${Store.state.m} it can ` +
          `be no more than √${Store.state.m - 1} = ${fixed(most)}, however far out.`,
      );
    },
    right: () => whole("All moved right.", { x: shifted(0.5) }),
    left: () => whole("All moved left.", { x: shifted(-0.5) }),
    double: () => whole("All twice as far from the mean.", scaled(2)),
    halve: () => whole("All half as far from the mean.", scaled(0.5)),
    negate: () => whole("All negated.", { x: Store.state.x.map(v => -v), moved: -Store.state.moved }, -1),
  };

  const draw = () => {
    const {
      state,
      now: { forward },
    } = Store;
    const shown = Store.shown();
    const width = Draw.fit(svg, HEIGHT);
    const left = 30;
    const to = Draw.scale(-EDGE, EDGE, left + 12, width - 14);
    const place = v => to.inside(v);
    const step = width < 460 ? 2 : 1;
    const ticks = [];
    for (let v = -EDGE; v <= EDGE; v += step) ticks.push(v);
    Draw.lines(
      at.grid,
      ticks.map(v => [to(v), ROWS.x - 24, to(v), ROWS.y + 14, v === 0 ? "zero" : "faint"]),
    );
    const sigma = Math.sqrt(forward.variance);
    const around = (mu, s, row) => ({
      x: place(mu - s),
      width: Math.max(1, place(mu + s) - place(mu - s)),
      y: row - 16,
      height: 32,
      rx: 4,
    });
    Draw.join(
      at.band,
      "rect",
      [
        [forward.mean, sigma, ROWS.x],
        [0, 1, ROWS.hat],
        [state.beta, Math.abs(state.gamma), ROWS.y],
      ],
      ([mu, s, row]) => around(mu, s, row),
    );
    const examples = state.x.map((_, i) => i);
    Draw.join(at.threads, "path", examples, i => ({
      d: Draw.path([
        [place(state.x[i]), ROWS.x],
        [place(forward.xHat[i]), ROWS.hat],
        [place(forward.y[i]), ROWS.y],
      ]),
      class: i === shown ? "thread shown" : "thread",
    }));
    Draw.lines(
      at.axes,
      Object.values(ROWS).map(row => [left + 4, row, width - 6, row, "axis"]),
    );
    Draw.join(
      at.marks,
      "circle",
      examples.flatMap(i => [
        [i, forward.xHat[i], ROWS.hat],
        [i, forward.y[i], ROWS.y],
      ]),
      ([i, v, row]) => ({
        cx: place(v),
        cy: row,
        r: i === shown ? 7 : 5,
        class: "value" + (i === shown ? " shown" : ""),
      }),
    );
    const order = [shown, ...examples.filter(i => i !== shown)];
    const fits = Draw.thinned(
      order.map(i => place(state.x[i])),
      15,
    );
    Draw.labels(
      at.names,
      order.map((i, k) =>
        Draw.text(place(state.x[i]), ROWS.x + 30, fits[k] ? name(i) : "", {
          class: i === shown ? "name shown" : "name",
        }),
      ),
    );
    const high = ROWS.x - 46;
    const mean = place(forward.mean);
    const edge = place(forward.mean + sigma);
    Draw.lines(at.statistics, [
      [mean, high, mean, ROWS.x + 16, "statistic"],
      [mean, high, edge, high, "statistic"],
      [edge, high, edge, ROWS.x - 16, "statistic faintly"],
    ]);
    Draw.labels(at.words, [
      Draw.text(mean - 13, high + 5, `μ ${fixed(forward.mean)}`, { "text-anchor": "end", class: "statistic-ink" }),
      Draw.text(edge + 11, high + 5, `σ ${fixed(sigma)}`, { "text-anchor": "start", class: "statistic-ink" }),
      ...[
        ["x", ROWS.x],
        ["x̂", ROWS.hat],
        ["y", ROWS.y],
      ].map(([words, row]) => Draw.text(left - 8, row + 6, words, { class: "row-name" })),
      ...ticks.map(v => Draw.text(to(v), HEIGHT - 18, number(v), { class: "tick" })),
    ]);
    handles.draw([
      ...state.x.map((v, i) => ({
        key: `x${i}`,
        example: i,
        x: place(v),
        y: ROWS.x,
        shape: "circle",
        size: i === shown ? 9 : 7,
        kind: i === shown ? "value shown" : "value",
        label: `x of example ${name(i)}:`,
        value: v,
        low: -EDGE,
        high: EDGE,
        step: 0.1,
        words: fixed(v),
        along: "x",
        first: i === state.chosen,
        skip: i !== state.chosen,
        from: to.invert,
        begin: () => Store.change({ chosen: i, moved: 0 }),
        focused: () => {
          if (Store.state.chosen !== i) Store.change({ chosen: i });
        },
        change: value => {
          const fresh = cents(value);
          const { x, moved } = Store.state;
          Store.change({ x: State.replaced(x, i, fresh), moved: State.clamp(cents(moved + fresh - x[i]), -12, 12) });
        },
        after: () => `x̂ ${fixed(Store.now.forward.xHat[i])}, y ${fixed(Store.now.forward.y[i])}`,
      })),
      {
        key: "mean",
        x: mean,
        y: high,
        shape: "diamond",
        size: 7,
        kind: "statistic",
        label: "the mean of all:",
        value: cents(forward.mean),
        low: -EDGE,
        high: EDGE,
        step: 0.1,
        words: fixed(forward.mean),
        along: "x",
        from: to.invert,
        change: value => {
          const by = cents(value) - cents(Store.now.forward.mean);
          if (Math.abs(by) > 0.004) whole(`All moved by ${fixed(by)}.`, { x: shifted(by) });
        },
      },
      {
        key: "sigma",
        x: edge,
        y: high,
        shape: "grip",
        size: 9,
        kind: "statistic",
        label: "the standard deviation of all:",
        value: cents(sigma),
        low: 0.05,
        high: EDGE,
        step: 0.1,
        words: fixed(sigma),
        along: "x",
        from: p => to.invert(p) - Store.now.forward.mean,
        change: value => {
          const s = Math.sqrt(Store.now.forward.variance);
          if (s > 1e-9) whole(`All scaled by ${fixed(value / s)}.`, scaled(value / s));
        },
      },
    ]);
    words(forward, shown, sigma);
  };

  const words = (forward, i, sigma) => {
    const { state, now } = Store;
    const most = Math.sqrt(state.m - 1);
    find("batch-finding").textContent =
      `Whatever these ${state.m} values are, their outputs have mean β = ${fixed(state.beta)} and standard deviation ` +
      `${fixed((Math.abs(state.gamma) * sigma) / forward.std)}. Among ${state.m}, no x̂ can lie beyond ` +
      `√${state.m - 1} = ${fixed(most)}; that of ${name(i)} is ${fixed(forward.xHat[i])}.`;
    const v = Draw.value;
    Draw.formula(
      find("batch-formula"),
      `x hat of ${name(i)} = (${fixed(state.x[i])} minus ${fixed(forward.mean)}) over the root of ` +
        `${fixed(forward.variance, 3)} plus ${number(now.eps)} = ${fixed(forward.xHat[i], 3)}; y = ` +
        `${fixed(forward.y[i], 3)}`,
      [
        `x̂ = `,
        Draw.fraction("x − μ", Draw.root("σ² + ε")),
        ` = `,
        Draw.fraction(
          [v("forward", fixed(state.x[i])), " − ", v("statistic", Draw.signed(forward.mean))],
          [Draw.root(v("statistic", fixed(forward.variance, 3)), ` + ${number(now.eps)}`)],
        ),
        ` = `,
        v("forward", fixed(forward.xHat[i], 3)),
      ],
      [
        `y = γ x̂ + β = `,
        v("parameter", fixed(state.gamma, 1)),
        ` · `,
        v("forward", Draw.signed(forward.xHat[i], 3)),
        ` + `,
        v("parameter", Draw.signed(state.beta, 1)),
        ` = `,
        v("forward", fixed(forward.y[i], 3)),
      ],
    );
    Draw.table(
      find("batch-table"),
      state.x.map((x, j) => [name(j), fixed(x), fixed(forward.xHat[j], 3), fixed(forward.y[j], 3)]),
      { marked: i, pointed: Store.point },
    );
  };
  return { draw, actions, uses: ["x", "gamma", "beta", "eps", "chosen"], points: true };
})();
