// What stands around the steps: the overview before them, and what the run changed, before and after.
const Around = (() => {
  const { run, entry, isStep } = Run,
    { html, number } = Page,
    { card, cellName, link, plural } = Panel;
  const main = run.tapes[0].entries,
    valueOf = (tape, id) => Run.array(entry(tape, id).value);
  const ids = main.flatMap((e, id) => (isStep(e) ? [id] : []));

  // ----- before and after

  const after = change => [
    Run.array(change.before),
    Run.array(change.after),
    change.leaf === null ? null : Run.gradient(0, change.leaf),
  ];
  const rate = (before, now, g) => {
    // the learning rate, if the change is one number times the gradient
    if (!before?.data || !now?.data || !g?.data) return null;
    let best = -1;
    g.data.forEach((v, i) => {
      if (best < 0 || Math.abs(v) > Math.abs(g.data[best])) best = i;
    });
    if (best < 0 || !g.data[best]) return null;
    const lr = (before.data[best] - now.data[best]) / g.data[best],
      eps = Formula.EPS[before.dtype] ?? Formula.EPS.float64;
    const told = Number(lr.toPrecision(before.dtype === "float64" ? 9 : 4));
    return g.data.every(
      (v, i) =>
        Math.abs(before.data[i] - told * v - now.data[i]) <=
        8 * eps * Math.max(Math.abs(before.data[i]), Math.abs(told * v)) + 1e-300,
    )
      ? told
      : null;
  };
  function update(change, context) {
    const [before, now, g] = after(change),
      lr = rate(before, now, g),
      found = [];
    const most = g?.data ? Panel.largest(g.data) : 0;
    const still = before?.data && now?.data && before.data.every((v, i) => Object.is(v, now.data[i]));
    if (change.kind === "buffer")
      found.push(
        html("p", {
          text:
            "No gradient moves this one: it follows the batches, in the forward pass. Evaluation mode uses it in place of " +
            "the batch’s own statistics.",
        }),
      );
    else if (still)
      found.push(
        html("p", {
          text: `Nothing changed${most ? `: its gradient, at most ${number(most, 2)}, is too small to matter` : ""}.`,
        }),
      );
    else if (lr !== null)
      found.push(
        html(
          "p",
          {},
          "Every number obeys ",
          html("b", { text: `after = before − ${number(lr, 9)} · gradient` }),
          ", a plain step of gradient descent.",
        ),
      );
    else if (!g) found.push(html("p", { text: "It changed, but the recording has no gradient for it." }));
    else
      found.push(
        html("p", {
          text:
            "The change is not one number times the gradient: the optimizer does more than a plain step of gradient " +
            "descent.",
        }),
      );
    const moved = before?.data && now?.data ? { ...before, data: now.data.map((v, i) => v - before.data[i]) } : null;
    const cell = change.leaf === null ? null : cellName("v", 0, change.leaf),
      gradientCell =
        change.leaf === null || !g ? null : cellName("g", 0, change.leaf, Run.gradients(entry(0, change.leaf))[0][0]);
    found.push(
      html(
        "div",
        { class: "arrays" },
        card(change.kind, "before", ` ${Panel.shapeText(before)}`, before, cell, context.chosen(cell)),
        ...(g ? [card("gradient", "gradient", "", g, gradientCell, context.chosen(gradientCell))] : []),
        card(change.kind, "after", "", now, null),
        ...(moved ? [card("change", "change", "", moved, null)] : []),
      ),
    );
    if (change.leaf !== null) {
      const user = run.tapes[0].entries.findIndex(e => isStep(e) && e.inputs.includes(change.leaf) && e.visits.length);
      if (user >= 0)
        found.push(
          ...Notes.of(0, user, entry(0, user).visits[0]).filter(
            n => entry(0, user).inputs[2] === change.leaf && entry(0, user).op !== "batch_norm",
          ),
        );
    }
    return found;
  }

  // ----- the overview: something true before the first click

  function overview(context, counts) {
    const loss = run.loss === null ? null : valueOf(0, run.loss),
      most = a => (a?.data ? number(Panel.largest(a.data)) : "–"),
      MOST = 40;
    const row = (name, act, before, g, ...more) =>
      html(
        "tr",
        {},
        html(
          "th",
          { scope: "row" },
          html("button", { type: "button", class: "link", text: Graph.short(name, 32), onclick: act }),
        ),
        html("td", { text: Graph.shapeText(before.shape) }),
        html("td", { text: most(before) }),
        html("td", { text: most(g) }),
        ...more.map(text => html("td", { text })),
      );
    const rows = run.changes.map((change, i) => {
      const [before, now, g] = after(change),
        moved = before?.data && now?.data ? number(Panel.largest(now.data.map((v, k) => v - before.data[k]))) : "–";
      return row(change.name, () => context.show(`u${i}`), before, g, moved);
    });
    if (!rows.length)
      main.forEach((e, id) => {
        if (e.kind === "parameter" && valueOf(0, id))
          rows.push(row(e.name, () => context.go(0, id), valueOf(0, id), Run.gradient(0, id)));
      });
    const changed = counts.update ? `, then ${plural(counts.update, "array")} of the model, before and after` : "";
    const found = [
      html(
        "p",
        { class: "first" },
        `${plural(counts.forward, "operation")} forward, ${plural(counts.backward, "gradient rule")} backward${changed}.`,
        ...(loss?.data?.length === 1
          ? [
              " Backward began at ",
              link(0, run.loss, context.go),
              ": the loss was ",
              html("b", { text: number(loss.data[0], 6) }),
              ".",
            ]
          : []),
      ),
    ];
    found.push(
      html(
        "p",
        {},
        "Press ",
        html("kbd", { text: "→" }),
        " to walk through the run. Each step shows its formula with these very numbers. Click a number to see what it " +
          "depends on, and what the loss makes of it.",
      ),
    );
    if (rows.length)
      found.push(
        html("h3", { text: run.changes.length ? "What the step changed" : "The parameters" }),
        html(
          "div",
          { class: "frame", tabindex: 0, role: "group", "aria-label": "parameters" },
          html(
            "table",
            { class: "plain" },
            html(
              "thead",
              {},
              html(
                "tr",
                {},
                ...["name", "shape", "largest", "largest gradient", "largest change"]
                  .slice(0, run.changes.length ? 5 : 4)
                  .map(text => html("th", { scope: "col", text })),
              ),
            ),
            html("tbody", {}, ...rows.slice(0, MOST)),
          ),
        ),
        ...(rows.length > MOST ? [html("p", { class: "small muted", text: `… and ${rows.length - MOST} more` })] : []),
      );
    const zero = ids.flatMap(id => Notes.of(0, id, main[id].visits[0]));
    return [...found, ...zero.slice(0, 2)];
  }

  return { overview, update };
})();
