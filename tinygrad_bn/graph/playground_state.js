// The one state of the six panels: what it may be, how the address writes it, and all that follows from it.
const State = (() => {
  const MOST = 32;
  const FEWEST = 2;
  const EDGE = 6;
  const UPSTREAM = 3; // examples; how far x and g reach
  const POPULATION = { mean: 3, std: 1.5 };
  const FED = 60; // what panel 4 draws its batches from, and how many at most
  const OFFSETS = [0, 1, 10, 100, 300, 1000, 4096, 1e4, 1e5, 1e6, 1e7, 1e8];
  const VALUES = 64;
  const ALGORITHMS = ["one-pass", "two-pass", "welford", "package"];
  const DEFAULT = {
    seed: 9,
    m: 8,
    x: null,
    g: null,
    gamma: 1,
    beta: 0,
    eps: -5,
    chosen: 0,
    other: 1,
    moved: 1.5,
    mode: "train",
    fed: 20,
    momentum: 0.1,
    variance: "unbiased",
    bug: "none",
    probe: 5,
    dtype: "float32",
    offset: 8,
    rate: 8,
    norm: "batch",
  };
  const CHOICES = {
    mode: ["train", "eval"],
    variance: ["unbiased", "biased"],
    bug: ["none", "eval", "swapped", "unsaved"],
    dtype: ["float64", "float32", "float16"],
    norm: ["batch", "layer", "instance", "group"],
  };
  const RANGES = {
    // lowest, highest, and the step, or null where any number between will do
    seed: [1, 9999, 1],
    m: [FEWEST, MOST, 1],
    gamma: [-2, 2, null],
    beta: [-2, 2, null],
    eps: [-8, 1, 1],
    chosen: [0, MOST - 1, 1],
    other: [0, MOST - 1, 1],
    moved: [-2 * EDGE, 2 * EDGE, null],
    fed: [0, FED, 1],
    momentum: [0.01, 1, null],
    probe: [-2, 8, null],
    offset: [0, OFFSETS.length - 1, 1],
    rate: [0, 14, 1],
  };

  // ----- seeded numbers

  const generator = seed => () => {
    // mulberry32, by Tommy Ettinger (public domain)
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), seed | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  const normals = (seed, stream, n) => {
    // Box and Muller
    const uniform = generator(Math.imul(seed, 7919) + Math.imul(stream, 104729));
    return Array.from({ length: n }, () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
  };
  const cents = v => Math.round(v * 100) / 100;
  const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
  const replaced = (list, i, v) => list.map((old, j) => (j === i ? v : old));
  const name = i => "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"[i];
  const drawn = seed => {
    const x = normals(seed, 1, MOST).map(v => cents(clamp(0.8 + 1.3 * v, -EDGE, EDGE)));
    const noise = normals(seed, 2, MOST);
    return { x, g: x.map((v, i) => cents(clamp(0.5 * v + 0.7 * noise[i], -UPSTREAM, UPSTREAM))) };
  };

  // ----- reading and writing

  const numbers = (written, m, reach) => {
    const values = String(written).split("_").map(Number);
    return values.length === m && values.every(v => Number.isFinite(v) && Math.abs(v) <= reach) ? values : null;
  };
  // A state from anything: what is not a value that the field may have is the default's.
  const valid = given => {
    const state = { ...DEFAULT };
    for (const [field, [low, high, step]] of Object.entries(RANGES)) {
      const value = given[field] === undefined || given[field] === "" ? NaN : Number(given[field]);
      if (Number.isFinite(value)) state[field] = clamp(step ? Math.round(value / step) * step : value, low, high);
    }
    for (const [field, choices] of Object.entries(CHOICES))
      if (choices.includes(given[field])) state[field] = given[field];
    const fresh = drawn(state.seed);
    const list = (value, reach) =>
      Array.isArray(value) ? value : value === undefined ? null : numbers(value, state.m, reach);
    state.x = list(given.x, EDGE) ?? fresh.x.slice(0, state.m);
    state.g = list(given.g, UPSTREAM) ?? fresh.g.slice(0, state.m);
    state.chosen = Math.min(state.chosen, state.m - 1);
    state.other = Math.min(state.other, state.m - 1);
    return state;
  };
  const written = state => {
    const fresh = drawn(state.seed);
    const out = {};
    for (const field of Object.keys(DEFAULT)) {
      if (field === "x" || field === "g") {
        if (state[field].some((v, i) => v !== fresh[field][i])) out[field] = state[field].join("_");
      } else if (state[field] !== DEFAULT[field]) out[field] = state[field];
    }
    return out;
  };

  // ----- what follows from it

  const batch = (seed, number, m) =>
    normals(seed, 1000 + number, MOST)
      .slice(0, m)
      .map(v => POPULATION.mean + POPULATION.std * v);
  const running = state => {
    const momentum = state.bug === "swapped" ? 1 - state.momentum : state.momentum;
    const steps = [{ ...BatchNorm.START }];
    const batches = [];
    for (let i = 0; i < state.fed; i++) {
      const values = batch(state.seed, i, state.m);
      batches.push(BatchNorm.forward(values));
      steps.push(BatchNorm.follow(steps[i], values, { momentum, variance: state.variance }));
    }
    return { steps, batches, last: steps[state.fed], momentum };
  };
  // The same example in other batches: what it becomes in training.
  const scattered = state =>
    Array.from(
      { length: 24 },
      (_, i) =>
        BatchNorm.forward([state.probe, ...batch(state.seed, 500 + i, state.m - 1)], { eps: 10 ** state.eps }).y[0],
    );

  const rows = dtype =>
    OFFSETS.map(offset => {
      const values = Array.from({ length: VALUES }, (_, i) => offset + (i % 2 ? 1 : -1));
      return { offset, results: ALGORITHMS.map(algorithm => BatchNorm.variance(values, dtype, algorithm)) };
    });
  const rowsOf = Object.fromEntries(CHOICES.dtype.map(dtype => [dtype, rows(dtype)]));

  const derive = state => {
    const eps = 10 ** state.eps;
    const options = { gamma: state.gamma, beta: state.beta, eps };
    const before = state.x.map((v, i) => (i === state.chosen ? v - state.moved : v));
    const history = running(state);
    const served = state.bug === "unsaved" ? BatchNorm.START : history.last;
    // The eval mode of panel 3 uses the statistics of the batch as it was, as running ones that have settled would be.
    const was = BatchNorm.forward(before, options);
    const settled = BatchNorm.inference({ mean: was.mean, variance: was.variance }, options);
    const evaluated = values => values.map(v => settled.scale * v + settled.shift);
    return {
      eps,
      options,
      before,
      history,
      was,
      settled,
      forward: BatchNorm.forward(state.x, options),
      backward: BatchNorm.backward(state.g, state.x, options),
      outputs:
        state.mode === "train"
          ? { before: was.y, after: BatchNorm.forward(state.x, options).y }
          : { before: evaluated(before), after: evaluated(state.x) },
      jacobian:
        state.mode === "train"
          ? BatchNorm.jacobian(state.x, options)
          : state.x.map((_, i) => state.x.map((__, j) => (i === j ? settled.scale : 0))),
      evaluation: BatchNorm.inference(served, { eps }),
      served,
      scattered: scattered(state),
      law: BatchNorm.trainingSlope(state.m),
      precision: rowsOf[state.dtype],
    };
  };

  return {
    ALGORITHMS,
    DEFAULT,
    EDGE,
    FED,
    MOST,
    OFFSETS,
    POPULATION,
    RANGES,
    UPSTREAM,
    CHOICES,
    cents,
    clamp,
    replaced,
    derive,
    drawn,
    name,
    normals,
    valid,
    written,
  };
})();

// Who holds the state, and tells the panels when it changed.
const Store = (() => {
  const listeners = [];
  const store = {
    state: null,
    now: null,
    hot: null, // hot: the example pointed at, which no address keeps
    start: given => {
      store.state = State.valid(given);
      store.refresh();
    },
    change: patch => {
      store.state = State.valid({ ...store.state, ...patch });
      store.refresh();
    },
    // More examples are drawn as the seed says; those that are there stay, with what was done to them.
    resize: m => {
      const { seed, x, g } = store.state;
      const more = State.drawn(seed);
      store.change({
        m,
        x: [...x, ...more.x.slice(x.length)].slice(0, m),
        g: [...g, ...more.g.slice(g.length)].slice(0, m),
      });
    },
    point: example => {
      if (example !== store.hot) {
        store.hot = example;
        listeners.forEach(draw => draw());
      }
    },
    refresh: () => {
      store.now = State.derive(store.state);
      store.hot = null;
      listeners.forEach(draw => draw());
    },
    listen: draw => listeners.push(draw),
    shown: () => Math.min(store.hot ?? store.state.chosen, store.state.m - 1),
  };
  return store;
})();
