// The page's own test: its engine against numbers of the Python engine, and against the identities of batch normalisation.
const Check = (() => {
  const close = (a, b, tolerance) => Object.is(a, b) || Math.abs(a - b) <= tolerance * Math.max(1, Math.abs(b));
  const special = { nan: NaN, inf: Infinity, "-inf": -Infinity }; // JSON has no such numbers
  const number = written => (typeof written === "string" ? special[written] : written);

  // What is compared: [what, got, expected, tolerance], got and expected numbers or lists of them.
  function* withPython(golden) {
    for (const c of golden.batches) {
      const y = BatchNorm.forward(c.x, c);
      const back = BatchNorm.backward(c.g, c.x, c);
      yield ["the mean", y.mean, c.mean, 1e-12];
      yield ["the variance", y.variance, c.variance, 1e-12];
      yield ["y", y.y, c.y, 1e-11];
      yield ["dx", back.dx, c.dx, 1e-10];
      yield ["dgamma", back.dgamma, c.dgamma, 1e-11];
      yield ["dbeta", back.dbeta, c.dbeta, 1e-12];
    }
    for (const c of golden.jacobians) yield ["dy/dx", BatchNorm.jacobian(c.x, c).flat(), c.rows.flat(), 1e-10];
    for (const c of golden.running) {
      const last = c.batches.reduce(
        (r, batch) => BatchNorm.follow(r, batch, { momentum: c.momentum, variance: c.convention }),
        BatchNorm.START,
      );
      yield [`the running mean (${c.convention})`, last.mean, c.mean, 1e-12];
      yield [`the running variance (${c.convention})`, last.variance, c.variance, 1e-12];
      const { scale, shift } = BatchNorm.inference(last, c);
      yield ["y in evaluation", c.batches[0].map(v => scale * v + shift), c.y, 1e-12];
    }
    for (const c of golden.precision) {
      const values = Array.from({ length: c.n }, (_, i) => c.offset + (i % 2 ? 1 : -1));
      yield [
        `the variance in ${c.dtype} at ${c.offset} by ${c.algorithm}`,
        BatchNorm.variance(values, c.dtype, c.algorithm),
        number(c.value),
        c.algorithm === "package" ? 1e-12 : 0,
      ]; // the others round step by step as NumPy does
    }
    for (const c of golden.law) yield ["the slope in training", BatchNorm.trainingSlope(c.m).slope, c.slope, 1e-12];
  }

  function* identities(x, g, { gamma, beta, eps, a, c }) {
    const { forward, backward, jacobian, mean, dot, sum } = BatchNorm;
    const m = x.length;
    const options = { gamma, beta, eps };
    const y = forward(x, options);
    const back = backward(g, x, options);
    const J = jacobian(x, options);
    yield ["mean of x̂ = 0", mean(y.xHat), 0, 1e-12];
    yield ["mean of x̂² = σ² / (σ² + ε)", dot(y.xHat, y.xHat) / m, y.variance / (y.variance + eps), 1e-12];
    yield ["|x̂| ≤ √(m − 1)", Math.max(0, ...y.xHat.map(v => Math.abs(v) - Math.sqrt(m - 1))), 0, 1e-12];
    yield ["sum of dx = 0", sum(back.dx), 0, 1e-10];
    yield [
      "sum of dx x̂ = γ/s · dγ · ε / (σ² + ε)",
      dot(back.dx, y.xHat),
      ((gamma / y.std) * dot(g, y.xHat) * eps) / (y.variance + eps),
      1e-10,
    ];
    yield ["dx = Jᵀ g", back.dx, x.map((_, j) => sum(g.map((gi, i) => gi * J[i][j]))), 1e-10];
    yield [
      "a shift changes nothing",
      forward(
        x.map(v => v + c),
        options,
      ).y,
      y.y,
      1e-8,
    ];
    const scaled = forward(
      x.map(v => a * v),
      { ...options, eps: eps * a * a },
    );
    yield ["BN(a x; a² ε) = sign(a) BN(x; ε)", scaled.xHat, y.xHat.map(v => Math.sign(a) * v), 1e-9];
    const h = 1e-5;
    const direction = g.map((v, i) => Math.sin(v + i));
    const moved = t =>
      dot(
        g,
        forward(
          x.map((v, i) => v + t * direction[i]),
          options,
        ).y,
      );
    yield ["dx is the slope of the loss", dot(back.dx, direction), (moved(h) - moved(-h)) / (2 * h), 1e-5];
    const [g1, g2] = g;
    const pair = [x[0], x[0] + 1 + Math.abs(x[1])];
    const two = backward([g1, g2], pair, options);
    const s = forward(pair, options).std;
    yield [
      "with two examples dx = ±γ/2 · ε/s³ · (g₁ − g₂)",
      two.dx[0],
      (((gamma / 2) * eps) / s ** 3) * (g1 - g2),
      1e-10,
    ];
    const { scale, shift } = BatchNorm.inference({ mean: y.mean, variance: y.variance }, options);
    yield ["in evaluation with the batch's own statistics y is the same", x.map(v => scale * v + shift), y.y, 1e-9];
  }

  const randomStates = n =>
    Array.from({ length: n }, (_, i) => {
      const [gamma, beta, a, c, e, many] = State.normals(i + 1, 31, 6);
      const m = 2 + Math.floor(Math.abs(many) * 9);
      const bounded = Math.sign(a) * Math.max(0.1, Math.abs(a));
      return [
        State.normals(i + 1, 32, m),
        State.normals(i + 1, 33, m),
        { gamma, beta, a: bounded, c, eps: 10 ** (-4 + e) },
      ];
    });

  // Counts, and the names of what failed.
  const count = comparisons => {
    let numbers = 0;
    const failed = new Map();
    for (const [what, got, expected, tolerance] of comparisons) {
      const gots = [got].flat();
      const expecteds = [expected].flat();
      gots.forEach((v, i) => {
        numbers += 1;
        if (!close(v, expecteds[i], tolerance)) failed.set(what, `${what}: ${v}, expected ${expecteds[i]}`);
      });
    }
    return { numbers, failed: [...failed.values()] };
  };
  function* all(states) {
    for (const state of states) yield* identities(...state);
  }

  const run = golden => {
    const python = count(withPython(golden));
    const laws = count(all(randomStates(100)));
    const failed = [...python.failed, ...laws.failed];
    if (failed.length) return { state: "fail", text: `self-test: ${failed.length} failed`, details: failed };
    return {
      state: "pass",
      text: `self-test: ${python.numbers.toLocaleString("en")} numbers equal Python’s`,
      details: [
        `${python.numbers.toLocaleString("en")} numbers of this page’s own engine (JavaScript) equal those of ` +
          `tinygrad_bn (Python): outputs, gradients, Jacobians, running statistics, rounded variances.`,
        `${laws.numbers.toLocaleString("en")} times an identity of batch normalisation was tried on 100 ` +
          `random batches, and held.`,
      ],
    };
  };
  return { all, count, randomStates, run, withPython };
})();
