// The drawing. Its places come from Python, with everything open; what is closed is folded here: rows and columns that hold
// nothing visible are narrowed, in order, so that nothing comes to lie over anything else.
const Graph = (() => {
  const { graph, expansions } = Run.run,
    ROW_GAP = 44,
    COLUMN_GAP = 34,
    FUSED_TOP = 14;
  const svg = Page.find("drawing"),
    { nodes, groups } = graph;
  const key = (tape, id) => `${tape}:${id}`;
  const nodeOf = new Map(nodes.map((n, i) => [key(...n.of), i]));
  const fused = new Map(groups.flatMap((g, i) => (g.step === undefined ? [] : [[g.step, i]])));
  const modules = groups.flatMap((g, i) => (g.step === undefined ? [i] : []));
  const shapeText = shape => (shape.length ? shape.join("×") : "scalar");
  const short = (name, most) => (name.length > most ? name.slice(0, most - 1) + "…" : name);

  const state = { open: new Set(), folded: new Set() }; // ids of fused steps; indices of groups
  const closed = g => (groups[g].step === undefined ? state.folded.has(g) : !state.open.has(groups[g].step));
  const closedAround = g => {
    // the outermost closed group, from g outwards
    let found = null;
    for (; g !== null && g !== undefined; g = groups[g].in) if (closed(g)) found = g;
    return found;
  };
  // What stands for an entry in the drawing now: ["node", i] or ["group", g].
  const standIn = (tape, id) => {
    const n = nodeOf.get(key(tape, id));
    const around =
      n !== undefined
        ? closedAround(nodes[n].in)
        : fused.has(id) && tape === 0
          ? (closedAround(fused.get(id)) ?? fused.get(id))
          : null;
    if (around !== null) return ["group", around];
    if (n !== undefined) return ["node", n];
    if (tape > 0) {
      // a leaf of the second run: what went into the fused step
      const step = Object.keys(expansions).find(s => expansions[s].tape === tape),
        at = Object.entries(expansions[step].inputs).find(([, leaf]) => leaf === id);
      const ref = at ? Run.entry(0, Number(step)).inputs[Number(at[0])] : null;
      if (typeof ref === "number") return standIn(0, ref);
    }
    return null;
  };

  // ----- elements, made once

  const layers = Object.fromEntries(
    ["groups", "edges", "nodes", "flow"].map(name => [name, svg.appendChild(Page.svg("g", { class: name }))]),
  );
  const box = (name, title, under, classes, label) => {
    const element = Page.svg(
      "g",
      { class: `node ${classes}`, role: "button", tabindex: -1, "aria-label": label, "data-key": name },
      Page.svg("rect", { rx: classes.includes("parameter") ? 2 : 8 }),
      Page.svg("text", { class: "op", text: title }),
      Page.svg("text", { class: "shape", text: under }),
      Page.svg("circle", { class: "done", r: 4.5 }),
      Page.svg("circle", { class: "reached", r: 4 }),
      Page.svg("text", { class: "cross", text: "✗" }),
      Page.svg("title", { text: label }),
    );
    layers.nodes.append(element);
    return element;
  };
  const described = (tape, id) => {
    const e = Run.entry(tape, id),
      shape = shapeText(e.shape);
    return Run.isStep(e) ? `${e.op}, ${shape}` : `${e.kind} ${e.name}, ${shape}`;
  };
  const kindOf = e => (Run.isStep(e) ? "step" : `leaf ${e.kind}`);
  const counts = new Map(); // of operations, by group
  const count = g => {
    for (; g !== null && g !== undefined; g = groups[g].in) counts.set(g, (counts.get(g) ?? 0) + 1);
  };
  nodes.forEach(n => {
    if (n.of[0] === 0 && Run.isStep(Run.entry(...n.of))) count(n.in);
  });
  groups.forEach(g => {
    if (g.step !== undefined) count(g.in);
  });
  for (const [g, group] of groups.entries()) {
    const step = group.step === undefined ? null : Run.entry(0, group.step),
      n = counts.get(g) ?? 0;
    group.title = step ? short(step.op, 24) : `${short(group.path, 24)} · ${group.kind}`;
    group.under = step ? `${shapeText(step.shape)} · fused` : `${n} operation${n === 1 ? "" : "s"}`;
    group.told = step ? `${step.op}, opened into its parts` : `module ${group.path}, ${group.kind}`;
    group.closedSize = step
      ? [group.label[2] - 60, group.label[3]]
      : [Math.max(8 * group.title.length, 6.7 * group.under.length) + 22, 42];
  }
  // Each is made when it is first seen: what is closed costs nothing.
  const nodeElement = node => {
    const [tape, id] = node.of,
      e = Run.entry(tape, id);
    return (node.element ??= box(
      key(tape, id),
      short(Run.nameOf(tape, id), 24),
      shapeText(e.shape),
      kindOf(e),
      described(tape, id),
    ));
  };
  const groupElement = (group, g) =>
    (group.element ??= layers.groups.appendChild(
      Page.svg(
        "g",
        { class: `group ${group.step === undefined ? "module" : "parts"}`, "data-group": g },
        Page.svg("rect", { rx: 10 }),
        Page.svg(
          "g",
          { class: "label", role: "button", tabindex: -1, "aria-label": `fold ${group.told}`, "data-group": g },
          Page.svg("rect", { rx: 6, height: 20 }),
          Page.svg("text", { text: `− ${group.title}` }),
          Page.svg("title", { text: `Fold ${group.told}` }),
        ),
      ),
    ));
  const closedElement = (group, g) =>
    (group.closedElement ??=
      group.step === undefined
        ? box(`m${g}`, group.title, group.under, "step module-box", `module ${group.path}, folded`)
        : box(key(0, group.step), group.title, group.under, "step fused", `${described(0, group.step)}; fused, can be opened`));
  const edges = graph.edges.map(([from, to, points]) => ({ from, to, points, element: null }));
  const edgeElement = edge => (edge.element ??= layers.edges.appendChild(Page.svg("path", { class: "edge" })));

  // ----- folding

  // A rising map that keeps these intervals' lengths, and lets no gap between them be wider than `most`.
  const squeeze = (intervals, most) => {
    const sorted = [...intervals].sort((a, b) => a[0] - b[0]),
      from = [],
      to = [];
    let shift = 0,
      end = null;
    for (const [a, b] of sorted) {
      if (end === null) shift = a;
      else if (a > end) {
        from.push(end);
        to.push(end - shift);
        shift += Math.max(0, a - end - most);
      }
      if (end === null || a > end) {
        from.push(a);
        to.push(a - shift);
      }
      end = end === null ? b : Math.max(end, b);
    }
    if (end !== null) {
      from.push(end);
      to.push(end - shift);
    }
    return x => {
      if (!from.length) return x;
      if (x <= from[0]) return to[0] + x - from[0];
      let low = 0,
        high = from.length - 1;
      if (x >= from[high]) return to[high] + x - from[high];
      while (high - low > 1) {
        const m = (low + high) >> 1;
        if (from[m] <= x) low = m;
        else high = m;
      }
      return to[low] + ((x - from[low]) * (to[high] - to[low])) / (from[high] - from[low] || 1);
    };
  };
  // The part of a path (x, y, x, y, ..., downwards) from y0 to y1.
  const between = (points, y0, y1) => {
    const found = [];
    for (let i = 0; i < points.length; i += 2) {
      const x = points[i],
        y = points[i + 1];
      if (i) {
        const px = points[i - 2],
          py = points[i - 1];
        for (const cut of [y0, y1])
          if (py < cut && cut < y) found.push(px === x ? x : px + ((x - px) * (cut - py)) / (y - py), cut);
      }
      if (y >= y0 && y <= y1) found.push(x, y);
    }
    return found;
  };

  const places = { nodes: [], groups: [] };
  let size = [0, 0];
  const pathText = points => {
    let d = `M${points[0]} ${points[1]}`;
    for (let i = 2; i < points.length; i += 2) {
      const [px, py, x, y] = [points[i - 2], points[i - 1], points[i], points[i + 1]],
        m = (py + y) / 2;
      d += Math.abs(px - x) < 0.05 ? `L${x} ${y}` : `C${px} ${m} ${x} ${m} ${x} ${y}`;
    }
    return d;
  };

  function arrange() {
    const shown = nodes.map(n => closedAround(n.in) === null);
    const open = groups.map((g, i) => closedAround(i) === null),
      shut = groups.map((_, i) => closedAround(i) === i);
    const boxes = nodes.map(n => n.box);
    const doors = groups.map(() => []); // where edges come in and go out: what is closed stands in the middle of them
    const shutBox = g => {
      const [x, y, w, h] = groups[g].box,
        [cw, ch] = groups[g].closedSize;
      const middle = doors[g].length ? doors[g].reduce((s, v) => s + v, 0) / doors[g].length : x + w / 2;
      return [Math.max(x, Math.min(x + w - cw, middle - cw / 2)), y + Math.min(FUSED_TOP, Math.max(0, h - ch)), cw, ch];
    };
    const seen = new Set();
    for (const edge of edges) {
      const [a, b] = [edge.from, edge.to].map(n => closedAround(nodes[n].in)),
        ways = `${a === null ? "n" + edge.from : "g" + a}>${b === null ? "n" + edge.to : "g" + b}`;
      edge.visible = !(a !== null && a === b) && !((a !== null || b !== null) && seen.has(ways));
      if (!edge.visible) continue;
      seen.add(ways);
      const first = a === null ? -Infinity : groups[a].box[1] + groups[a].box[3],
        last = b === null ? Infinity : groups[b].box[1];
      edge.now = between(edge.points, first, last);
      edge.ends = [a, b];
      if (a !== null) doors[a].push(edge.now[0]);
      if (b !== null) doors[b].push(edge.now.at(-2));
    }
    const columns = [],
      rows = [];
    const solid = ([x, y, w, h]) => {
      columns.push([x, x + w]);
      rows.push([y, y + h]);
    };
    nodes.forEach((_, i) => shown[i] && solid(boxes[i]));
    groups.forEach((g, i) => {
      if (shut[i]) solid(shutBox(i));
      if (!open[i]) return;
      const [x, y, w, h] = g.box;
      solid([x + 6, y + 4, labelWidth(g), 20]);
      columns.push([x, x + 8], [x + w - 8, x + w]);
      rows.push([y, y + 8], [y + h - 8, y + h]);
    });
    for (const edge of edges.filter(e => e.visible)) {
      const [a, b] = edge.ends,
        box = g => shutBox(g),
        way = edge.now;
      for (let i = 2; i < way.length; i += 2) {
        if (Math.abs(way[i] - way[i - 2]) > 1) rows.push([way[i - 1], way[i + 1]]); // bends keep their height
      }
      if (a !== null) {
        const [x, y, w, h] = box(a);
        edge.now = [x + w / 2, y + h, ...edge.now];
      }
      if (b !== null) {
        const [x, y, w] = box(b);
        edge.now = [...edge.now, x + w / 2, y];
      }
      for (let i = 0; i < edge.now.length; i += 2) columns.push([edge.now[i] - 2, edge.now[i] + 2]);
    }
    const X = squeeze(columns, COLUMN_GAP),
      Y = squeeze(rows, ROW_GAP),
      margin = 14;
    const put = ([x, y, w, h]) => [X(x) + margin, Y(y) + margin, w, h];
    const stretched = ([x, y, w, h]) => [X(x) + margin, Y(y) + margin, X(x + w) - X(x), Y(y + h) - Y(y)];
    let right = 0,
      bottom = 0;
    const grow = ([x, y, w, h]) => {
      right = Math.max(right, x + w);
      bottom = Math.max(bottom, y + h);
    };
    nodes.forEach((n, i) => {
      n.element?.classList.toggle("away", !shown[i]);
      places.nodes[i] = shown[i] ? put(boxes[i]) : null;
      if (shown[i]) {
        drawBox(nodeElement(n), places.nodes[i]);
        grow(places.nodes[i]);
      }
    });
    groups.forEach((g, i) => {
      g.element?.classList.toggle("away", !open[i]);
      g.closedElement?.classList.toggle("away", !shut[i]);
      places.groups[i] = shut[i] ? put(shutBox(i)) : open[i] ? stretched(g.box) : null;
      if (shut[i]) {
        drawBox(closedElement(g, i), places.groups[i]);
        grow(places.groups[i]);
      }
      if (open[i]) {
        drawGroup(groupElement(g, i), g, places.groups[i]);
        grow(places.groups[i]);
      }
    });
    for (const edge of edges) {
      edge.element?.classList.toggle("away", !edge.visible);
      if (!edge.visible) continue;
      const points = edge.now.map((v, i) => Math.round((i % 2 ? Y(v) : X(v)) * 10 + margin * 10) / 10);
      edge.path = pathText(points);
      edgeElement(edge).setAttribute("d", edge.path);
    }
    for (let i = 0; i < edges.length; i++)
      if (edges[i].visible)
        for (let k = 0; k < edges[i].now.length; k += 2) right = Math.max(right, X(edges[i].now[k]) + margin);
    size = [right + margin, bottom + margin];
    svg.setAttribute("viewBox", `0 0 ${size[0]} ${size[1]}`);
    fit();
  }
  const labelWidth = g => 6.7 * (g.title.length + 2) + 14;
  const drawBox = (element, [x, y, w, h]) => {
    element.setAttribute("transform", `translate(${x} ${y})`);
    if (element.dataset.drawn === `${w} ${h}`) return;
    element.dataset.drawn = `${w} ${h}`;
    const [rect, op, shape, done, reached, cross] = element.children;
    rect.setAttribute("width", w);
    rect.setAttribute("height", h);
    op.setAttribute("x", w / 2);
    op.setAttribute("y", 18);
    shape.setAttribute("x", w / 2);
    shape.setAttribute("y", 33);
    for (const [mark, dy] of [
      [done, 12],
      [reached, h - 12],
    ]) {
      mark.setAttribute("cx", w);
      mark.setAttribute("cy", dy);
    }
    cross.setAttribute("x", 0);
    cross.setAttribute("y", h / 2 + 5);
  };
  const drawGroup = (element, g, [x, y, w, h]) => {
    const [rect, label] = element.children,
      [plate, text] = label.children;
    for (const [name, v] of Object.entries({ x, y, width: w, height: h })) rect.setAttribute(name, v);
    label.setAttribute("transform", `translate(${x + 6} ${y + 4})`);
    plate.setAttribute("width", labelWidth(g));
    text.setAttribute("x", 7);
    text.setAttribute("y", 14);
  };

  // ----- zoom

  const stage = Page.find("stage");
  let zoom = "width",
    room = [1, 1]; // or "all": the whole drawing at once
  const measure = () => {
    room = [stage.clientWidth - 4, stage.clientHeight - 4];
  };
  function fit() {
    const scale =
      zoom === "all" ? Math.min(1.25, room[0] / size[0], room[1] / size[1]) : Math.min(1.25, Math.max(0.75, room[0] / size[0]));
    svg.setAttribute("width", Math.max(1, size[0] * scale));
    svg.setAttribute("height", Math.max(1, size[1] * scale));
    svg.dataset.scale = scale;
  }
  const setZoom = name => {
    zoom = name;
    fit();
  };

  const elementOf = stand =>
    stand === null
      ? null
      : stand[0] === "node"
        ? nodes[stand[1]].element
        : closed(stand[1])
          ? groups[stand[1]].closedElement
          : groups[stand[1]].element;
  const placeOf = stand => (stand === null ? null : stand[0] === "node" ? places.nodes[stand[1]] : places.groups[stand[1]]);
  const reveal = stand => {
    const place = placeOf(stand);
    if (!place) return;
    const scale = Number(svg.dataset.scale),
      [x, y, w, h] = place.map(v => v * scale),
      pad = 60;
    const over = stand[0] === "group" && h > stage.clientHeight - 2 * pad;
    const top = over ? y - 20 : y + h / 2 - stage.clientHeight / 2,
      left = x + w / 2 - stage.clientWidth / 2;
    const inside =
      y > stage.scrollTop + pad &&
      y + h < stage.scrollTop + stage.clientHeight - pad &&
      x > stage.scrollLeft &&
      x + w < stage.scrollLeft + stage.clientWidth;
    if (!inside) stage.scrollTo({ top, left, behavior: Page.calm() ? "auto" : "smooth" });
  };

  // Drawn edges between two stand-ins, from producer to consumer.
  const edgesBetween = (from, to) =>
    edges.filter(e => e.visible && same(visibleEnd(e.from), from) && same(visibleEnd(e.to), to));
  const visibleEnd = n => {
    const g = closedAround(nodes[n].in);
    return g === null ? ["node", n] : ["group", g];
  };
  const inGroup = (n, g) => {
    for (let i = nodes[n].in; i !== null && i !== undefined; i = groups[i].in) if (i === g) return true;
    return false;
  };
  const same = (a, b) =>
    a && b && ((a[0] === b[0] && a[1] === b[1]) || (a[0] === "node" && b[0] === "group" && inGroup(a[1], b[1])));

  return {
    arrange,
    edges,
    measure,
    edgesBetween,
    elementOf,
    fit,
    fused,
    groups,
    key,
    layers,
    modules,
    nodes,
    reveal,
    setZoom,
    shapeText,
    short,
    standIn,
    state,
    svg,
    closed,
    describe: described,
    zoom: () => zoom,
  };
})();
