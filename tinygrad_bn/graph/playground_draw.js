// Drawing in SVG: elements that are kept and only changed, scales, axes, handles to drag, and formulas with numbers in them.
const Draw = (() => {
  const set = (element, attributes) => {
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") {
        if (element.textContent !== value) element.textContent = value;
      } else if (value === null || value === undefined || value === false) element.removeAttribute(name);
      else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
    }
    return element;
  };
  // One child for each item. Children are kept from draw to draw, so what has the focus keeps it.
  const join = (parent, tag, items, attributes, create = Page.svg) => {
    while (parent.children.length > items.length) parent.lastElementChild.remove();
    while (parent.children.length < items.length) parent.append(create(tag));
    items.forEach((item, i) => set(parent.children[i], attributes(item, i)));
    return [...parent.children];
  };
  const layers = (svg, ...names) =>
    Object.fromEntries(
      names.map(name => {
        const layer = Page.svg("g", { class: name });
        svg.append(layer);
        return [name, layer];
      }),
    );
  // The width that the page gives to the picture, in pixels: one unit of the drawing is one pixel. It is measured once, since
  // to ask for it between two drawings makes the browser lay out the page.
  const widths = new Map();
  const measure = () => {
    for (const svg of document.querySelectorAll(".picture svg")) {
      const frame = getComputedStyle(svg.parentElement);
      widths.set(
        svg,
        Math.max(
          240,
          Math.floor(svg.parentElement.clientWidth - parseFloat(frame.paddingLeft) - parseFloat(frame.paddingRight)),
        ),
      );
    }
  };
  const fit = (svg, height) => {
    const width = widths.get(svg);
    set(svg, { viewBox: `0 0 ${width} ${height}`, width, height });
    return width;
  };
  const scale = (low, high, from, to) => {
    const at = v => from + ((v - low) / (high - low)) * (to - from);
    at.invert = p => low + ((p - from) / (to - from)) * (high - low);
    at.inside = v => at(Math.min(Math.max(v, low), high));
    return at;
  };
  const text = (x, y, words, options = {}) => ({ x, y, text: words, "text-anchor": "middle", ...options });
  const labels = (layer, items) => join(layer, "text", items, item => item);
  const lines = (layer, items) =>
    join(layer, "line", items, ([x1, y1, x2, y2, kind, style]) => ({
      x1,
      y1,
      x2,
      y2,
      class: kind ?? null,
      style: style ?? null,
    }));

  const move = (x, y) => `translate(${x.toFixed(2)},${y.toFixed(2)})`;
  const shapes = {
    circle: r => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0z`,
    diamond: r => `M0,${-r * 1.2}L${r * 1.2},0L0,${r * 1.2}L${-r * 1.2},0z`,
    square: r => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
    cross: r => `M${-r},${-r}L${r},${r}M${-r},${r}L${r},${-r}`,
    grip: r => `M${-r * 0.6},${-r}h${r * 1.2}v${2 * r}h${-r * 1.2}z`,
  };

  // Things to drag: with the pointer, or focused and moved with the arrow keys. `draw(items)` at every change; an item has
  // key, x, y, shape, size, kind, label, value, low, high, step, words, along ("x" or "y"), from(position), change(value).
  const handles = (svg, layer) => {
    let items = [];
    let held = null;
    let keyed = null;
    const at = event => {
      const box = svg.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    const nearest = ({ x, y }, reach) => {
      let best = -1;
      let least = reach;
      items.forEach((item, i) => {
        const distance = Math.hypot(item.x - x, item.y - y) - (item.first ? 0.5 : 0);
        if (distance < least) {
          least = distance;
          best = i;
        }
      });
      return best;
    };
    const push = (item, value) => item.change(Math.min(Math.max(value, item.low), item.high));
    const tell = item => Page.say(`${item.label} ${item.words}${item.after ? ", " + item.after() : ""}`);
    svg.addEventListener("pointerdown", event => {
      const p = at(event);
      const i = nearest(p, 24);
      if (i < 0 || event.button > 0) return;
      const item = items[i];
      keyed = null;
      held = { key: item.key, off: item.along === "x" ? p.x - item.x : p.y - item.y };
      svg.setPointerCapture(event.pointerId);
      svg.classList.add("dragging");
      item.begin?.();
      layer.children[i].focus({ preventScroll: true });
      event.preventDefault();
    });
    svg.addEventListener("pointermove", event => {
      const p = at(event);
      if (!held) {
        Store.point(items[nearest(p, 24)]?.example ?? null);
        return;
      }
      const item = items.find(({ key }) => key === held.key);
      if (item) push(item, item.from((item.along === "x" ? p.x : p.y) - held.off));
    });
    const release = () => {
      const item = held && items.find(({ key }) => key === held.key);
      held = null;
      svg.classList.remove("dragging");
      if (item) tell(item);
    };
    svg.addEventListener("pointerup", release);
    svg.addEventListener("pointercancel", release);
    svg.addEventListener("pointerleave", () => {
      if (!held) Store.point(null);
    });
    layer.addEventListener("keydown", event => {
      const i = [...layer.children].indexOf(event.target.closest(".handle"));
      const item = items[i];
      const way = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
      const end = { Home: item?.low, End: item?.high }[event.key];
      if (!item || (way === undefined && end === undefined) || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      if (keyed !== item.key) item.begin?.(); // a row of key presses is one movement, as a drag is
      keyed = item.key;
      push(item, end ?? item.value + way * item.step * (event.shiftKey ? 10 : 1));
      tell(items.find(({ key }) => key === item.key) ?? item);
    });
    layer.addEventListener("focusout", () => {
      keyed = null;
    });
    layer.addEventListener("focusin", event =>
      items[[...layer.children].indexOf(event.target.closest(".handle"))]?.focused?.(),
    );
    return {
      draw: now => {
        items = now;
        const groups = join(layer, "g", items, item => ({
          class: `handle ${item.along} ${item.kind}`,
          transform: move(item.x, item.y),
          role: "slider",
          tabindex: item.skip ? -1 : 0,
          "data-key": item.key,
          "aria-label": item.label,
          "aria-orientation": item.along === "x" ? "horizontal" : "vertical",
          "aria-valuemin": item.low,
          "aria-valuemax": item.high,
          "aria-valuenow": item.value,
          "aria-valuetext": item.words,
        }));
        groups.forEach((group, i) => {
          if (!group.firstChild)
            group.append(Page.svg("circle", { class: "hit", r: 20 }), Page.svg("path", { class: "mark" }));
          set(group.lastChild, { d: shapes[items[i].shape](items[i].size) });
        });
      },
    };
  };

  // ----- formulas: text and numbers, spelled out for who listens

  const part = (name, ...inside) => Page.html("span", { class: name }, ...inside);
  const fraction = (top, bottom) => part("fraction", part("top", ...[top].flat()), part("bottom", ...[bottom].flat()));
  const root = (...inside) => part("root", "√", part("under", ...inside));
  const signed = (v, decimals = 2) => (v < 0 ? `(${Page.fixed(v, decimals)})` : Page.fixed(v, decimals));
  const value = (kind, words) => part(kind + "-ink", String(words));
  const formula = (target, spoken, ...lines) => {
    target.setAttribute("role", "math");
    target.setAttribute("aria-label", spoken);
    target.replaceChildren(...lines.map(line => Page.html("div", {}, ...line)));
  };

  // rows: lists of cells, a cell text or [text, class]; the first cell of a row is its head.
  const table = (body, rows, { marked = -1, pointed = null } = {}) => {
    const trs = join(body, "tr", rows, (_, i) => ({ class: i === marked ? "marked" : null }), Page.html);
    trs.forEach((tr, i) => {
      while (tr.children.length > rows[i].length) tr.lastElementChild.remove();
      while (tr.children.length < rows[i].length)
        tr.append(Page.html(tr.children.length ? "td" : "th", tr.children.length ? {} : { scope: "row" }));
      rows[i].forEach((cell, j) => {
        const [words, kind] = [cell].flat();
        set(tr.children[j], { text: words, class: kind ?? null });
      });
      tr.onpointerenter = pointed ? () => pointed(i) : null;
      tr.onpointerleave = pointed ? () => pointed(null) : null;
    });
  };
  const path = points => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");
  const thinned = (places, gap) => {
    // which labels there is room for, the first given first
    const taken = [];
    return places.map(p => p !== null && taken.every(q => Math.abs(p - q) >= gap) && (taken.push(p), true));
  };

  return {
    fit,
    formula,
    fraction,
    handles,
    join,
    labels,
    layers,
    lines,
    measure,
    move,
    part,
    path,
    root,
    scale,
    set,
    shapes,
    signed,
    table,
    text,
    thinned,
    value,
  };
})();
