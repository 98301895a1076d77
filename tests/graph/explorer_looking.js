// What the explorer's tests look at in the page.
globalThis.Looking = (() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const short = e => e.textContent.trim().slice(0, 40);

  // As browser.OVERLAPS, of what can be seen: what a scrolled frame hides does not count.
  const visible = e => {
    let { left, top, right, bottom } = e.getBoundingClientRect();
    for (let p = e.parentElement; p; p = p.parentElement) {
      const style = getComputedStyle(p), root = p === document.documentElement || p === document.body;
      if (style.overflowX === "visible" && style.overflowY === "visible") continue;
      const r = root ? { left: 0, top: 0, right: innerWidth, bottom: 1e9 } : p.getBoundingClientRect();
      left = Math.max(left, r.left);
      top = Math.max(top, r.top);
      right = Math.min(right, r.right);
      bottom = Math.min(bottom, r.bottom);
    }
    return { left, top, right, bottom };
  };
  const TEXTS = "svg text, p, h1, h2, h3, h4, th, td, dt, dd, li, figcaption > *, button, summary, label, output, .line > *";
  function overlaps() {
    const floats = e => e.closest(".scrubber");  // over what is scrolled
    const seen = all(TEXTS).filter(e => e.checkVisibility() && !e.matches(".unseen") && e.textContent.trim())
      .map(e => [e, visible(e)]).filter(([, r]) => r.right - r.left > 3 && r.bottom - r.top > 3);
    const found = [];
    seen.forEach(([a, r], i) => seen.slice(i + 1).forEach(([b, s]) => {
      if (a.contains(b) || b.contains(a) || floats(a) !== floats(b)) return;
      const across = Math.min(r.right, s.right) - Math.max(r.left, s.left);
      const down = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
      if (across > 2 && down > 2) found.push(`${short(a)} | ${short(b)}`);
    }));
    const outside = seen.filter(([, r]) => r.left < -1 || r.right > innerWidth + 1).map(([e]) => short(e));
    return { found, outside, scrolls: document.documentElement.scrollWidth > innerWidth };
  }

  // Nodes that lie over each other, and edges that cross a node which is not at one of their ends.
  function collisions() {
    const boxes = all("#drawing .node:not(.away)").map(e => [e.dataset.key, e.querySelector("rect").getBoundingClientRect()]), bad = new Set();
    boxes.forEach(([a, r], i) => boxes.slice(i + 1).forEach(([b, s]) => {
      const across = Math.min(r.right, s.right) - Math.max(r.left, s.left);
      if (across > 1 && Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top) > 1) bad.add(`${a} lies over ${b}`);
    }));
    for (const edge of Graph.edges.filter(e => e.visible)) {
      const matrix = edge.element.getScreenCTM(), length = edge.element.getTotalLength();
      const ends = [edge.from, edge.to].map(n => Graph.elementOf(Graph.standIn(...Graph.nodes[n].of))?.dataset.key);
      for (let t = 0; t <= length; t += 6) {
        const p = edge.element.getPointAtLength(t).matrixTransform(matrix);
        for (const [key, r] of boxes) {
          const inside = p.x > r.left + 2 && p.x < r.right - 2 && p.y > r.top + 2 && p.y < r.bottom - 2;
          if (inside && !ends.includes(key)) bad.add(`an edge crosses ${key}`);
        }
      }
    }
    return [...bad];
  }

  const exact = cells => cells.map(td => Number(td.title.split(" = ")[1]));
  // The numbers of every array of the explanation, by the array's name.
  const cards = () => Object.fromEntries(all("#explain .array").map(f => [f.querySelector("figcaption b").textContent, exact(all("tbody td", f))]));
  const table = name => exact(all(`table[data-name="${name}"] td[data-flat]`));
  const boxes = () => Object.fromEntries(all("#drawing .node:not(.away)").map(e => [e.dataset.key, e.getAttribute("transform")]));
  const marked = () => all("#drawing .in-cone title:first-of-type").map(e => e.textContent);
  const facts = () => all(".facts-of-cell dd").map(d => Number(d.textContent.replace("−", "-")));
  const results = ([key, name, flat]) => {
    Explorer.show(key);
    document.querySelector(`table[data-name="${name}"] td[data-flat="${flat}"]`).click();
    return all(".with-numbers").map(e => e.querySelector(".line.last .result").textContent);
  };
  const checks = kind => [...Run.checks()].filter(c => kind === null || c.kind === kind);
  const operations = (kind, state) => [...new Set(checks(kind).filter(c => c.state === state).map(c => Run.entry(c.tape, c.id).op))].filter(Boolean);
  const worst = () => Math.max(...checks(null).filter(c => c.difference > 0).map(c => c.difference));
  const intoParts = () => Graph.edges.filter(e => e.visible && Graph.nodes[e.from].of[0] === 0 && Graph.nodes[e.to].of[0] === 1).map(e => Graph.nodes[e.from].of[1]);
  const small = () => all("button:not(.link), summary, input[type=range]").filter(e => e.checkVisibility() && !e.closest(".formula"))
    .map(e => [e.id || e.textContent, e.getBoundingClientRect().height]).filter(([, h]) => h < 40);
  const pick = (selector, r) => {
    const found = all(selector).filter(e => e.checkVisibility());
    if (found.length) found[Math.floor(r * found.length)].dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
  };
  return { boxes, cards, collisions, facts, intoParts, marked, operations, overlaps, pick, results, small, table, worst };
})();
