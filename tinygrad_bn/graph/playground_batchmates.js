// Panel 3: what one example does to the others, and the Jacobian that says it.
const BatchmatesPanel = (() => {
  const { find, fixed, number } = Page;
  const { EDGE, cents, name } = State;
  const others = m => (m === 2 ? "the other" : `all ${m - 1} others`);
  const svg = find("mates-stage");
  const heat = find("heat-stage");
  const at = Draw.layers(svg, "grid", "axes", "arrows", "ghosts", "marks", "words", "handles");
  const map = Draw.layers(heat, "cells", "scale", "frames", "words");
  const handles = Draw.handles(svg, at.handles);
  const HEIGHT = 340;
  const ROWS = { x: 72, before: 178, after: 258 };
  const TOP = 24;
  let cell = 1;
  let left = 0;

  const draw = () => {
    const { state, now } = Store;
    const { outputs } = now;
    const i = state.chosen;
    const width = Draw.fit(svg, HEIGHT);
    const to = Draw.scale(-EDGE, EDGE, 16, width - 16);
    const place = v => to.inside(v);
    const step = width < 460 ? 3 : 2;
    const ticks = [];
    for (let v = -EDGE; v <= EDGE; v += step) ticks.push(v);
    Draw.lines(
      at.grid,
      ticks.map(v => [to(v), ROWS.x - 14, to(v), ROWS.after + 14, v ? "faint" : "zero"]),
    );
    Draw.lines(
      at.axes,
      Object.values(ROWS).map(row => [4, row, width - 4, row, "axis"]),
    );
    const moves = outputs.before.map((v, j) => [place(v), place(outputs.after[j])]);
    Draw.lines(at.arrows, [
      [place(now.before[i]), ROWS.x, place(state.x[i]), ROWS.x, "move shown"],
      ...moves.map(([a, b], j) => [a, ROWS.before + 5, b, ROWS.after - 7, j === i ? "move shown" : "move"]),
    ]);
    Draw.join(
      at.ghosts,
      "circle",
      [[now.before[i], ROWS.x], ...outputs.before.map(v => [v, ROWS.before])],
      ([v, row], j) => ({
        cx: place(v),
        cy: row,
        r: 5,
        class: j === 0 || j - 1 === i ? "ghost shown" : "ghost",
      }),
    );
    Draw.join(
      at.marks,
      "circle",
      [
        ...state.x.map((v, j) => [v, ROWS.x, j]).filter(([, , j]) => j !== i),
        ...outputs.after.map((v, j) => [v, ROWS.after, j]),
      ],
      ([v, row, j]) => ({ cx: place(v), cy: row, r: 5, class: j === i ? "value shown" : "value" }),
    );
    const order = [i, state.other, ...state.x.keys()].filter((j, k, all) => all.indexOf(j) === k);
    const fits = Draw.thinned(
      order.map(j => place(outputs.after[j])),
      14,
    );
    Draw.labels(at.words, [
      Draw.text(4, 22, `x: only ${name(i)} moves`, { class: "axis-name", "text-anchor": "start" }),
      Draw.text(4, ROWS.before - 22, "y before", { class: "axis-name", "text-anchor": "start" }),
      Draw.text(4, ROWS.after - 9, "y after", { class: "axis-name", "text-anchor": "start" }),
      ...ticks.map(v => Draw.text(to(v), HEIGHT - 8, number(v), { class: "tick" })),
      Draw.text(place(state.x[i]), ROWS.x - 18, name(i), { class: "name shown" }),
      ...order.map((j, k) =>
        Draw.text(place(outputs.after[j]), ROWS.after + 24, fits[k] ? name(j) : "", {
          class: j === i ? "name shown" : "name",
        }),
      ),
    ]);
    handles.draw([
      {
        key: "moved",
        x: place(state.x[i]),
        y: ROWS.x,
        shape: "circle",
        size: 9,
        kind: "value shown",
        label: `x of example ${name(i)}, among its batchmates:`,
        value: state.x[i],
        low: -EDGE,
        high: EDGE,
        step: 0.1,
        words: fixed(state.x[i]),
        along: "x",
        from: to.invert,
        begin: () => Store.change({ moved: 0 }),
        change: value => {
          const fresh = cents(value);
          const { x, moved, chosen } = Store.state;
          Store.change({
            x: State.replaced(x, chosen, fresh),
            moved: State.clamp(cents(moved + fresh - x[chosen]), -12, 12),
          });
        },
        after: () => find("batchmates-finding").textContent,
      },
    ]);
    drawHeat();
    words();
  };

  const drawHeat = () => {
    const { state, now } = Store;
    const width = Draw.fit(heat, HEIGHT);
    const m = state.m;
    cell = Math.min((width - 28) / m, (HEIGHT - TOP - 50) / m);
    left = Math.max(24, (width - m * cell) / 2);
    const most = Math.max(1e-9, ...now.jacobian.flat().map(Math.abs));
    const colour = v =>
      `fill: color-mix(in oklab, var(--${v >= 0 ? "forward" : "backward"}) ` +
      `${((100 * Math.abs(v)) / most).toFixed(1)}%, var(--nothing))`;
    Draw.join(map.cells, "rect", now.jacobian.flat(), (v, k) => ({
      x: left + (k % m) * cell,
      y: TOP + Math.floor(k / m) * cell,
      width: Math.max(1, cell - 1),
      height: Math.max(1, cell - 1),
      style: colour(v),
    }));
    const bar = k => left + m * cell - 8 * (21 - k) + 4;
    const bottom = TOP + m * cell;
    Draw.join(
      map.scale,
      "rect",
      Array.from({ length: 21 }, (_, k) => k),
      k => ({ x: bar(k) - 4, y: bottom + 8, width: 8, height: 12, style: colour(((k - 10) / 10) * most) }),
    );
    Draw.join(map.frames, "rect", [0], () => ({
      x: left + state.chosen * cell - 1,
      y: TOP + state.other * cell - 1,
      width: cell + 1,
      height: cell + 1,
    }));
    const each = Math.ceil(14 / cell);
    const side = [...state.x.keys()];
    const named = i => (i === state.chosen || i === state.other ? true : i % each === 0);
    const across = Draw.thinned(
      [state.chosen, ...side].map(i => (named(i) ? left + (i + 0.5) * cell : null)),
      13,
    );
    const along = Draw.thinned(
      [state.other, ...side].map(i => (named(i) ? TOP + (i + 0.5) * cell : null)),
      14,
    );
    Draw.labels(map.words, [
      ...[state.chosen, ...side].map((i, k) =>
        Draw.text(left + (i + 0.5) * cell, TOP - 7, across[k] ? name(i) : "", {
          class: i === state.chosen ? "name shown" : "name",
        }),
      ),
      ...[state.other, ...side].map((i, k) =>
        Draw.text(left - 12, TOP + (i + 0.5) * cell + 4, along[k] ? name(i) : "", {
          class: i === state.other ? "name shown" : "name",
        }),
      ),
      Draw.text(left, bottom + 17, "∂y / ∂x", { class: "axis-name", "text-anchor": "start" }),
      ...[-most, 0, most].map((v, k) => Draw.text(bar(k * 10), bottom + 40, number(v, 2), { class: "tick" })),
    ]);
    heat.setAttribute(
      "aria-label",
      `How each of ${m} outputs depends on each of ${m} inputs: ` +
        `${state.mode === "train" ? "every output depends on every input" : "each output depends on its own input alone"}`,
    );
  };
  heat.addEventListener("click", event => {
    const box = heat.getBoundingClientRect();
    const m = Store.state.m;
    const j = Math.floor((event.clientX - box.left - left) / cell);
    const i = Math.floor((event.clientY - box.top - TOP) / cell);
    if (i >= 0 && j >= 0 && i < m && j < m) Store.change({ chosen: j, other: i });
  });

  const words = () => {
    const { state, now } = Store;
    const { forward, outputs, jacobian } = now;
    const j = state.chosen;
    const i = state.other;
    const v = Draw.value;
    const changes = outputs.after.map((y, k) => (k === j ? 0 : Math.abs(y - outputs.before[k])));
    const far = fixed(state.moved);
    const count = changes.filter(c => c > 5e-7).length;
    const train = state.mode === "train";
    find("batchmates-finding").textContent = train
      ? `${name(j)} moved by ${far}, and ` +
        `${count === state.m - 1 ? "the outputs of " + others(state.m) : count + " other outputs"} moved with ` +
        `it, by up to ${fixed(Math.max(...changes))}: in training no example is alone.`
      : `${name(j)} moved by ${far}, and its own output by ${fixed(outputs.after[j] - outputs.before[j])}. The ` +
        `others stayed where they were: in evaluation every example is alone.`;
    const d = i === j ? 1 : 0;
    const value = jacobian[i][j];
    if (train) {
      Draw.formula(
        find("batchmates-formula"),
        `d y of ${name(i)} by d x of ${name(j)} = gamma over s times (${d} minus one over ${state.m} minus x ` +
          `hat ${name(i)} times x hat ${name(j)} over ${state.m}) = ${fixed(value, 4)}`,
        [
          "∂y",
          Draw.part("sub", name(i)),
          "/∂x",
          Draw.part("sub", name(j)),
          " = ",
          Draw.fraction("γ", "s"),
          ` (${i === j ? "1" : "0"} − `,
          Draw.fraction("1", "m"),
          " − ",
          Draw.fraction("x̂ᵢ x̂ⱼ", "m"),
          ")",
        ],
        [
          "= ",
          Draw.fraction(v("parameter", fixed(state.gamma, 1)), v("statistic", fixed(forward.std, 3))),
          ` (${d} − `,
          Draw.fraction("1", String(state.m)),
          " − ",
          Draw.fraction(
            [v("forward", Draw.signed(forward.xHat[i], 3)), " · ", v("forward", Draw.signed(forward.xHat[j], 3))],
            String(state.m),
          ),
          ")",
        ],
        ["= ", v("backward", fixed(value, 4))],
      );
    } else {
      Draw.formula(
        find("batchmates-formula"),
        `d y of ${name(i)} by d x of ${name(j)} = ${fixed(value, 4)}`,
        [
          "∂y",
          Draw.part("sub", name(i)),
          "/∂x",
          Draw.part("sub", name(j)),
          " = ",
          i === j ? Draw.fraction("γ", Draw.root("running variance + ε")) : "0",
        ],
        ["= ", v("backward", fixed(value, 4))],
      );
    }
    find("batchmates-note").textContent = train
      ? `The matrix is (γ/s)(I − 11ᵀ/m − x̂x̂ᵀ/m): it sends two directions to 0 (the second up to ε), so it has ` +
        `rank m − 2 = ${state.m - 2}. Its rows add up to 0.`
      : "The running statistics are here those of the batch as it was. The matrix is diagonal: γ/√(running " +
        "variance + ε) times I.";
  };
  return { draw, uses: ["x", "gamma", "beta", "eps", "chosen", "other", "moved", "mode"] };
})();
