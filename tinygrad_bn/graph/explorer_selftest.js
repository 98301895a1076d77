// The self-test: every value, contribution and gradient again, a slice at a time, so that the page stays awake.
const SelfTest = (() => {
  const KINDS = ["value", "contribution", "gradient"],
    SLICE = 12; // milliseconds
  let results = new Map(),
    failed = [];
  const keyOf = c => [c.kind, c.tape, c.id, c.visit ?? "", c.i ?? c.walk ?? ""].join(":");

  const found = (kind, f) =>
    results.get(
      keyOf({
        kind,
        tape: f.tape,
        id: f.id,
        visit: kind === "contribution" ? f.visit : "",
        i: kind === "contribution" ? f.i : undefined,
        walk: kind === "gradient" ? f.walk : undefined,
      }),
    );

  function run(ended) {
    const todo = Run.checks(),
      tally = {};
    results = new Map();
    failed = [];
    let worst = 0;
    Page.badge("waiting", "checking …");
    const slice = () => {
      const until = performance.now() + SLICE;
      for (;;) {
        const { value: c, done } = todo.next();
        if (done) {
          report(tally, worst);
          ended();
          return;
        }
        results.set(keyOf(c), c);
        tally[`${c.kind} ${c.state}`] = (tally[`${c.kind} ${c.state}`] ?? 0) + 1;
        if (c.state === "differs") failed.push(c);
        if (c.state === "equal" && c.difference > worst) worst = c.difference;
        if (performance.now() > until) break;
      }
      setTimeout(slice);
    };
    setTimeout(slice, 30);
  }

  function report(tally, worst) {
    const of = (kind, state) => tally[`${kind} ${state}`] ?? 0,
      sum = state => KINDS.reduce((s, k) => s + of(k, state), 0);
    const rest = kind =>
      [
        of(kind, "summary") && `${of(kind, "summary")} only summarised`,
        of(kind, "no formula") && `${of(kind, "no formula")} without a formula`,
        of(kind, "hooked") && `${of(kind, "hooked")} changed by a hook`,
      ]
        .filter(Boolean)
        .map(t => ", " + t)
        .join("");
    const details = [
      `Contributions, by their formulas: ${of("contribution", "equal")} equal${rest("contribution")}.`,
      `Values, by their formulas: ${of("value", "equal")} equal${rest("value")}.`,
      `Gradients, as the sum of their contributions: ${of("gradient", "equal")} equal${rest("gradient")}.`,
      `Largest difference: ${Page.number(worst, 2)}. Equal means: within what rounding in the recorded precision can do.`,
      `Arrays above ${Panel.plural(Run.run.whole, "element")} are only summarised.`,
    ];
    const walked = Object.keys(tally).some(key => key.startsWith("contribution")),
      kind = walked ? "contribution" : "value", // a run without a backward pass has values only
      count = walked ? of(kind, "equal") : Panel.plural(of(kind, "equal"), "value");
    if (!failed.length && !of(kind, "equal")) Page.badge("open", `nothing recomputed${rest(kind)}`, details);
    else if (!failed.length) Page.badge("pass", `${count} recomputed, all equal${rest(kind)}`, details);
    else
      Page.badge("fail", `${sum("differs")} of ${sum("differs") + sum("equal")} numbers differ`, [
        ...failed.slice(0, 20).map(told),
        ...details,
      ]);
  }
  const told = c => {
    const name = Graph.short(Run.nameOf(c.tape, c.id), 40),
      to = c.kind === "contribution" ? ` to ${Run.entry(c.tape, c.id).arguments[c.i]}` : "";
    return `the ${c.kind} of ${name}${to} differs${c.error ? `: ${c.error}` : ` by ${Page.number(c.difference, 2)}`}`;
  };

  return { failed: () => failed, found, run };
})();
