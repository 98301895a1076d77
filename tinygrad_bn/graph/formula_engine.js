// The formulas, evaluated in the page; graph/formula_numpy.py has the same functions, in Python.
const Formula = (() => {
  const {
    TooMuch,
    add,
    along,
    argmax,
    array,
    back,
    broadcast,
    concatenate,
    count,
    cut,
    divide,
    erf,
    flip,
    full,
    larger,
    max,
    mean,
    min,
    one,
    pad,
    places,
    product,
    put,
    range,
    reshape,
    shapeOf,
    smaller,
    spread,
    spreadPlaces,
    starts,
    stridesOf,
    subtract,
    sum,
    sumTo,
    swapped,
    take,
    times,
    together,
    transpose,
    two,
    where,
    widths,
    zeros,
  } = Arrays;
  const { conv2d, conv2dInput, conv2dWeight, einsum, einsumGradient, gather, kept, matmul, maxPlace, maxPool, pool, unpool } =
    Products;

  // ----- all of them by name

  const FUNCTIONS = {
    abs: one(Math.abs),
    all_but_channels: x => range(x.shape.length).filter(a => a !== 1),
    along: (v, x, axes, otherwise) =>
      v === null
        ? otherwise
        : reshape(
            v,
            x.shape.map((n, i) => (axes.includes(i) ? n : 1)),
          ),
    argmax,
    avg_pool2d: (x, kernel, ...how) =>
      divide(
        pool(x, kernel, ...how, 0, (s, v) => s + (v ?? 0)),
        product(kernel),
      ),
    avg_pool2d_spread: (g, shape, kernel, ...how) => unpool(g, shape, kernel, ...how, (_, i) => g.data[i] / product(kernel)),
    broadcast_to: broadcast,
    cast: (x, dtype) => (dtype === "float32" ? one(Math.fround)(x) : x),
    clip: (x, lo, hi) =>
      one(v => {
        v = lo === null ? v : larger(v, lo);
        return hi === null ? v : smaller(v, hi);
      })(x),
    column: x => reshape(x, [...shapeOf(x), 1]),
    concatenate,
    conv2d,
    conv2d_input: conv2dInput,
    conv2d_weight: conv2dWeight,
    count,
    crop: (x, shape) =>
      cut(
        x,
        shape.map(() => 0),
        shape,
      ),
    cumsum: (x, axis) => along(x, axis, (a, b) => a + b),
    einsum,
    einsum_gradient: einsumGradient,
    erf: one(erf),
    exp: one(Math.exp),
    expm1: one(Math.expm1),
    finite_or_0: one(v => (Number.isFinite(v) ? v : 0)),
    flip,
    grouped: (x, groups) => reshape(x, [x.shape[0], groups, -1]),
    kept,
    log: one(Math.log),
    log1p: one(Math.log1p),
    max,
    max_pool2d: maxPool,
    max_pool2d_gather: gather,
    max_pool2d_place: maxPlace,
    max_pool2d_scatter: (g, place, shape, ...how) => unpool(g, shape, ...how, (k, i) => (place.data[i] === k ? g.data[i] : 0)),
    maximum: two(larger),
    mean,
    min,
    minimum: two(smaller),
    one_hot: (labels, x) => {
      const out = zeros([labels.data.length, x.shape[1]]);
      labels.data.forEach((c, i) => {
        out.data[i * x.shape[1] + c] = 1;
      });
      return out;
    },
    other_axes: (x, axes) => range(x.shape.length).filter(a => !axes.includes(a)),
    pad,
    part: (g, arrays, axis, i) => cut(g, starts(arrays, axis, i), arrays[i].shape),
    per_channel: (v, x, otherwise) => (v === null ? otherwise : reshape(v, [1, -1, ...x.shape.slice(2).map(() => 1)])),
    pick: (x, labels) =>
      array(
        labels.shape,
        Float64Array.from(labels.data, (c, i) => x.data[i * x.shape[1] + c]),
      ),
    put,
    reshape,
    row: x => reshape(x, [...shapeOf(x).slice(0, -1), 1, shapeOf(x).at(-1)]),
    rows: x => reshape(x, [product(x.shape.slice(0, -1)), x.shape.at(-1)]),
    sign: one(Math.sign),
    spread,
    sqrt: one(Math.sqrt),
    sum,
    sum_to: sumTo,
    tanh: one(Math.tanh),
    transpose,
    transpose_back: (x, axes) => transpose(x, back(axes)),
    unpad: (g, shape, width) =>
      cut(
        g,
        widths(width, shape.length).map(w => w[0]),
        shape,
      ),
    where,
  };
  const compared = f => two((a, b) => Number(f(a, b)));
  const OPERATORS = {
    "+": add,
    "-": subtract,
    "*": times,
    "/": divide,
    "**": two((a, b) => (b === 2 ? a * a : a ** b)),
    "@": matmul,
    "==": compared((a, b) => a === b),
    ">": compared((a, b) => a > b),
    "<": compared((a, b) => a < b),
    ">=": compared((a, b) => a >= b),
    "<=": compared((a, b) => a <= b),
  };
  const ATTRIBUTES = {
    shape: shapeOf,
    ndim: x => shapeOf(x).length,
    T: x => transpose(x, range(x.shape.length).reverse()),
    mT: swapped,
  };

  // What rounds. The rest moves, chooses or compares elements, and counts.
  const ROUNDING = new Set([
    "+", "-", "*", "/", "**", "@", "avg_pool2d", "avg_pool2d_spread", "conv2d", "conv2d_input", "conv2d_weight", "cumsum",
    "einsum", "einsum_gradient", "erf", "exp", "expm1", "log", "log1p", "max_pool2d_scatter", "mean", "put", "sqrt", "sum",
    "sum_to", "tanh",
  ]);
  const exactly = value => value;
  // `rounded`: what becomes of each result that rounds, on the way.
  const evaluate = (tree, names, rounded = exactly) => {
    if (!Array.isArray(tree)) return tree;
    const [what, a, b, c] = tree;
    switch (what) {
      case "name": {
        const value = names[a];
        if (value === undefined) throw new Error(`the formula's ${a} is not known`);
        return value;
      }
      case "neg":
        return one(v => -v)(evaluate(a, names, rounded));
      case "tuple":
        return a.map(part => evaluate(part, names, rounded));
      case "if":
        return evaluate(holds(a, names) ? b : c, names, rounded);
      case "is None":
        return Number(evaluate(a, names) === null);
      case "get":
        return ATTRIBUTES[a](evaluate(b, names, rounded));
      case "[]":
        return take(evaluate(a, names, rounded), evaluate(b, names));
      case "call": {
        const value = FUNCTIONS[a](...b.map(part => evaluate(part, names, rounded)));
        return ROUNDING.has(a) ? rounded(value) : value;
      }
      default: {
        const value = OPERATORS[what](evaluate(a, names, rounded), evaluate(b, names, rounded));
        return ROUNDING.has(what) ? rounded(value) : value;
      }
    }
  };
  const holds = (test, names) => {
    const v = evaluate(test, names);
    return typeof v === "number" ? v !== 0 : v.data[0] !== 0;
  };

  // The expression with each `a if test else b` replaced by the side that is taken, as the reader wants to see it.
  const taken = (tree, names) =>
    !Array.isArray(tree)
      ? tree
      : tree[0] === "if"
        ? taken(holds(tree[1], names) ? tree[2] : tree[3], names)
        : tree[0] === "call"
          ? ["call", tree[1], tree[2].map(part => taken(part, names))]
          : tree[0] === "tuple"
            ? ["tuple", tree[1].map(part => taken(part, names))]
            : tree.map((part, i) => (i ? taken(part, names) : part));

  const namesIn = (tree, found = new Set()) => {
    if (Array.isArray(tree)) {
      if (tree[0] === "name") found.add(tree[1]);
      else (tree[0] === "call" ? tree[2] : tree[0] === "tuple" ? tree[1] : tree.slice(1)).forEach(part => namesIn(part, found));
    }
    return found;
  };
  // The lines of `where` that an expression needs, in their order; each is [name, tree, text].
  const needed = (tree, where) => {
    let wanted = namesIn(tree);
    const found = [];
    for (const line of [...where].reverse())
      if (wanted.has(line[0])) {
        found.unshift(line);
        wanted.delete(line[0]);
        wanted = new Set([...wanted, ...namesIn(line[1])]);
      }
    return found;
  };
  // The meaning of every name, with those of the lines that the expression needs.
  const withWhere = (tree, where, names, rounded) => {
    const all = { pi: Math.PI, ...names };
    for (const [name, line] of needed(tree, where)) all[name] = evaluate(line, all, rounded);
    return all;
  };
  const compute = (tree, where, names, rounded) => evaluate(tree, withWhere(tree, where, names, rounded), rounded);

  // ----- how far rounding may carry a result

  const EPS = { float64: 2 ** -52, float32: 2 ** -23, float16: 2 ** -10 };
  const LEAST = { float32: 2 ** -149, float16: 2 ** -24 }; // below this a number is rounded to 0
  const bits = new Float64Array(1),
    words = new Uint32Array(bits.buffer);
  const ALL_UP = 0; // moves a sum by the last bits of all its terms together, where the other salts may cancel
  const nudged = (x, eps, salt, floats = x?.floats) => {
    // equal values move alike, so that ties stay ties
    if (!x?.data || !floats) return x;
    return {
      ...x,
      data: x.data.map(v => {
        bits[0] = v;
        const mixed = Math.imul((words[0] ^ Math.imul(words[1], 0x9e3779b1)) + salt, 0x85ebca6b);
        const step = (salt === ALL_UP || (mixed >>> 15) & 1 ? eps : -eps) * Math.abs(v); // -x as x, so that x + (-x) moves
        return Number.isFinite(v) ? v + step : v;
      }),
    };
  };
  // The result, and how much it moves when every input, and every result on the way, moves by its last bit: what differs by
  // far more is not rounding.
  const computeWithTolerance = (tree, where, names, dtype) => {
    const eps = EPS[dtype] ?? EPS.float64,
      value = full(compute(tree, where, names));
    let moved = 0,
      size = 0;
    for (const v of value.data) if (Number.isFinite(v)) size = Math.max(size, Math.abs(v));
    for (const salt of [ALL_UP, 1, 7919]) {
      const other = full(
        compute(
          tree,
          where,
          Object.fromEntries(
            Object.entries(names).map(([k, v]) => [
              k,
              Array.isArray(v) ? v.map(x => nudged(x, eps, salt)) : nudged(v, eps, salt),
            ]),
          ),
          x => nudged(x, eps, salt, true),
        ),
      );
      other.data.forEach((v, i) => {
        const d = Math.abs(v - value.data[i]);
        if (Number.isFinite(d)) moved = Math.max(moved, d);
      });
    }
    return { value, tolerance: 64 * moved + 64 * eps * size + (8 * LEAST[dtype] || 1e-300) };
  };
  // The largest difference of two arrays; equal infinities, and NaN beside NaN, do not differ.
  const difference = (x, y) => {
    if (x.data.length !== y.data.length) return Infinity;
    let worst = 0;
    for (let i = 0; i < x.data.length; i++) {
      const a = x.data[i],
        b = y.data[i];
      if (a === b || (Number.isNaN(a) && Number.isNaN(b))) continue;
      const d = Math.abs(a - b);
      worst = Number.isNaN(d) ? Infinity : Math.max(worst, d);
    }
    return worst;
  };

  return {
    EPS,
    FUNCTIONS,
    TooMuch,
    add,
    array,
    broadcast,
    compute,
    computeWithTolerance,
    difference,
    evaluate,
    full,
    holds,
    needed,
    places,
    product,
    range,
    spreadPlaces,
    stridesOf,
    sumTo,
    taken,
    together,
    withWhere,
    zeros,
  };
})();
