// What was recorded: entries and their arrays; and the check that computes every value and every contribution again.
const Run = (() => {
  const run = Page.data("run"),
    formulas = Page.data("formulas"),
    decoded = new Map();

  // An array of the page: {shape, data, floats, dtype}, or without data and with a summary; null if there is none.
  const array = i => {
    if (i === null || i === undefined) return null;
    if (!decoded.has(i)) {
      const { shape, dtype, bytes, wide, first, ...rest } = run.arrays[i],
        floats = dtype.startsWith("float");
      decoded.set(
        i,
        bytes === undefined
          ? {
              shape,
              dtype,
              floats,
              data: null,
              summary: { ...rest, first: first === undefined ? [] : [...numbers(first, true)] },
            }
          : { shape, dtype, floats, data: numbers(bytes, wide) },
      );
    }
    return decoded.get(i);
  };
  const numbers = (text, wide) => {
    const raw = Uint8Array.from(atob(text), c => c.charCodeAt(0)),
      view = new DataView(raw.buffer),
      size = wide ? 8 : 4;
    return Float64Array.from({ length: raw.length / size }, (_, i) =>
      wide ? view.getFloat64(i * 8, true) : view.getFloat32(i * 4, true),
    );
  };

  const entry = (tape, id) => run.tapes[tape].entries[id];
  const isStep = e => e.op !== undefined;
  const nameOf = (tape, id) => {
    const e = entry(tape, id);
    return isStep(e) ? e.op : e.name;
  };

  // An option as the engine takes it.
  const option = value => {
    if (Array.isArray(value)) return value.map(option);
    if (value === null || typeof value !== "object") return value === true ? 1 : value === false ? 0 : value;
    if ("int" in value) return value.int;
    if ("float" in value) return { nan: NaN, inf: Infinity, "-inf": -Infinity }[value.float];
    return "index" in value ? { text: value.index, at: array(value.at) } : value.text;
  };
  const optionText = value => {
    if (Array.isArray(value)) return `(${value.map(optionText).join(", ")}${value.length === 1 ? "," : ""})`;
    if (value === null) return "None";
    if (value === true || value === false) return value ? "True" : "False";
    if (typeof value === "string") return JSON.stringify(value);
    return typeof value === "object" ? String(value.int ?? value.float ?? value.index ?? value.text) : String(value);
  };

  // An argument that is called g is y in its formula; one of any number, "arrays[1]", is in the list "arrays".
  const formulaName = argument => (argument === "g" ? "y" : argument);
  const listOf = argument => /^(.+)\[\d+\]$/.exec(argument)?.[1] ?? null;
  const input = (tape, step, i) => {
    const ref = step.inputs[i];
    return ref === null ? null : typeof ref === "object" ? option(ref.number) : array(entry(tape, ref).value);
  };
  // The names of a step's formulas, and whether all of their arrays are here in full.
  const names = (tape, step) => {
    const found = {},
      all = step.arguments.map((_, i) => input(tape, step, i));
    step.arguments.forEach((argument, i) => {
      const list = listOf(argument);
      if (list) (found[list] ??= []).push(all[i]);
      else found[formulaName(argument)] = all[i];
    });
    for (const [name, value] of Object.entries(step.options)) found[name] = option(value);
    const whole = all.every((v, i) => (v === null ? step.inputs[i] === null : typeof v === "number" || v.data));
    return { names: found, whole: whole && Object.values(found).every(v => !(v?.text && v.at) || v.at.data) };
  };
  const formulaOf = step => formulas.of[step.op] ?? null;
  const gradientOf = (step, i) =>
    formulaOf(step)?.gradients[listOf(step.arguments[i]) ?? formulaName(step.arguments[i])] ?? null;
  const backwardNames = (tape, step, visit, i) => {
    const { names: found, whole } = names(tape, step),
      g = array(visit.grad),
      out = array(step.value);
    return { names: { ...found, g, out, i }, whole: whole && Boolean(g?.data && out?.data) };
  };
  const shapeOf = (tape, step, i) => {
    const v = input(tape, step, i);
    return v === null || typeof v === "number" ? [] : v.shape;
  };

  // ----- again, by the formulas

  const again = (compute, recorded) => {
    // {state, difference, tolerance}
    if (!recorded?.data) return { state: "summary" };
    try {
      const { value, tolerance } = compute(),
        difference = Formula.difference(value, recorded);
      return { state: difference <= tolerance ? "equal" : "differs", difference, tolerance, value };
    } catch (error) {
      if (error instanceof Formula.TooMuch) return { state: "summary" };
      return { state: "differs", difference: NaN, tolerance: 0, error: error.message };
    }
  };
  const checkValue = (tape, step) => {
    const formula = formulaOf(step),
      { names: all, whole } = names(tape, step);
    if (!formula) return { state: "no formula" };
    if (!whole) return { state: "summary" };
    return again(() => Formula.computeWithTolerance(formula.forward.tree, formula.where, all, step.dtype), array(step.value));
  };
  const checkContribution = (tape, step, visit, i) => {
    const formula = gradientOf(step, i),
      { names: all, whole } = backwardNames(tape, step, visit, i);
    if (!formulaOf(step)) return { state: "no formula" };
    if (!formula)
      return { state: "differs", difference: NaN, tolerance: 0, error: "a contribution where the formula has none" };
    if (!whole) return { state: "summary" };
    return again(() => {
      const coarser = [step.dtype, array(visit.contributions[i]).dtype].sort(
        (a, b) => (Formula.EPS[b] ?? 0) - (Formula.EPS[a] ?? 0),
      )[0];
      const { value, tolerance } = Formula.computeWithTolerance(formula.tree, formulaOf(step).where, all, coarser);
      const shape = shapeOf(tape, step, i),
        scale = Math.max(1, value.data.length / Math.max(1, Formula.product(shape)));
      return { value: Formula.sumTo(value, shape), tolerance: tolerance * scale };
    }, array(visit.contributions[i]));
  };

  // Who contributed to the gradient of an entry in a walk: [{step, visit, i, array}], in the order in which they ran.
  const sources = run.tapes.map(({ entries }) => {
    const found = new Map();
    entries.forEach(
      (e, id) =>
        isStep(e) &&
        e.visits.forEach((visit, number) =>
          Object.entries(visit.contributions).forEach(([i, a]) => {
            const key = `${e.inputs[i]}.${visit.walk}`;
            if (!found.has(key)) found.set(key, []);
            found.get(key).push({ step: id, visit: number, i: Number(i), array: a, order: visit.order });
          }),
        ),
    );
    for (const list of found.values()) list.sort((a, b) => a.order - b.order || a.i - b.i);
    return found;
  });
  const contributionsTo = (tape, id, walk) => sources[tape].get(`${id}.${walk}`) ?? [];
  const gradients = e =>
    isStep(e) ? e.visits.map(v => [v.walk, v.grad]) : Object.entries(e.grads).map(([w, g]) => [Number(w), g]);
  const gradient = (tape, id, walk) => array(gradients(entry(tape, id)).find(([w]) => walk === undefined || w === walk)?.[1]);

  // Whether a hook of the user's saw this gradient: then it may be another than the sum of its contributions.
  const hooked = (tape, id, walk) => {
    const e = entry(tape, id);
    return isStep(e) ? e.visits.some(v => v.walk === walk && v.hooked) : e.hooked.includes(walk);
  };
  const checkSum = (tape, id, walk, g) => {
    const parts = contributionsTo(tape, id, walk),
      recorded = array(g),
      arrays = parts.map(p => array(p.array));
    if (!recorded?.data || arrays.some(a => !a?.data)) return { state: "summary" };
    if (!parts.length) return { state: "given" }; // from here a walk began, with one or with what the user gave
    const total = Formula.zeros(recorded.shape);
    let size = 0;
    for (const a of arrays)
      a.data.forEach((v, i) => {
        total.data[i] += v;
        if (Number.isFinite(v)) size = Math.max(size, Math.abs(v));
      });
    const tolerance = parts.length === 1 ? 0 : 8 * parts.length * size * (Formula.EPS[recorded.dtype] ?? Formula.EPS.float64);
    const difference = Formula.difference(total, recorded);
    const equal = difference <= tolerance,
      asked = tape === 0 && !run.delivers.includes(walk); // by grad(), which may begin at several steps
    const state = equal ? "equal" : hooked(tape, id, walk) ? "hooked" : asked && isStep(entry(tape, id)) ? "given" : "differs";
    return { state, difference, tolerance };
  };

  // Every check of the page, one after the other: {kind, tape, id, ..., state}.
  function* checks() {
    for (let tape = 0; tape < run.tapes.length; tape++)
      for (let id = 0; id < run.tapes[tape].entries.length; id++) {
        const e = entry(tape, id);
        if (isStep(e) && e.value !== null) yield { kind: "value", tape, id, ...checkValue(tape, e) };
        if (isStep(e))
          for (let n = 0; n < e.visits.length; n++)
            for (const i of Object.keys(e.visits[n].contributions)) {
              yield {
                kind: "contribution",
                tape,
                id,
                visit: n,
                i: Number(i),
                ...checkContribution(tape, e, e.visits[n], Number(i)),
              };
            }
        for (const [walk, g] of gradients(e)) yield { kind: "gradient", tape, id, walk, ...checkSum(tape, id, walk, g) };
      }
  }

  // ----- what a cell depends on

  // d(cell)/d(every cell behind it): a Map from an entry's id to an array, null where an array is only summarised. What is
  // within rounding of zero, beside the largest of all, is zero: a bias before a BatchNorm moves nothing.
  const derivatives = (tape, id, flat) => {
    const found = new Map(),
      start = array(entry(tape, id).value);
    const seed = Formula.zeros(start.shape);
    seed.data[flat] = 1;
    found.set(id, { ...seed, floats: true });
    for (let at = id; at >= 0; at--) {
      const g = found.get(at),
        e = entry(tape, at);
      if (g === undefined || !isStep(e)) continue;
      const formula = formulaOf(e),
        { names: all, whole } = names(tape, e),
        out = array(e.value);
      e.inputs.forEach((ref, i) => {
        if (typeof ref !== "number" || !array(entry(tape, ref).value)?.floats) return;
        const rule = gradientOf(e, i);
        let part = null;
        if (g && whole && out?.data && rule) {
          try {
            part = Formula.sumTo(Formula.compute(rule.tree, formula.where, { ...all, g, out, i }), shapeOf(tape, e, i));
          } catch {
            part = null;
          }
        } else if (g && formula && !rule) return;
        const before = found.get(ref);
        found.set(ref, part === null || before === null ? null : before ? Formula.add(before, part) : part);
      });
    }
    found.delete(id);
    let most = 0;
    for (const d of found.values()) for (const v of d?.data ?? []) if (Number.isFinite(v)) most = Math.max(most, Math.abs(v));
    const least = 64 * (Formula.EPS[entry(tape, id).dtype] ?? Formula.EPS.float64) * most;
    for (const [at, d] of found) if (d) found.set(at, { ...d, data: d.data.map(v => (Math.abs(v) <= least ? 0 : v)) });
    return found;
  };

  return {
    array,
    backwardNames,
    checks,
    contributionsTo,
    derivatives,
    entry,
    formulaName,
    formulaOf,
    formulas,
    gradient,
    gradientOf,
    gradients,
    hooked,
    input,
    isStep,
    listOf,
    nameOf,
    names,
    option,
    optionText,
    run,
    shapeOf,
  };
})();
