// The steps that one walks through: the forward operations, the gradient rules, and what changed, in the order of the run.
const Steps = (() => {
  const { run, entry, isStep } = Run,
    { html, number } = Page;
  const { card, cellName, formulaBlock, link, listing, plural, verdict } = Panel;
  const main = run.tapes[0].entries;
  const ids = main.flatMap((e, id) => (isStep(e) ? [id] : [])).sort((a, b) => main[a].order - main[b].order);

  // ----- their order

  const ordinary = (() => {
    const found = [],
      done = new Set(),
      byRule = new Map();
    for (const id of ids)
      if (main[id].ruleOf !== null) byRule.set(main[id].ruleOf, [...(byRule.get(main[id].ruleOf) ?? []), id]);
    const forward = id => {
      if (!done.has(id)) {
        done.add(id);
        found.push({ kind: "forward", tape: 0, id, key: `f${id}` });
      }
    };
    const visits = ids
      .flatMap(id => main[id].visits.map((v, visit) => ({ id, visit, ...v })))
      .filter(v => v.order !== null)
      .sort((a, b) => a.order - b.order);
    const last = new Map(); // by walk: the last step that it goes through
    for (const v of visits) last.set(v.walk, Math.max(last.get(v.walk) ?? 0, main[v.id].order));
    let walk = null;
    for (const v of visits) {
      if (v.walk !== walk) {
        walk = v.walk;
        for (const id of ids)
          if (main[id].order <= last.get(walk) && (main[id].phase !== "backward" || main[id].order < main[v.id].order))
            forward(id);
      }
      found.push({ kind: "backward", tape: 0, id: v.id, visit: v.visit, walk, key: `b${v.id}${v.visit ? "." + v.visit : ""}` });
      for (const id of byRule.get(v.id) ?? []) forward(id);
    }
    ids.forEach(forward);
    run.changes.forEach((change, i) => found.push({ kind: "update", change, id: change.leaf, tape: 0, key: `u${i}` }));
    return [{ kind: "start", key: "start" }, ...found];
  })();
  const parts = (step, kind) => {
    // the steps of a fused operation's second run
    const tape = run.expansions[step].tape,
      all = run.tapes[tape].entries;
    const own = all
      .flatMap((e, id) => (isStep(e) && e.phase === "forward" ? [id] : []))
      .sort((a, b) => all[a].order - all[b].order);
    if (kind === "forward") return own.map(id => ({ kind, tape, id, key: `f${step}~${id}` }));
    return own
      .filter(id => all[id].visits.length && all[id].visits[0].order !== null)
      .sort((a, b) => all[a].visits[0].order - all[b].visits[0].order)
      .map(id => ({ kind, tape, id, visit: 0, walk: all[id].visits[0].walk, key: `b${step}~${id}` }));
  };
  const frames = () =>
    ordinary.flatMap(f =>
      f.tape === 0 && (f.kind === "forward" || (f.kind === "backward" && f.visit === 0)) && Graph.state.open.has(f.id)
        ? [f, ...parts(f.id, f.kind)]
        : [f],
    );
  const counts = {
    forward: ordinary.filter(f => f.kind === "forward").length,
    backward: ordinary.filter(f => f.kind === "backward").length,
    update: run.changes.length,
  };
  const NAMES = { start: "Overview", forward: "Forward", backward: "Backward", update: "Change" };
  const place = (list, at) => {
    const f = list[at],
      same = list.filter(o => o.kind === f.kind);
    return f.kind === "start" ? "Overview" : `${NAMES[f.kind]} ${same.indexOf(f) + 1} of ${same.length}`;
  };

  // ----- each as an explanation

  const title = f => (f.kind === "update" ? f.change.name : Run.nameOf(f.tape, f.id));
  const valueOf = (tape, id) => Run.array(entry(tape, id).value);

  function explanation(f, context) {
    if (f.kind === "start") return Around.overview(context, counts);
    if (f.kind === "update") return Around.update(f.change, context);
    return f.kind === "forward" ? forward(f, context) : backward(f, context);
  }

  function aboutStep(f, context) {
    const e = entry(f.tape, f.id),
      facts = [];
    if (f.tape > 0) facts.push("in the second run, of primitive operations");
    if (e.module) facts.push(`module ${e.module}`);
    if (e.source) facts.push(e.source);
    if (f.kind === "forward" && e.saved.length) facts.push(`keeps ${e.saved.join(", ")} for backward`);
    if (e.view) facts.push("a view: shares its input’s memory");
    if (e.phase === "backward") facts.push("ran inside a recorded gradient");
    return [html("p", { class: "small muted facts", text: facts.join(" · ") }), ...difference(f)];
  }
  function tools(f, context) {
    const found = html("p", { class: "tools-of-node" });
    if (f.kind !== "forward" && f.kind !== "backward") return found;
    if (f.tape === 0 && run.expansions[f.id]) {
      found.append(
        html("button", {
          type: "button",
          id: "expand",
          "aria-pressed": String(Graph.state.open.has(f.id)),
          text: Graph.state.open.has(f.id) ? "Close into one node" : "Open into primitives",
          onclick: () => context.expand(f.id),
        }),
      );
    }
    found.append(
      html("button", { type: "button", id: "python", text: "As Python", onclick: () => context.python(f.tape, f.id) }),
    );
    return found;
  }
  function difference(f) {
    const expansion = f.tape === 0 && run.expansions[f.id];
    if (!expansion || !Graph.state.open.has(f.id)) return [];
    const count = run.tapes[expansion.tape].entries.filter(e => isStep(e) && e.phase === "forward").length;
    return [
      html(
        "aside",
        { class: "note" },
        html("h3", { text: "Opened" }),
        html("p", {
          text: `A second run computed the same by ${plural(count, "primitive operation")}. Largest difference from the fused node:`,
        }),
        html(
          "p",
          { class: "differences" },
          ...Object.entries(expansion.differences).map(([name, v]) =>
            html("span", { class: "fact", text: `${name === "out" ? "output" : "d/d" + name} ${number(Run.option(v), 2)}` }),
          ),
        ),
      ),
    ];
  }
  const inputCards = (f, context, chosen) =>
    entry(f.tape, f.id).inputs.flatMap((ref, i) => {
      const e = entry(f.tape, f.id),
        name = e.arguments[i];
      if (ref === null) return [];
      if (typeof ref === "object")
        return [html("p", { class: "small" }, html("b", { text: name }), ` = ${Run.optionText(ref.number)}`)];
      const from = entry(f.tape, ref),
        cell = cellName("v", f.tape, ref);
      return [
        card(
          isStep(from) ? "value" : from.kind,
          name,
          [" is ", link(f.tape, ref, context.go), html("span", { class: "muted", text: ` ${Panel.shapeText(from)}` })],
          valueOf(f.tape, ref),
          cell,
          chosen(cell),
        ),
      ];
    });
  const optionsLine = e => {
    const told = Object.entries(e.options).map(([name, v]) => `${name} = ${Run.optionText(v)}`);
    return told.length ? [html("p", { class: "small options" }, Panel.code(told.join(", ")))] : [];
  };

  function forward(f, context) {
    const e = entry(f.tape, f.id),
      formula = Run.formulaOf(e),
      cell = cellName("v", f.tape, f.id),
      chosen = context.chosen;
    const { names, whole } = Run.names(f.tape, e),
      out = valueOf(f.tape, f.id);
    return [
      ...aboutStep(f, context),
      ...(formula
        ? [formulaBlock("out", formula.forward, formula.where, names, whole ? out : null, chosen(cell), "out")]
        : [noFormula(e)]),
      ...optionsLine(e),
      html("h3", { text: "Result" }),
      card("value", "out", ` ${Panel.shapeText(e)}`, out, cell, chosen(cell), verdict(context.check("value", f))),
      html("h3", { text: "Inputs" }),
      html("div", { class: "arrays" }, ...inputCards(f, context, chosen)),
      ...Notes.of(f.tape, f.id, null),
    ];
  }
  const noFormula = e =>
    html("p", {
      class: "small muted",
      text: `${e.op} is not one of this package’s operations: no formula is known, and nothing is recomputed.`,
    });

  function incoming(f, context) {
    const e = entry(f.tape, f.id),
      visit = e.visits[f.visit],
      cell = cellName("g", f.tape, f.id, visit.walk);
    const from = Run.contributionsTo(f.tape, f.id, visit.walk),
      g = Run.array(visit.grad);
    const where = from.length
      ? [" from ", ...listing(from.map(p => link(f.tape, p.step, context.go)))]
      : [f.tape === 0 && f.id === run.loss ? " where backward began" : " given from outside"];
    const found = [
      html("h3", {}, "Gradient that comes in"),
      card(
        "gradient",
        "g",
        [...where, html("span", { class: "muted", text: ` ${Graph.shapeText(e.shape)}` })],
        g,
        cell,
        context.chosen(cell),
        verdict(context.check("gradient", { ...f, walk: visit.walk })),
      ),
    ];
    if (from.length > 1) found.push(sum(f.tape, from, g, context));
    return found;
  }
  // A tensor with several consumers: its gradient adds up.
  function sum(tape, from, total, context) {
    const so = html(
      "div",
      { class: "sum-of" },
      html("p", { class: "small", text: `It was used ${from.length} times, so ${from.length} contributions add up to it:` }),
    );
    from.forEach((p, i) =>
      so.append(
        html("span", { class: "plus", "aria-hidden": "true", text: i ? "+" : "=" }),
        card(
          "contribution",
          "",
          [html("span", { class: "muted", text: i ? "and from " : "from " }), link(tape, p.step, context.go)],
          Run.array(p.array),
          cellName("c", tape, p.step, p.visit, p.i),
          context.chosen(cellName("c", tape, p.step, p.visit, p.i)),
        ),
      ),
    );
    return so;
  }

  function backward(f, context) {
    const e = entry(f.tape, f.id),
      visit = e.visits[f.visit],
      formula = Run.formulaOf(e),
      found = [...aboutStep(f, context), ...incoming(f, context)];
    const positions = Object.keys(visit.contributions).map(Number);
    found.push(html("h3", { text: positions.length ? "Contributions that go out" : "No contribution goes out" }));
    for (const i of positions) {
      const ref = e.inputs[i],
        rule = Run.gradientOf(e, i),
        c = Run.array(visit.contributions[i]),
        cell = cellName("c", f.tape, f.id, f.visit, i);
      const { names, whole } = Run.backwardNames(f.tape, e, visit, i),
        target = entry(f.tape, ref),
        others = Run.contributionsTo(f.tape, ref, visit.walk);
      const block = html(
        "section",
        { class: "going" },
        html("h4", {}, `to ${e.arguments[i]}, `, link(f.tape, ref, context.go)),
      );
      if (rule)
        block.append(
          formulaBlock(
            `d${Run.formulaName(Run.listOf(e.arguments[i]) ?? e.arguments[i])}`,
            rule,
            formula.where,
            names,
            whole ? c : null,
            context.chosen(cell),
            "",
          ),
        );
      block.append(
        card(
          "contribution",
          `d${e.arguments[i]}`,
          ` ${Graph.shapeText(c.shape)}`,
          c,
          cell,
          context.chosen(cell),
          verdict(context.check("contribution", { ...f, i })),
        ),
      );
      if (others.length > 1) {
        const mine = others.findIndex(p => p.step === f.id && p.i === i && p.visit === f.visit),
          whose = Run.nameOf(f.tape, ref),
          hooked = Run.hooked(f.tape, ref, visit.walk) ? ", after a hook" : "";
        block.append(
          html("p", {
            class: "small accumulates",
            text:
              mine + 1 < others.length
                ? `${mine + 1} of ${others.length} contributions to ${whose}: it waits for the others.`
                : `The last of ${others.length} contributions to ${whose}: its gradient is complete.`,
          }),
        );
        if (mine + 1 === others.length)
          block.append(
            sum(f.tape, others, Run.gradient(f.tape, ref, visit.walk), context),
            card(
              "gradient",
              "",
              [html("span", { class: "muted", text: `= the gradient of ${whose}${hooked}` })],
              Run.gradient(f.tape, ref, visit.walk),
              cellName("g", f.tape, ref, visit.walk),
              context.chosen(cellName("g", f.tape, ref, visit.walk)),
            ),
          );
      }
      if (!isStep(target) && target.kind === "parameter" && others.length === 1)
        block.append(
          html("p", { class: "small accumulates", text: `The only contribution to ${target.name}: its gradient is complete.` }),
        );
      found.push(block);
    }
    return [...found, ...Notes.of(f.tape, f.id, visit)];
  }

  return { counts, explanation, frames, place, title, tools };
})();
