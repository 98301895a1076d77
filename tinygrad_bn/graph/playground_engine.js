// BatchNorm of one channel, from the formulas alone: no page, no state. The tests hold it to the Python engine.
const BatchNorm = (() => {
  const sum = values => {
    let total = 0;
    for (const v of values) total += v;
    return total;
  };
  const mean = values => sum(values) / values.length;
  const dot = (a, b) => {
    let total = 0;
    for (let i = 0; i < a.length; i++) total += a[i] * b[i];
    return total;
  };

  // Algorithm 1 of Ioffe & Szegedy 2015. The variance is the biased one; eps stands inside the root. The rounded mean of
  // large numbers is off, so it is corrected by the mean of what is left.
  const forward = (x, { gamma = 1, beta = 0, eps = 1e-5 } = {}) => {
    const first = mean(x);
    const rest = mean(x.map(v => v - first));
    const mu = first + rest;
    const centred = x.map(v => v - first - rest);
    const variance = dot(centred, centred) / x.length;
    const std = Math.sqrt(variance + eps);
    const xHat = centred.map(d => d / std);
    return { mean: mu, variance, std, xHat, y: xHat.map(v => gamma * v + beta) };
  };

  // g = level + slope * x_hat + kept: its mean, what lies along x_hat, and the rest, which alone goes on to x.
  const backward = (g, x, { gamma = 1, eps = 1e-5 } = {}) => {
    const { std, variance, xHat } = forward(x, { eps });
    const level = mean(g);
    const slope = dot(g, xHat) / g.length;
    const kept = g.map((gi, i) => gi - level - slope * xHat[i]);
    const dx = kept.map(k => (gamma / std) * k);
    const dgamma = dot(g, xHat);
    return { level, slope, kept, dx, dgamma, dbeta: sum(g), along: ((gamma / std) * dgamma * eps) / (variance + eps) };
  };

  // d y_i / d x_j = gamma / std * ([i = j] - 1/m - x_hat_i x_hat_j / m)
  const jacobian = (x, { gamma = 1, eps = 1e-5 } = {}) => {
    const { std, xHat } = forward(x, { eps });
    const m = x.length;
    return xHat.map((a, i) => xHat.map((b, j) => (gamma / std) * ((i === j ? 1 : 0) - 1 / m - (a * b) / m)));
  };

  // The running statistics after one more batch. momentum weighs the new batch, as in PyTorch; null: the average of all.
  const follow = (running, batch, { momentum = 0.1, variance = "unbiased" } = {}) => {
    const m = batch.length;
    const statistics = forward(batch);
    const weight = momentum === null ? 1 / (running.tracked + 1) : momentum;
    const news = statistics.variance * (variance === "unbiased" ? m / (m - 1) : 1);
    return {
      mean: (1 - weight) * running.mean + weight * statistics.mean,
      variance: (1 - weight) * running.variance + weight * news,
      tracked: running.tracked + 1,
    };
  };
  const START = { mean: 0, variance: 1, tracked: 0 };

  // Algorithm 2: in evaluation y = scale * x + shift, whatever else is in the batch.
  const inference = (running, { gamma = 1, beta = 0, eps = 1e-5 } = {}) => {
    const scale = gamma / Math.sqrt(running.variance + eps);
    return { scale, shift: beta - scale * running.mean };
  };

  // Of m Gaussian values, x_hat follows the true standardised value with this slope, E[std of the batch] / std, and the rest
  // is noise: slope = sqrt(2/m) Gamma(m/2) / Gamma((m-1)/2), noise variance = 1 - slope^2.
  const trainingSlope = m => {
    let ratio = m % 2 ? Math.sqrt(Math.PI) / 2 : 1 / Math.sqrt(Math.PI); // Gamma(m/2) / Gamma((m-1)/2) for m = 3, 2
    for (let k = m % 2 ? 3 : 2; k < m; k += 2) ratio *= k / 2 / ((k - 1) / 2);
    const slope = Math.sqrt(2 / m) * ratio;
    return { slope, noise: 1 - slope * slope };
  };

  // ----- precision: every operation rounded to the dtype

  const toHalf = x => {
    if (x === 0 || !Number.isFinite(x)) return x;
    const quantum = 2 ** (Math.max(Math.floor(Math.log2(Math.abs(x))), -14) - 10);
    const quotient = Math.abs(x) / quantum;
    const below = Math.floor(quotient);
    const over = quotient - below;
    const even = over > 0.5 || (over === 0.5 && below % 2 === 1) ? below + 1 : below;
    const size = even * quantum;
    return Math.sign(x) * (size > 65504 ? Infinity : size);
  };
  const DTYPES = { float64: x => x, float32: Math.fround, float16: toHalf };
  // The distance from a number of this size to the next one.
  const spacing = (x, dtype) => {
    const [digits, lowest] = { float64: [52, -1022], float32: [23, -126], float16: [10, -14] }[dtype];
    return 2 ** (Math.max(Math.floor(Math.log2(Math.abs(x) || 1e-300)), lowest) - digits);
  };

  // Eight running sums and then a tree, as NumPy adds up to 128 numbers.
  const roundedSum = (values, round) => {
    const part = new Array(8).fill(0);
    const whole = values.length - (values.length % 8);
    for (let i = 0; i < whole; i++) part[i % 8] = round(part[i % 8] + values[i]);
    const pair = (i, j) => round(part[i] + part[j]);
    let total = round(round(pair(0, 1) + pair(2, 3)) + round(pair(4, 5) + pair(6, 7)));
    for (let i = whole; i < values.length; i++) total = round(total + values[i]);
    return total;
  };
  const variance = (values, dtype, algorithm) => {
    const round = DTYPES[dtype];
    const x = values.map(round);
    const n = x.length;
    const average = v => round(roundedSum(v, round) / n);
    if (algorithm === "one-pass") {
      // E[x^2] - E[x]^2
      const mu = average(x);
      return round(average(x.map(v => round(v * v))) - round(mu * mu));
    }
    if (algorithm === "two-pass") {
      // E[(x - E[x])^2]
      const mu = average(x);
      const centred = x.map(v => round(v - mu));
      return average(centred.map(d => round(d * d)));
    }
    if (algorithm === "welford") {
      // one pass, the mean corrected value by value. Welford 1962
      let mu = 0;
      let squares = 0;
      x.forEach((v, i) => {
        const before = round(v - mu);
        mu = round(mu + round(before / (i + 1)));
        squares = round(squares + round(before * round(v - mu)));
      });
      return round(squares / n);
    }
    return forward(x).variance; // "package": values of this dtype, statistics in float64
  };

  return {
    DTYPES,
    START,
    backward,
    dot,
    follow,
    forward,
    inference,
    jacobian,
    mean,
    spacing,
    sum,
    toHalf,
    trainingSlope,
    variance,
  };
})();
