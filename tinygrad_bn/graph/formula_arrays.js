// Small float64 arrays with NumPy's broadcasting: {shape, data}. Booleans are 0 and 1; a number stays a number.
const Arrays = (() => {
  const WORK = 4e6; // more products than this are not worth a reader's wait: the caller says "only summarised"
  class TooMuch extends Error {}

  const product = numbers => numbers.reduce((a, b) => a * b, 1);
  const array = (shape, data) => ({ shape, data });
  const zeros = shape => array(shape, new Float64Array(product(shape)));
  const shapeOf = x => (typeof x === "number" ? [] : x.shape);
  const full = x => (typeof x === "number" ? array([], Float64Array.of(x)) : x);
  const range = n => Array.from({ length: n }, (_, i) => i);
  const stridesOf = shape => {
    const strides = new Array(shape.length);
    for (let i = shape.length - 1, step = 1; i >= 0; step *= shape[i--]) strides[i] = step;
    return strides;
  };

  // For each element of `out`, in order, its place in an array whose strides along the axes of `out` are given.
  const places = (out, strides, start = 0) => {
    const n = product(out),
      found = new Int32Array(n),
      at = out.map(() => 0);
    for (let i = 0, place = start; i < n; i++) {
      found[i] = place;
      for (let a = out.length - 1; a >= 0; a--) {
        place += strides[a];
        if (++at[a] < out[a]) break;
        place -= strides[a] * out[a];
        at[a] = 0;
      }
    }
    return found;
  };
  const cache = new Map();
  const spreadPlaces = (shape, out) => {
    // where each element of `out` comes from, if `shape` is broadcast to it
    const key = shape + ">" + out;
    if (!cache.has(key)) {
      const own = stridesOf(shape),
        lead = out.length - shape.length;
      if (lead < 0 || shape.some((n, i) => n !== 1 && n !== out[i + lead]))
        throw new Error(`cannot broadcast (${shape}) to (${out})`);
      if (cache.size > 4000) cache.clear();
      cache.set(
        key,
        places(
          out,
          out.map((_, i) => (i < lead || shape[i - lead] === 1 ? 0 : own[i - lead])),
        ),
      );
    }
    return cache.get(key);
  };
  const together = (...shapes) => {
    const out = new Array(Math.max(...shapes.map(s => s.length))).fill(1);
    for (const s of shapes)
      s.forEach((n, i) => {
        const a = i + out.length - s.length;
        if (out[a] !== n && n !== 1) {
          if (out[a] !== 1) throw new Error(`shapes (${shapes.join(") and (")}) do not broadcast`);
          out[a] = n;
        }
      });
    return out;
  };
  const broadcast = (x, shape) => {
    const a = full(x),
      from = spreadPlaces(a.shape, shape),
      y = zeros(shape);
    for (let i = 0; i < from.length; i++) y.data[i] = a.data[from[i]];
    return y;
  };

  // ----- elementwise

  const one = f => x => (typeof x === "number" ? f(x) : array(x.shape, x.data.map(f)));
  const two = f => (x, y) => {
    if (typeof x === "number" && typeof y === "number") return f(x, y);
    const a = full(x),
      b = full(y),
      shape = together(a.shape, b.shape);
    const i = spreadPlaces(a.shape, shape),
      j = spreadPlaces(b.shape, shape),
      out = zeros(shape);
    for (let k = 0; k < i.length; k++) out.data[k] = f(a.data[i[k]], b.data[j[k]]);
    return out;
  };
  const add = two((a, b) => a + b),
    subtract = two((a, b) => a - b),
    times = two((a, b) => a * b),
    divide = two((a, b) => a / b);
  const where = (c, x, y) => {
    const shape = together(shapeOf(c), shapeOf(x), shapeOf(y)),
      [cc, xx, yy] = [c, x, y].map(v => broadcast(v, shape));
    return array(
      shape,
      cc.data.map((v, i) => (v ? xx.data[i] : yy.data[i])),
    );
  };
  const larger = (a, b) => (Number.isNaN(a) || Number.isNaN(b) ? NaN : Math.max(a, b));
  const smaller = (a, b) => (Number.isNaN(a) || Number.isNaN(b) ? NaN : Math.min(a, b));

  // The error function: rational approximations, with the coefficients of Sun's fdlibm (s_erf.c).
  const NEAR = [
    [
      1.28379167095512558561e-1, -3.2504210724700149937e-1, -2.84817495755985104766e-2, -5.77027029648944159157e-3,
      -2.37630166566501626084e-5,
    ],
    [
      1, 3.97917223959155352819e-1, 6.50222499887672944485e-2, 5.08130628187576562776e-3, 1.32494738004321644526e-4,
      -3.9602282787753681232e-6,
    ],
  ];
  const MIDDLE = [
    [
      -2.36211856075265944077e-3, 4.14856118683748331666e-1, -3.72207876035701323847e-1, 3.18346619901161753674e-1,
      -1.10894694282396677476e-1, 3.54783043256182359371e-2, -2.166375594868790843e-3,
    ],
    [
      1, 1.06420880400844228286e-1, 5.40397917702171048937e-1, 7.18286544141962662868e-2, 1.26171219808761642112e-1,
      1.36370839120290507362e-2, 1.1984499846799107417e-2,
    ],
  ];
  const FAR = [
    [
      -9.86494403484714822705e-3, -6.93858572707181764372e-1, -1.05586262253232909814e1, -6.23753324503260060396e1,
      -1.62396669462573470355e2, -1.84605092906711035994e2, -8.12874355063065934246e1, -9.81432934416914548592,
    ],
    [
      1, 1.96512716674392571292e1, 1.376577541435190426e2, 4.34565877475229228821e2, 6.45387271733267880336e2,
      4.29008140027567833386e2, 1.08635005541779435134e2, 6.57024977031928170135, -6.04244152148580987438e-2,
    ],
  ];
  const ratio = (z, [p, q]) => p.reduceRight((y, c) => y * z + c, 0) / q.reduceRight((y, c) => y * z + c, 0);
  const erf = x => {
    if (Number.isNaN(x)) return NaN;
    const a = Math.min(Math.abs(x), 6),
      s = Math.sign(x);
    if (a < 0.84375) return s * (a + a * ratio(a * a, NEAR));
    if (a < 1.25) return s * (8.45062911510467529297e-1 + ratio(a - 1, MIDDLE));
    return s * (1 - Math.exp(-a * a - 0.5625 + ratio(1 / (a * a), FAR)) / a);
  };

  // ----- reductions

  const axesOf = (axis, ndim) =>
    axis === null || axis === undefined ? range(ndim) : [axis].flat().map(a => (a + ndim) % ndim);
  const keptShape = (shape, axes) => shape.map((n, i) => (axes.includes(i) ? 1 : n));
  const reduced =
    (start, f) =>
    (value, axis = null, keepdims = false) => {
      const x = full(value),
        axes = axesOf(axis, x.shape.length),
        kept = keptShape(x.shape, axes);
      const out = array(kept, new Float64Array(product(kept)).fill(start)),
        to = spreadPlaces(kept, x.shape);
      for (let i = 0; i < to.length; i++) out.data[to[i]] = f(out.data[to[i]], x.data[i]);
      return keepdims
        ? out
        : array(
            x.shape.filter((_, i) => !axes.includes(i)),
            out.data,
          );
    };
  const sum = reduced(0, (a, b) => a + b),
    max = reduced(-Infinity, larger),
    min = reduced(Infinity, smaller);
  const count = (x, axis) => product(axesOf(axis, x.shape.length).map(a => x.shape[a]));
  const mean = (x, axis = null, keepdims = false) => divide(sum(x, axis, keepdims), count(full(x), axis));
  const spread = (g, shape, axis) => broadcast(reshape(g, keptShape(shape, axesOf(axis, shape.length))), shape);
  const sumTo = (value, shape) => {
    const x = full(value),
      from = spreadPlaces(shape, together(x.shape, shape)),
      out = zeros(shape),
      y = broadcast(x, together(x.shape, shape));
    for (let i = 0; i < from.length; i++) out.data[from[i]] += y.data[i];
    return out;
  };
  const along = (x, axis, f) => {
    // f of each line of elements along an axis, as it goes
    const a = (axis + x.shape.length) % x.shape.length,
      kept = spreadPlaces(keptShape(x.shape, [a]), x.shape),
      state = [],
      out = zeros(x.shape);
    for (let i = 0; i < kept.length; i++) out.data[i] = state[kept[i]] = f(state[kept[i]] ?? 0, x.data[i]);
    return out;
  };
  const argmax = (x, axis = null) => {
    const top = broadcast(max(x, axis, true), x.shape),
      axes = axesOf(axis, x.shape.length),
      kept = keptShape(x.shape, axes);
    const to = spreadPlaces(kept, x.shape),
      out = new Float64Array(product(kept)).fill(-1),
      seen = out.map(() => 0);
    for (let i = 0; i < to.length; i++) {
      if (out[to[i]] < 0 && (x.data[i] === top.data[i] || Number.isNaN(x.data[i]))) out[to[i]] = seen[to[i]];
      seen[to[i]]++;
    }
    return array(
      x.shape.filter((_, i) => !axes.includes(i)),
      out,
    );
  };

  // ----- shape

  const reshape = (value, shape) => {
    const x = full(value),
      known = product(shape.filter(n => n !== -1));
    return array(
      shape.map(n => (n === -1 ? x.data.length / known : n)),
      x.data,
    );
  };
  const transpose = (x, axes) => {
    const strides = stridesOf(x.shape),
      out = axes.map(a => x.shape[a]),
      from = places(
        out,
        axes.map(a => strides[a]),
      );
    return array(
      out,
      Float64Array.from(from, i => x.data[i]),
    );
  };
  const back = axes => range(axes.length).sort((a, b) => axes[a] - axes[b]);
  const swapped = x => transpose(x, [...range(x.shape.length - 2), x.shape.length - 1, x.shape.length - 2]);
  const cut = (x, starts, shape) => {
    // a block of x
    const strides = stridesOf(x.shape),
      from = places(
        shape,
        strides,
        starts.reduce((s, a, i) => s + a * strides[i], 0),
      );
    return array(
      shape,
      Float64Array.from(from, i => x.data[i]),
    );
  };
  const placed = (x, starts, out) => {
    // x as a block of `out`, in place
    const strides = stridesOf(out.shape),
      to = places(
        x.shape,
        strides,
        starts.reduce((s, a, i) => s + a * strides[i], 0),
      );
    for (let i = 0; i < to.length; i++) out.data[to[i]] = x.data[i];
    return out;
  };
  const flip = (x, axis) => {
    const axes = axesOf(axis, x.shape.length),
      strides = stridesOf(x.shape);
    const start = axes.reduce((s, a) => s + (x.shape[a] - 1) * strides[a], 0);
    return array(
      x.shape,
      Float64Array.from(
        places(
          x.shape,
          strides.map((s, a) => (axes.includes(a) ? -s : s)),
          start,
        ),
        i => x.data[i],
      ),
    );
  };
  const widths = (width, ndim) =>
    typeof width === "number"
      ? range(ndim).map(() => [width, width])
      : typeof width[0] === "number"
        ? range(ndim).map(() => width)
        : width;
  const pad = (x, width, value) => {
    const around = widths(width, x.shape.length),
      out = zeros(x.shape.map((n, i) => n + around[i][0] + around[i][1]));
    out.data.fill(value);
    return placed(
      x,
      around.map(w => w[0]),
      out,
    );
  };
  const starts = (arrays, axis, i) =>
    arrays[0].shape.map((_, a) => (a === axis ? arrays.slice(0, i).reduce((s, x) => s + x.shape[axis], 0) : 0));
  const concatenate = (arrays, axis) => {
    const out = zeros(arrays[0].shape.map((n, a) => (a === axis ? arrays.reduce((s, x) => s + x.shape[axis], 0) : n)));
    arrays.forEach((x, i) => placed(x, starts(arrays, axis, i), out));
    return out;
  };
  // An index was resolved by NumPy: the place of each selected element.
  const take = (x, index) =>
    array(
      index.at.shape,
      Float64Array.from(index.at.data, i => x.data[i]),
    );
  const put = (value, index, shape) => {
    const x = broadcast(value, index.at.shape),
      out = zeros(shape);
    index.at.data.forEach((place, i) => {
      out.data[place] += x.data[i];
    });
    return out;
  };

  return {
    TooMuch,
    WORK,
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
  };
})();
