// State, keys, mouse, address and self-test of the explorer.
const Explorer = (() => {
  const { find, html, number } = Page,
    { run, entry, isStep } = Run;
  let frames = Steps.frames(),
    at = 0,
    chosenCell = null,
    cone = null;

  // ----- where we are

  const show = (key, options = {}) => {
    const found = frames.findIndex(f => f.key === key);
    if (found >= 0) move(found, options);
  };
  function move(to, { focus = false, quiet = false } = {}) {
    const before = at;
    at = Math.min(frames.length - 1, Math.max(0, to));
    render();
    const stand = standOf(frames[at]);
    if (stand) Graph.reveal(stand);
    if (at === before + 1 || at === before - 1) fly(frames[at]);
    if (focus) find("explain").focus();
    if (!quiet) Page.say(`${Steps.place(frames, at)}: ${frames[at].kind === "start" ? "" : Steps.title(frames[at])}`);
    remember();
  }
  const standOf = f => (f.kind === "start" || f.id === null || f.id === undefined ? null : Graph.standIn(f.tape, f.id));
  const go = (tape, id) => {
    // to the step, forward or backward as we are now; for a leaf, to where it is used or changed
    const kind = frames[at].kind === "backward" ? "backward" : "forward",
      step = isStep(entry(tape, id));
    const target =
      frames.find(f => f.tape === tape && f.id === id && f.kind === kind) ??
      frames.find(f => f.tape === tape && f.id === id) ??
      (step ? null : frames.find(f => f.tape === tape && f.kind === "forward" && entry(tape, f.id).inputs.includes(id)));
    if (target) show(target.key);
    else if (tape > 0 && !step) {
      const outer = Object.keys(run.expansions).find(s => run.expansions[s].tape === tape);
      const i = Object.entries(run.expansions[outer].inputs).find(([, leaf]) => leaf === id)?.[0],
        ref = i === undefined ? null : entry(0, Number(outer)).inputs[i];
      if (typeof ref === "number") go(0, ref);
    }
    if (!step) choose(Panel.cellName("v", tape, id), 0);
  };

  // ----- drawing the state

  const context = {
    go,
    show: key => show(key),
    check: SelfTest.found,
    chosen: name => (chosenCell?.name === name ? chosenCell : null),
    expand,
    python: (tape, id) => {
      find("code-text").value = AsPython.of(tape, id);
      find("code").showModal();
    },
  };
  // The classes that say where we are, by element: only what differs from the step before is touched.
  let marks = new Map(),
    before = new Map();
  const mark = (element, name) => {
    if (!element) return;
    if (!marks.has(element)) marks.set(element, new Set());
    marks.get(element).add(name);
  };
  const settle = () => {
    for (const [element, names] of before)
      for (const name of names) if (!marks.get(element)?.has(name)) element.classList.remove(name);
    for (const [element, names] of marks)
      for (const name of names) if (!before.get(element)?.has(name)) element.classList.add(name);
  };

  function render() {
    const f = frames[at],
      explain = find("explain");
    explain.replaceChildren(
      html(
        "div",
        { class: "heading" },
        html("p", { class: `phase ${f.kind}`, text: Steps.place(frames, at) }),
        Steps.tools(f, context),
      ),
      html("h2", { id: "step-title", text: f.kind === "start" ? "What was recorded" : Steps.title(f) }),
      ...Steps.explanation(f, context),
      cellPanel(),
    );
    explain.scrollTop = 0;
    colour();
    find("scrub").max = frames.length - 1;
    find("scrub").value = at;
    find("scrub").setAttribute(
      "aria-valuetext",
      `${Steps.place(frames, at)}: ${f.kind === "start" ? "overview" : Steps.title(f)}`,
    );
    find("where").textContent = Steps.place(frames, at);
    find("back").disabled = at === 0;
    find("next").disabled = at === frames.length - 1;
  }
  function colour() {
    before = marks;
    marks = new Map();
    const done = new Set(),
      reached = new Set(),
      f = frames[at];
    frames.slice(0, at + 1).forEach(g => {
      if (g.kind === "forward") {
        done.add(Graph.key(g.tape, g.id));
        entry(g.tape, g.id).inputs.forEach(ref => {
          if (typeof ref === "number" && !isStep(entry(g.tape, ref))) done.add(Graph.key(g.tape, ref));
        });
      }
      if (g.kind === "backward") {
        reached.add(Graph.key(g.tape, g.id));
        const e = entry(g.tape, g.id);
        Object.keys(e.visits[g.visit].contributions).forEach(i => reached.add(Graph.key(g.tape, e.inputs[i])));
      }
    });
    const each = (set, name) => set.forEach(key => mark(Graph.elementOf(Graph.standIn(...key.split(":").map(Number))), name));
    each(done, "has-value");
    each(reached, "has-gradient");
    for (const { tape, id } of SelfTest.failed()) mark(Graph.elementOf(Graph.standIn(tape, id)), "failed");
    if (f.kind !== "start" && f.id !== null) {
      const here = Graph.standIn(f.tape, f.id);
      mark(Graph.elementOf(here), "current");
      mark(Graph.elementOf(here), f.kind);
      if (isStep(entry(f.tape, f.id)))
        neighbours(f, here).forEach(edge => {
          mark(edge.element, "active");
          mark(edge.element, f.kind);
        });
    }
    Graph.svg.querySelectorAll('[tabindex="0"]').forEach(e => e.setAttribute("tabindex", "-1"));
    const focusable =
      f.kind === "start" || f.id === null
        ? Graph.svg.querySelector(".node:not(.away)")
        : Graph.elementOf(Graph.standIn(f.tape, f.id));
    (focusable?.matches(".node") ? focusable : focusable?.querySelector(".label"))?.setAttribute("tabindex", "0");
    Graph.svg.classList.toggle("with-cone", cone !== null);
    find("cone-key").hidden = cone === null;
    if (cone) {
      const behind = [...cone.found].filter(([, d]) => d === null || d.data.some(v => v !== 0)).map(([id]) => id);
      for (const id of [cone.id, ...behind]) {
        mark(Graph.elementOf(Graph.standIn(cone.tape, id)), "in-cone");
        const parts = cone.tape === 0 && Graph.state.open.has(id) ? run.expansions[id].tape : null; // with all that it opens into
        if (parts !== null) for (const n of Graph.nodes) if (n.of[0] === parts) mark(n.element, "in-cone");
      }
    }
    settle();
  }
  // The drawn edges that carry something in a step: inputs in, or contributions out.
  const neighbours = (f, here) => {
    const e = entry(f.tape, f.id),
      refs = f.kind === "forward" ? e.inputs : Object.keys(e.visits[f.visit].contributions).map(i => e.inputs[i]);
    return [
      ...new Set(
        refs.filter(ref => typeof ref === "number").flatMap(ref => Graph.edgesBetween(Graph.standIn(f.tape, ref), here)),
      ),
    ];
  };
  function fly(f) {
    // what moves along the edges, for a moment
    Graph.layers.flow.replaceChildren();
    if (Page.calm() || f.kind === "start" || f.kind === "update") return;
    for (const edge of neighbours(f, Graph.standIn(f.tape, f.id)).slice(0, 12)) {
      const dot = Page.svg("circle", { r: 4, class: `dot ${f.kind}`, style: `offset-path: path("${edge.path}")` });
      dot.addEventListener("animationend", () => dot.remove());
      Graph.layers.flow.append(dot);
    }
  }

  // ----- a cell: what it depends on, and what the loss makes of it

  function choose(name, flat) {
    const [kind, tape, id, a, b] = name.split(":"),
      e = entry(Number(tape), Number(id));
    chosenCell = {
      name,
      flat: Number(flat),
      kind,
      tape: Number(tape),
      id: Number(id),
      walk: kind === "g" ? Number(a) : undefined,
      visit: Number(a),
      i: Number(b),
    };
    const value = Run.array(e.value),
      whole = kind !== "c" && value?.data && flat < value.data.length && value.floats;
    cone = whole
      ? { tape: chosenCell.tape, id: chosenCell.id, found: Run.derivatives(chosenCell.tape, chosenCell.id, chosenCell.flat) }
      : null;
    const scrolled = find("explain").scrollTop,
      focused = document.activeElement?.closest?.("[data-name]")?.dataset.name;
    render();
    find("explain").scrollTop = scrolled;
    if (focused)
      find("explain")
        .querySelector(`[data-name="${CSS.escape(focused)}"] [tabindex="0"]`)
        ?.focus({ preventScroll: true });
    Page.say(cellWords());
    remember();
  }
  const unchoose = () => {
    chosenCell = cone = null;
    render();
    remember();
  };
  const cellValue = c =>
    c.kind === "v"
      ? Run.array(entry(c.tape, c.id).value)?.data?.[c.flat]
      : c.kind === "g"
        ? Run.gradient(c.tape, c.id, c.walk)?.data?.[c.flat]
        : Run.array(entry(c.tape, c.id).visits[c.visit].contributions[c.i])?.data?.[c.flat];
  const cellWords = () => {
    const g = Run.gradient(chosenCell.tape, chosenCell.id)?.data?.[chosenCell.flat];
    return `${number(cellValue(chosenCell))}${chosenCell.kind === "v" && g !== undefined ? `, gradient ${number(g)}` : ""}`;
  };
  function cellPanel() {
    const panel = html("section", { class: "cell", id: "cell", "aria-label": "The chosen number" });
    if (!chosenCell) {
      panel.append(
        html("p", {
          class: "small muted",
          text: "Click a number above: what does it depend on, and what does the loss make of it?",
        }),
      );
      return panel;
    }
    const c = chosenCell,
      e = entry(c.tape, c.id),
      name = Run.nameOf(c.tape, c.id);
    const shape = c.kind === "c" ? Run.array(e.visits[c.visit].contributions[c.i]).shape : e.shape,
      where = shape.length ? Panel.indexText(shape, c.flat) : "";
    panel.append(
      html(
        "h3",
        {},
        c.kind === "c"
          ? `Contribution of ${Graph.short(name, 30)} to ${e.arguments[c.i]}${where}`
          : `${Graph.short(name, 30)}${where}`,
        html("button", { type: "button", class: "link", text: "clear", onclick: unchoose }),
      ),
    );
    const digits = v => (v === undefined ? "not in this page" : Number.isFinite(v) ? String(v).replace("-", "−") : number(v));
    const facts = html("dl", { class: "facts-of-cell" });
    const fact = (term, text) => facts.append(html("dt", { text: term }), html("dd", { text }));
    if (c.kind === "c") fact("contribution", digits(cellValue(c)));
    else {
      fact("value", digits(Run.array(e.value)?.data?.[c.flat]));
      const g = Run.gradient(c.tape, c.id, c.walk);
      fact("d loss / d this", g ? digits(g.data?.[c.flat]) : "no gradient came here");
    }
    panel.append(facts);
    if (cone) panel.append(...dependencies());
    return panel;
  }
  function dependencies() {
    const behind = [...cone.found].reverse().filter(([, d]) => d === null || d.data.some(v => v !== 0));
    if (!behind.length)
      return [
        html("p", {
          class: "small muted",
          text: isStep(entry(cone.tape, cone.id))
            ? "No number behind it moves it."
            : "It depends on nothing: the run began with it.",
        }),
      ];
    const list = html("div", { class: "arrays" }),
      most = 14;
    for (const [id, d] of behind.slice(0, most)) {
      const e = entry(cone.tape, id),
        count = d?.data.filter(v => v !== 0).length;
      list.append(
        d === null
          ? html("p", {
              class: "small muted",
              text: `${Graph.short(Run.nameOf(cone.tape, id), 30)}: only summarised, so not known`,
            })
          : Panel.card(
              "derivative",
              "",
              [
                context.chosen
                  ? html("button", {
                      type: "button",
                      class: "link",
                      text: Graph.short(Run.nameOf(cone.tape, id), 30),
                      onclick: () => go(cone.tape, id),
                    })
                  : "",
                html("span", { class: "muted", text: ` ${count} of ${d.data.length} move it` }),
              ],
              { ...d, dtype: e.dtype },
              null,
            ),
      );
    }
    if (behind.length > most)
      list.append(html("p", { class: "small muted", text: `… and ${behind.length - most} more, marked in the drawing` }));
    return [
      html("p", {
        class: "small",
        text: "It depends on the marked nodes. By how much it moves when each of their numbers moves by one (the derivative):",
      }),
      list,
    ];
  }

  // ----- open, fold, search, address

  function rearranged(keep) {
    frames = Steps.frames();
    const found = frames.findIndex(f => f.key === keep),
      outer = frames.findIndex(f => f.key === keep.replace(/~.*/, ""));
    at = found >= 0 ? found : Math.max(0, outer);
    Graph.arrange();
    phases();
    const all = Graph.modules.length > 0 && Graph.modules.every(g => Graph.state.folded.has(g));
    find("fold-all").setAttribute("aria-pressed", String(all));
    render();
    const stand = standOf(frames[at]);
    if (stand) Graph.reveal(stand);
    remember();
  }
  function expand(id) {
    const { open } = Graph.state,
      key = frames[at].key;
    if (open.has(id)) open.delete(id);
    else open.add(id);
    for (let g = Graph.groups[Graph.fused.get(id)]?.in; g !== null && g !== undefined; g = Graph.groups[g].in)
      Graph.state.folded.delete(g);
    rearranged(key);
    Page.say(open.has(id) ? "opened into primitive operations" : "closed into one node");
    find("expand")?.focus({ preventScroll: true });
  }
  function fold(g) {
    if (Graph.groups[g].step !== undefined) {
      expand(Graph.groups[g].step);
      return;
    }
    const { folded } = Graph.state;
    if (folded.has(g)) folded.delete(g);
    else folded.add(g);
    rearranged(frames[at].key);
    Page.say(`${folded.has(g) ? "folded" : "unfolded"} module ${Graph.groups[g].path}`);
  }
  const foldAll = () => {
    const all = Graph.modules.every(g => Graph.state.folded.has(g));
    Graph.state.folded = new Set(all ? [] : Graph.modules);
    rearranged(frames[at].key);
    Page.say(all ? "all modules unfolded" : "all modules folded");
  };
  const remember = () =>
    Page.hash.write({
      at: frames[at].key === "start" ? null : frames[at].key,
      open: [...Graph.state.open].join(",") || null,
      fold: [...Graph.state.folded].join(",") || null,
      cell: chosenCell ? `${chosenCell.name}@${chosenCell.flat}` : null,
    });
  function recall() {
    const state = Page.hash.read(),
      list = text => (text ?? "").split(",").filter(Boolean).map(Number);
    Graph.state.open = new Set(list(state.open).filter(id => run.expansions[id]));
    Graph.state.folded = new Set(list(state.fold).filter(g => Graph.modules.includes(g)));
    frames = Steps.frames();
    at = Math.max(
      0,
      frames.findIndex(f => f.key === state.at),
    );
    Graph.arrange();
    phases();
    chosenCell = cone = null;
    find("fold-all").setAttribute(
      "aria-pressed",
      String(Graph.modules.length > 0 && Graph.modules.every(g => Graph.state.folded.has(g))),
    );
    render();
    const [name, flat] = (state.cell ?? "").split("@");
    try {
      if (name && /^\d+$/.test(flat)) choose(name, Number(flat));
    } catch {
      chosenCell = cone = null;
      render();
    } // an address that somebody wrote
    const stand = standOf(frames[at]);
    if (stand) Graph.reveal(stand);
  }

  function phases() {
    const parts = ["start", "forward", "backward", "update"]
      .map(kind => [kind, frames.filter(f => f.kind === kind).length])
      .filter(([, n]) => n);
    find("phases").replaceChildren(...parts.map(([kind, n]) => html("i", { class: kind, style: `flex-grow: ${n}` })));
  }

  function unfoldAround(tape, id) {
    const stand = Graph.standIn(tape, id);
    if (stand?.[0] !== "group" || Graph.groups[stand[1]].step !== undefined) return;
    Graph.state.folded.delete(stand[1]);
    rearranged(frames[at].key);
    unfoldAround(tape, id);
  }

  // ----- wiring

  find("back").addEventListener("click", () => move(at - 1));
  find("next").addEventListener("click", () => move(at + 1));
  find("scrub").addEventListener("input", event => move(Number(event.target.value)));
  find("fold-all").addEventListener("click", foldAll);
  find("fold-all").hidden = !Graph.modules.length;
  find("zoom").addEventListener("click", () => {
    Graph.setZoom(Graph.zoom() === "all" ? "width" : "all");
    find("zoom").setAttribute("aria-pressed", String(Graph.zoom() === "all"));
    const stand = standOf(frames[at]);
    if (stand) Graph.reveal(stand);
  });
  Search.wire((tape, id) => {
    unfoldAround(tape, id);
    go(tape, id);
    find("explain").focus();
  });
  Graph.svg.addEventListener("click", event => activate(event.target));
  const activate = target => {
    const node = target.closest("[data-key]"),
      label = target.closest(".label");
    if (label) fold(Number(label.dataset.group));
    else if (node?.dataset.key.startsWith("m")) fold(Number(node.dataset.key.slice(1)));
    else if (node) go(...node.dataset.key.split(":").map(Number));
  };
  Graph.svg.addEventListener("dblclick", event => {
    const node = event.target.closest(".fused");
    if (node && run.expansions[node.dataset.key.split(":")[1]]) expand(Number(node.dataset.key.split(":")[1]));
  });
  find("explain").addEventListener("click", event => {
    const cell = event.target.closest("td[data-flat]");
    if (cell) choose(cell.closest("table").dataset.name, Number(cell.dataset.flat));
  });
  const inGrid = (event, cell) => {
    const row = [...cell.parentElement.querySelectorAll("td[data-flat]")],
      rows = [...cell.closest("tbody").children],
      r = rows.indexOf(cell.parentElement),
      c = row.indexOf(cell);
    const to = {
      ArrowRight: row[c + 1],
      ArrowLeft: row[c - 1],
      ArrowDown: rows[r + 1]?.querySelectorAll("td[data-flat]")[c],
      ArrowUp: rows[r - 1]?.querySelectorAll("td[data-flat]")[c],
    };
    if (event.key === "Enter" || event.key === " ") choose(cell.closest("table").dataset.name, Number(cell.dataset.flat));
    else if (event.key in to) {
      if (to[event.key]) {
        cell.tabIndex = -1;
        to[event.key].tabIndex = 0;
        to[event.key].focus();
      }
    } else return false;
    return true;
  };
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const cell = event.target.closest?.("td[data-flat]");
    if (cell && inGrid(event, cell)) {
      event.preventDefault();
      return;
    }
    if (Page.typing(event) || event.target.id === "code-text") return;
    const range = event.target.id === "scrub",
      node = event.target.closest?.("#drawing [role=button]");
    const keys = {
      ArrowRight: () => move(at + 1),
      ArrowLeft: () => move(at - 1),
      Home: () => move(0),
      End: () => move(frames.length - 1),
      "/": () => find("search").focus(),
      f: foldAll,
      z: () => find("zoom").click(),
      e: () => {
        const id = frames[at].id;
        if (frames[at].tape === 0 && run.expansions[id]) expand(id);
      },
      Escape: () => {
        if (chosenCell) unchoose();
      },
    };
    if (node && (event.key === "Enter" || event.key === " ")) activate(node);
    else if (keys[event.key] && !(range && event.key.length > 1)) keys[event.key]();
    else return;
    event.preventDefault();
  });
  find("code-copy").addEventListener("click", async () => {
    find("code-text").select();
    try {
      await navigator.clipboard.writeText(find("code-text").value);
    } catch {
      document.execCommand("copy");
    }
    find("code-copy").textContent = "Copied";
    setTimeout(() => {
      find("code-copy").textContent = "Copy";
    }, 1500);
  });
  addEventListener("hashchange", recall);
  addEventListener("resize", () => {
    Graph.measure();
    Graph.fit();
  });

  Page.keys([
    ["← →", "one step back, one on"],
    ["Home End", "to the overview, to the last change"],
    ["/", "search"],
    ["e", "open a fused BatchNorm into primitives, or close it"],
    ["f", "fold or unfold all modules"],
    ["z", "the whole graph, or at reading size"],
    ["Tab, arrows, Enter", "into a table, between its numbers, choose one"],
    ["Esc", "let go of the chosen number"],
    ["?", "this list"],
  ]);
  const recorded =
    [Panel.plural(Steps.counts.forward, "operation"), Panel.plural(Steps.counts.backward, "gradient rule")].join(", ") +
    (Steps.counts.update ? ", and what the step changed" : "");
  find("lead").textContent = `A real run, recorded: ${recorded}. The page computes it again.`;
  Graph.measure();
  requestAnimationFrame(() =>
    setTimeout(() => {
      recall();
      SelfTest.run(render);
    }),
  ); // once the page's frame is on the screen
  return { move, show, frames: () => frames, at: () => at };
})();
