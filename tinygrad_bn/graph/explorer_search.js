// The search: operations by name, module or line of source, leaves by name or kind, all by shape.
const Search = (() => {
  const { find, html } = Page,
    { entry } = Run;
  const searched = Graph.nodes
    .filter(n => n.of[0] === 0)
    .map(n => n.of)
    .concat([...Graph.fused.keys()].map(id => [0, id]))
    .sort((a, b) => a[1] - b[1]);
  function search() {
    const words = find("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean),
      list = find("results");
    const text = ([tape, id]) => {
      const e = entry(tape, id);
      const parts = [Run.nameOf(tape, id), e.module, e.source, e.kind, Graph.shapeText(e.shape)];
      return parts.filter(Boolean).join(" ").toLowerCase();
    };
    const found = words.length ? searched.filter(of => words.every(w => text(of).includes(w))) : [];
    list.hidden = !words.length;
    list.replaceChildren(
      ...found.slice(0, 30).map(([tape, id]) => {
        const e = entry(tape, id);
        return html(
          "li",
          {},
          html(
            "button",
            {
              type: "button",
              onclick: () => {
                clear();
                chosen(tape, id);
              },
            },
            html("b", { text: Graph.short(Run.nameOf(tape, id), 40) }),
            html("span", {
              class: "muted",
              text: ` ${[Graph.shapeText(e.shape), e.module && `in ${e.module}`, e.source, e.kind].filter(Boolean).join(" · ")}`,
            }),
          ),
        );
      }),
      ...(words.length && !found.length ? [html("li", { class: "muted none", text: "nothing found" })] : []),
      ...(found.length > 30 ? [html("li", { class: "muted none", text: `… and ${found.length - 30} more` })] : []),
    );
  }

  const clear = () => {
    find("search").value = "";
    search();
  };
  let chosen = () => {};
  function wire(act) {
    chosen = act;
    find("search").addEventListener("input", search);
    find("search").addEventListener("keydown", event => {
      if (event.key === "Escape") {
        clear();
        find("explain").focus();
      }
      if (event.key === "Enter" || event.key === "ArrowDown")
        find("results").querySelector("button")?.[event.key === "Enter" ? "click" : "focus"]();
    });
    find("results").addEventListener("keydown", event => {
      const buttons = [...find("results").querySelectorAll("button")],
        i = buttons.indexOf(document.activeElement);
      if (event.key === "ArrowDown") buttons[Math.min(i + 1, buttons.length - 1)]?.focus();
      else if (event.key === "ArrowUp") (i > 0 ? buttons[i - 1] : find("search")).focus();
      else if (event.key === "Escape") {
        clear();
        find("search").focus();
      } else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }
  return { wire };
})();
