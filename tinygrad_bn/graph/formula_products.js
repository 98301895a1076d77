// The products of the formulas: matrices, einsum, convolution and pooling; and dropout's mask. Each from its definition.
const Products = (() => {
  const {
    TooMuch,
    WORK,
    add,
    array,
    larger,
    max,
    one,
    places,
    product,
    reshape,
    spreadPlaces,
    stridesOf,
    together,
    where,
    zeros,
  } = Arrays;

  // ----- products

  const matmul = (x, y) => {
    const a = x.shape.length === 1 ? reshape(x, [1, ...x.shape]) : x,
      b = y.shape.length === 1 ? reshape(y, [...y.shape, 1]) : y;
    const [n, k] = a.shape.slice(-2),
      m = b.shape.at(-1),
      batch = together(a.shape.slice(0, -2), b.shape.slice(0, -2));
    if (b.shape.at(-2) !== k) throw new Error(`shapes (${x.shape}) and (${y.shape}) do not multiply`);
    if (product(batch) * n * k * m > WORK) throw new TooMuch();
    const ia = spreadPlaces(a.shape.slice(0, -2), batch),
      ib = spreadPlaces(b.shape.slice(0, -2), batch),
      out = zeros([...batch, n, m]);
    for (let s = 0, o = 0; s < ia.length; s++)
      for (let i = 0; i < n; i++)
        for (let j = 0; j < m; j++) {
          let total = 0;
          for (let t = 0; t < k; t++) total += a.data[(ia[s] * n + i) * k + t] * b.data[(ib[s] * k + t) * m + j];
          out.data[o++] = total;
        }
    return array([...batch, ...(x.shape.length === 1 ? [] : [n]), ...(y.shape.length === 1 ? [] : [m])], out.data);
  };

  // All values of all letters; for each operand, and the output, where its element lies.
  const letters = (texts, arrays) => {
    const size = {};
    texts.forEach((text, k) =>
      [...text].forEach((c, i) => {
        size[c] = arrays[k].shape[i] === 0 ? 0 : Math.max(size[c] ?? 1, arrays[k].shape[i]);
      }),
    );
    const names = Object.keys(size),
      all = names.map(c => size[c]);
    if (product(all) * arrays.length > WORK) throw new TooMuch();
    const where = (text, shape) => {
      const own = stridesOf(shape),
        strides = names.map(() => 0);
      [...text].forEach((c, i) => {
        if (shape[i] > 1) strides[names.indexOf(c)] += own[i];
      });
      return places(all, strides);
    };
    return { size, where };
  };
  const einsum = (inputs, output, operands) => {
    const { size, where } = letters(inputs, operands),
      out = zeros([...output].map(c => size[c]));
    const from = inputs.map((t, k) => where(t, operands[k].shape)),
      to = where(output, out.shape);
    for (let i = 0; i < to.length; i++) out.data[to[i]] += operands.reduce((p, x, k) => p * x.data[from[k][i]], 1);
    return out;
  };
  const einsumGradient = (g, inputs, output, operands, me) => {
    const { where } = letters(inputs, operands),
      out = zeros(operands[me].shape),
      source = where(output, g.shape);
    const from = inputs.map((t, k) => where(t, operands[k].shape)),
      to = from[me];
    for (let i = 0; i < to.length; i++)
      out.data[to[i]] += operands.reduce((p, x, k) => (k === me ? p : p * x.data[from[k][i]]), g.data[source[i]]);
    return out;
  };

  // ----- windows: convolution and pooling

  const counts = (shape, kernel, stride, padding, dilation = [1, 1]) =>
    [0, 1].map(a => Math.floor((shape[2 + a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) / stride[a]) + 1);
  // Calls f(number in the window, index of the element or -1 in the border, index of the window), for each plane of N x C.
  const windows = (shape, kernel, number, stride, padding, dilation, f) => {
    const [, , h, w] = shape,
      [kh, kw] = kernel,
      [oh, ow] = number;
    for (let p = 0; p < oh; p++)
      for (let q = 0; q < ow; q++)
        for (let i = 0; i < kh; i++)
          for (let j = 0; j < kw; j++) {
            const row = p * stride[0] + i * dilation[0] - padding[0],
              column = q * stride[1] + j * dilation[1] - padding[1];
            f(i * kw + j, row < 0 || row >= h || column < 0 || column >= w ? -1 : row * w + column, p * ow + q);
          }
  };
  // One of the three products of a convolution: image, filter and result, of which the one to find is passed as zeros.
  const convolve = (x, w, y, find, stride, padding, dilation, groups) => {
    const [n, c, h, wide] = x.shape,
      [o, per, kh, kw] = w.shape,
      number = y.shape.slice(2),
      each = o / groups;
    if (n * o * per * product(number) * kh * kw > WORK) throw new TooMuch();
    windows(x.shape, [kh, kw], number, stride, padding, dilation, (k, at, to) => {
      if (at < 0) return;
      for (let s = 0; s < n; s++)
        for (let f = 0; f < o; f++)
          for (let d = 0; d < per; d++) {
            const i = (s * c + Math.floor(f / each) * per + d) * h * wide + at,
              j = (f * per + d) * kh * kw + k,
              m = (s * o + f) * product(number) + to;
            if (find === "y") y.data[m] += x.data[i] * w.data[j];
            else if (find === "x") x.data[i] += y.data[m] * w.data[j];
            else w.data[j] += y.data[m] * x.data[i];
          }
    });
    return { x, w, y }[find];
  };
  const conv2d = (x, w, stride, padding, dilation, groups) => {
    const y = zeros([x.shape[0], w.shape[0], ...counts(x.shape, w.shape.slice(2), stride, padding, dilation)]);
    return convolve(x, w, y, "y", stride, padding, dilation, groups);
  };
  const conv2dInput = (g, w, shape, ...how) => convolve(zeros(shape), w, g, "x", ...how);
  const conv2dWeight = (g, x, shape, ...how) => convolve(x, zeros(shape), g, "w", ...how);
  const pool = (x, kernel, stride, padding, start, f) => {
    // f(so far, element, number in the window)
    const number = counts(x.shape, kernel, stride, padding),
      planes = x.shape[0] * x.shape[1];
    const out = array([...x.shape.slice(0, 2), ...number], new Float64Array(planes * product(number)).fill(start));
    const area = x.shape[2] * x.shape[3],
      to = product(number);
    for (let p = 0; p < planes; p++)
      windows(x.shape, kernel, number, stride, padding, [1, 1], (k, at, i) => {
        out.data[p * to + i] = f(out.data[p * to + i], at < 0 ? null : x.data[p * area + at], k);
      });
    return out;
  };
  const unpool = (g, shape, kernel, stride, padding, f) => {
    // f(number in the window, index into g): what is added there
    const out = zeros(shape),
      area = shape[2] * shape[3],
      from = product(g.shape.slice(2));
    for (let p = 0; p < shape[0] * shape[1]; p++)
      windows(shape, kernel, g.shape.slice(2), stride, padding, [1, 1], (k, at, i) => {
        if (at >= 0) out.data[p * area + at] += f(k, p * from + i);
      });
    return out;
  };
  const maxPool = (x, kernel, stride, padding) =>
    pool(x, kernel, stride, padding, -Infinity, (top, v) => (v === null ? top : larger(top, v)));
  const maxPlace = (x, kernel, stride, padding) => {
    const top = maxPool(x, kernel, stride, padding),
      number = product(top.shape.slice(2)),
      seen = new Set();
    let i = -1;
    return pool(x, kernel, stride, padding, 0, (place, v, k) => {
      if (k === 0) i++;
      const first = !seen.has(i) && v !== null && (v === top.data[i] || Number.isNaN(v)) && number;
      if (first) seen.add(i);
      return first ? k : place;
    });
  };
  const gather = (x, place, kernel, stride, padding) => {
    let i = -1;
    return pool(x, kernel, stride, padding, 0, (so, v, k) => {
      if (k === 0) i++;
      return place.data[i] === k ? (v ?? 0) : so;
    });
  };

  // ----- dropout's mask: Philox4x64-10 of the recorded key and the position. Salmon et al. 2011.

  const MASK = (1n << 64n) - 1n;
  const kept = (shape, p, key) => {
    const n = product(shape),
      bits = new Float64Array(n),
      limit = BigInt(Math.floor(p * 2 ** 53));
    for (let block = 0; block * 4 < n; block++) {
      let c = [BigInt(block + 1), 0n, 0n, 0n],
        k = [BigInt(key), 0n];
      for (let round = 0; round < 10; round++) {
        const a = c[0] * 0xd2e7470ee14c6c93n,
          b = c[2] * 0xca5a826395121157n;
        c = [(b >> 64n) ^ c[1] ^ k[0], b & MASK, (a >> 64n) ^ c[3] ^ k[1], a & MASK];
        k = [(k[0] + 0x9e3779b97f4a7c15n) & MASK, (k[1] + 0xbb67ae8584caa73bn) & MASK];
      }
      for (let i = 0; i < 4 && block * 4 + i < n; i++) bits[block * 4 + i] = Number(c[i] >> 11n >= limit);
    }
    return array(shape, bits);
  };

  return { conv2d, conv2dInput, conv2dWeight, einsum, einsumGradient, gather, kept, matmul, maxPlace, maxPool, pool, unpool };
})();
