// The explanation beside the drawing: one step of the run in words, its formula with these numbers, and its arrays as tables.
const Panel = (() => {
  const { html, number } = Page,
    { array, entry, isStep } = Run;
  const shapeText = a => `${Graph.shapeText(a.shape)} ${a.dtype}`;
  const code = text => html("code", { text });
  const plural = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

  // A cell's name: "v" of a value, "g" of a gradient, "c" of a contribution; then where it lies.
  const cellName = (kind, tape, id, ...more) => [kind, tape, id, ...more].join(":");
  const indexText = (shape, flat) =>
    `[${Formula.stridesOf(shape)
      .map((s, i) => Math.floor(flat / s) % shape[i])
      .join(", ")}]`;

  // ----- an array as a table

  const tint = (v, most) => {
    const share = Number.isFinite(v) && most > 0 ? Math.round(34 * Math.min(1, Math.abs(v) / most)) : 0;
    return share ? `background: color-mix(in srgb, var(${v < 0 ? "--backward" : "--forward"}) ${share}%, transparent)` : null;
  };
  const largest = data => data.reduce((m, v) => (Number.isFinite(v) ? Math.max(m, Math.abs(v)) : m), 0);

  // One number of decimals for a table, so that the points stand under each other; as number() has it where that hides a digit.
  const written = data => {
    const most = largest(data),
      places = Math.max(0, 3 - Math.floor(Math.log10(most || 1)));
    if (data.every(v => Number.isInteger(v) && Math.abs(v) < 1e6)) return v => Page.fixed(v, 0);
    const shown = v => v === 0 || !Number.isFinite(v) || Math.abs(v) >= 5 * 10 ** -places;
    return most >= 1e-3 && most < 1e5 && data.every(shown) ? v => (v === 0 ? "0" : Page.fixed(v, places)) : v => number(v);
  };
  // name: of its cells, as cellName() gives it, or null where they cannot be chosen.
  const table = (a, name, chosen) => {
    if (!a.data.length) return html("p", { class: "muted small", text: "no elements" });
    const columns = a.shape.length ? a.shape.at(-1) : 1,
      rows = a.data.length / columns,
      most = largest(a.data);
    const say = written(a.data),
      lead = a.shape.slice(0, -1),
      body = html("tbody");
    for (let r = 0; r < rows; r++) {
      const row = html("tr");
      if (lead.length)
        row.append(
          html("th", {
            scope: "row",
            text: Formula.stridesOf(lead)
              .map((s, i) => Math.floor(r / s) % lead[i])
              .join(","),
          }),
        );
      for (let c = 0; c < columns; c++) {
        const flat = r * columns + c,
          v = a.data[flat];
        row.append(
          html("td", {
            text: say(v),
            style: tint(v, most),
            title: `${indexText(a.shape, flat)} = ${v}`,
            ...(name === null
              ? {}
              : {
                  role: "gridcell",
                  tabindex: flat === (chosen?.flat ?? 0) ? 0 : -1,
                  "data-flat": flat,
                  "aria-selected": chosen?.flat === flat ? "true" : null,
                }),
          }),
        );
      }
      body.append(row);
    }
    const head =
      a.shape.length && columns > 1
        ? [
            html(
              "thead",
              {},
              html(
                "tr",
                {},
                ...(lead.length ? [html("td")] : []),
                ...Formula.range(columns).map(c => html("th", { scope: "col", text: String(c) })),
              ),
            ),
          ]
        : [];
    return html(
      "div",
      {
        class: "frame",
        tabindex: name === null && columns > 6 ? 0 : null,
        role: name === null && columns > 6 ? "group" : null,
        "aria-label": name === null && columns > 6 ? "table" : null,
      },
      html(
        "table",
        {
          role: name === null ? null : "grid",
          "data-name": name,
          "aria-label": name === null ? null : `numbers, ${Graph.shapeText(a.shape)}`,
        },
        ...head,
        body,
      ),
    );
  };
  const summary = a => {
    const s = a.summary,
      box = html("div", { class: "summary-of" });
    const bars = s.histogram;
    if (bars) {
      const top = Math.max(...bars),
        w = 160 / bars.length;
      box.append(
        Page.svg(
          "svg",
          {
            viewBox: "0 0 160 40",
            width: 160,
            height: 40,
            role: "img",
            "aria-label": `histogram of ${bars.length} bins: ${bars.join(", ")}`,
          },
          ...bars.map((n, i) =>
            Page.svg("rect", { x: i * w + 0.5, y: 40 - (38 * n) / top, width: w - 1, height: (38 * n) / top }),
          ),
        ),
      );
    }
    const facts =
      s.min === undefined
        ? []
        : [
            ["min", s.min],
            ["mean", Run.option(s.mean)],
            ["max", s.max],
          ];
    box.append(
      html(
        "p",
        { class: "small" },
        ...facts.flatMap(([label, v]) => [html("span", { class: "fact", text: `${label} ${number(v)}` })]),
        ...(s.odd ? [html("span", { class: "fact wrong", text: `${plural(s.odd, "value")} not finite` })] : []),
      ),
    );
    if (s.first.length)
      box.append(html("p", { class: "small muted", text: `first: ${s.first.map(v => number(v)).join("  ")} …` }));
    box.append(html("p", { class: "small muted", text: "only summarised: too large to list" }));
    return box;
  };

  const card = (kind, title, told, a, name, chosen, mark) => {
    const caption = html(
      "figcaption",
      {},
      html("b", { text: title }),
      ...(Array.isArray(told) ? told : [html("span", { class: "muted", text: told })]),
    );
    if (mark) caption.append(mark);
    return html(
      "figure",
      { class: `array ${kind}` },
      caption,
      a === null ? html("p", { class: "muted small", text: "not kept" }) : a.data ? table(a, name, chosen) : summary(a),
    );
  };
  const verdict = check =>
    check === undefined
      ? null
      : html("span", {
          class: `verdict ${check.state === "differs" ? "wrong" : "muted"}`,
          text: {
            equal: "✓ equal",
            differs: `✗ differs${Number.isNaN(check.difference) ? "" : " by " + number(check.difference, 2)}`,
            summary: "only summarised",
            given: "given",
            hooked: "changed by a hook",
            "no formula": "no formula here",
          }[check.state],
        });

  // ----- links

  const link = (tape, id, go) =>
    html("button", { type: "button", class: "link", text: Graph.short(Run.nameOf(tape, id), 40), onclick: () => go(tape, id) });
  const listing = parts => parts.flatMap((p, i) => (i === 0 ? [p] : [i === parts.length - 1 ? " and " : ", ", p]));

  // ----- the formula, in three forms

  const formulaBlock = (label, part, where, names, result, chosen, cellLabel) => {
    const tree = Typeset.readable(part.tree, names),
      needed = Formula.needed(Formula.taken(part.tree, names), where);
    const block = html(
      "div",
      { class: "formula" },
      html(
        "div",
        { class: "math", tabindex: 0, role: "group", "aria-label": `formula ${label} = ${part.text}` },
        Typeset.equation(label, tree),
      ),
    );
    const lines = needed.filter(
      ([, line]) =>
        !(Array.isArray(line) && line[0] === "call" && /^(all_but_channels|other_axes|per_channel|along)$/.test(line[1])),
    );
    if (lines.length)
      block.append(
        html(
          "details",
          { class: "where" },
          html("summary", { text: `with ${lines.map(([name]) => Typeset.spelled(name)).join(", ")}` }),
          ...lines.map(([name, line]) => html("div", { class: "math" }, Typeset.equation(name, Typeset.readable(line, names)))),
        ),
      );
    if (result?.data?.length) block.append(numbers(label, part, where, names, result, chosen?.flat ?? 0, cellLabel));
    const words = functionsIn(part.tree, needed);
    block.append(
      html(
        "details",
        { class: "source" },
        html("summary", { text: "as code" }),
        html("pre", { tabindex: 0 }, code([...needed.map(l => l[2]), `${label} = ${part.text}`].join("\n"))),
        ...(words.length
          ? [
              html(
                "dl",
                { class: "small words" },
                ...words.flatMap(w => [html("dt", {}, code(w)), html("dd", { text: Run.formulas.functions[w] })]),
              ),
            ]
          : []),
      ),
    );
    return block;
  };
  const functionsIn = (tree, lines) => {
    const found = new Set(),
      walk = part => {
        if (!Array.isArray(part)) return;
        if (part[0] === "call") found.add(part[1]);
        part.forEach(walk);
      };
    [tree, ...lines.map(l => l[1])].forEach(walk);
    return [...found].sort();
  };
  const numbers = (label, part, where, names, result, flat, cellLabel) => {
    let lines = [];
    try {
      lines = Typeset.lines(label, part, where, names, result, Math.min(flat, result.data.length - 1));
    } catch {
      /* the check says what is wrong */
    }
    return html(
      "div",
      { class: "with-numbers" },
      html("p", {
        class: "small muted",
        text: `with the numbers of ${cellLabel}${result.shape.length ? indexText(result.shape, flat) : ""}`,
      }),
      ...lines.map(([name, text, value], i) =>
        html(
          "p",
          { class: i === lines.length - 1 ? "line last" : "line" },
          html("span", { class: "name", text: Typeset.spelled(name) }),
          html("span", { class: "sum", text: `= ${text}` }),
          html("span", { class: "result", text: `= ${number(value, 6)}` }),
        ),
      ),
    );
  };

  return {
    card,
    cellName,
    code,
    formulaBlock,
    indexText,
    largest,
    link,
    listing,
    plural,
    shapeText,
    table,
    verdict,
  };
})();
