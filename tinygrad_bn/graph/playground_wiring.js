// Controls, keys, the address, and the self-test.
(() => {
  const { find, fixed, hash, number } = Page;
  const panels = [BatchPanel, BackwardPanel, BatchmatesPanel, EvaluationPanel, PrecisionPanel, RunsPanel];
  const shows = {
    m: s => String(s.m),
    gamma: s => fixed(s.gamma, 1),
    beta: s => fixed(s.beta, 1),
    eps: s => number(10 ** s.eps),
    momentum: s => fixed(s.momentum, 2),
    rate: s => number(RunsPanel.rates[s.rate]),
  };
  const bound = [...document.querySelectorAll("[data-bind]")];
  const shown = [...document.querySelectorAll("[data-show]")];

  const choose = (field, written) => {
    const value = typeof State.DEFAULT[field] === "number" ? Number(written) : written;
    if (field === "m") Store.resize(value);
    else Store.change({ [field]: value });
  };
  for (const control of bound) {
    const event = control.type === "range" ? "input" : "change";
    control.addEventListener(event, () => {
      if (control.type !== "radio" || control.checked) choose(control.dataset.bind, control.value);
    });
  }
  const actions = {
    ...BatchPanel.actions,
    ...EvaluationPanel.actions,
    reset: () => {
      Store.start({});
      Page.say("As at the start.");
    },
  };
  for (const button of document.querySelectorAll("[data-do]"))
    button.addEventListener("click", actions[button.dataset.do]);

  const choices = ["chosen", "other"].map(find);
  const controls = () => {
    const { state } = Store;
    const examples = Array.from({ length: state.m }, (_, i) => i);
    for (const select of choices)
      Draw.join(select, "option", examples, i => ({ value: i, text: State.name(i) }), Page.html);
    for (const control of bound) {
      const value = String(state[control.dataset.bind]);
      if (control.type === "radio") control.checked = control.value === value;
      else if (control.value !== value) control.value = value;
      if (control.type === "range") control.setAttribute("aria-valuetext", shows[control.dataset.bind](state));
    }
    for (const output of shown) output.textContent = shows[output.dataset.show](state);
    for (const name of ["feed", "feed10"])
      document.querySelector(`[data-do="${name}"]`).disabled = state.fed >= State.FED;
  };

  let waiting = 0;
  const remember = () => {
    // browsers refuse an address that changes with every pixel of a drag
    clearTimeout(waiting);
    waiting = setTimeout(() => hash.write(State.written(Store.state)), 200);
  };
  addEventListener("hashchange", () => Store.start(hash.read())); // which hash.write does not cause
  for (const link of document.querySelectorAll(".contents a")) {
    link.addEventListener("click", event => {
      // the address is the state's
      event.preventDefault();
      const panel = find(link.getAttribute("href").slice(1));
      panel.scrollIntoView({ behavior: Page.calm() ? "auto" : "smooth" });
      panel.querySelector("h2").setAttribute("tabindex", "-1");
      panel.querySelector("h2").focus({ preventScroll: true });
    });
  }

  Page.keys([
    ["Tab", "from control to control"],
    ["← → ↑ ↓", "move the point that has the focus; with Shift, ten times as far"],
    ["Home End", "to its ends"],
    ["n p", "the next example, the one before"],
    ["1 … 6", "to a panel"],
    ["r", "start again"],
    ["?", "this list"],
  ]);
  addEventListener("keydown", event => {
    if (Page.typing(event) || event.ctrlKey || event.metaKey || event.altKey || find("keys").open) return;
    const { state } = Store;
    const turn = by => {
      const i = (state.chosen + by + state.m) % state.m;
      const kind = event.target.closest?.(".handle")?.dataset.key?.[0];
      Store.change({ chosen: i });
      if (kind === "x" || kind === "g") document.querySelector(`[data-key="${kind}${i}"]`)?.focus();
      Page.say(
        `Example ${State.name(i)}: x ${fixed(Store.state.x[i])}, x̂ ${fixed(Store.now.forward.xHat[i])}, y ` +
          `${fixed(Store.now.forward.y[i])}`,
      );
    };
    const { key } = event;
    if (key === "n") turn(1);
    else if (key === "p") turn(-1);
    else if (key === "r") actions.reset();
    else if (key >= "1" && key <= "6") document.querySelectorAll(".contents a")[Number(key) - 1].click();
  });

  // A panel is drawn anew when what it shows has changed.
  const drawn = new Map();
  const redraw = () => {
    for (const panel of panels) {
      const shows = JSON.stringify([
        width,
        ...panel.uses.map(field => Store.state[field]),
        panel.points ? Store.hot : 0,
      ]);
      if (drawn.get(panel) !== shows) {
        drawn.set(panel, shows);
        panel.draw();
      }
    }
  };
  let width = innerWidth;
  Draw.measure();
  Store.listen(redraw);
  Store.listen(controls);
  Store.listen(remember);
  Store.start(hash.read());
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    // A picture as wide as it was would hold its frame open.
    for (const svg of document.querySelectorAll(".picture svg")) svg.setAttribute("width", 0);
    Draw.measure();
    redraw();
  });

  const { state, text, details } = Check.run(Page.data("golden"));
  Page.badge(state, text, details);
})();
