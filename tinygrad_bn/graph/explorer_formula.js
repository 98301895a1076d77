// A formula as mathematics (MathML), and with the numbers of one cell in it.
const Typeset = (() => {
  const GREEK = { gamma: "γ", beta: "β", mu: "μ", alpha: "α", eps: "ε", pi: "π" };
  const spelled = name => GREEK[name] ?? (name.endsWith("_hat") ? name.slice(0, -4) + "\u0302" : name.replaceAll("_", " "));
  const make = (tag, ...children) => {
    const element = document.createElementNS("http://www.w3.org/1998/Math/MathML", tag);
    element.append(...children);
    return element;
  };
  const identifier = name => {
    if (name.endsWith("_hat")) return make("mover", make("mi", name.slice(0, -4)), make("mo", "^"));
    if (name.endsWith("_p")) return make("msub", make("mi", name.slice(0, -2)), make("mi", "p"));
    return make("mi", GREEK[name] ?? name.replaceAll("_", " "));
  };
  const STRENGTH = {
    if: 0,
    "==": 1,
    ">": 1,
    "<": 1,
    ">=": 1,
    "<=": 1,
    "+": 2,
    "-": 2,
    neg: 3,
    "*": 3,
    "/": 3,
    "@": 3,
    "**": 5,
  };
  const strength = tree => (Array.isArray(tree) ? (STRENGTH[tree[0]] ?? 6) : 6);
  const operator = text => make("mo", text);
  const listed = parts => parts.flatMap((part, i) => (i ? [operator(","), part] : [part]));
  const call = (name, ...parts) =>
    make("mrow", make("mi", name.replaceAll("_", " ")), operator("("), ...listed(parts), operator(")"));
  const held = (tree, least) =>
    strength(tree) >= least ? typeset(tree) : make("mrow", operator("("), typeset(tree), operator(")"));
  const BIG = { sum: "∑", mean: "mean", max: "max", min: "min" };

  const typeset = tree => {
    if (!Array.isArray(tree)) return make(typeof tree === "number" ? "mn" : "mi", tree === null ? "None" : String(tree));
    const [what, a, b, c] = tree;
    switch (what) {
      case "name":
        return identifier(a);
      case "neg":
        return make("mrow", operator("−"), held(a, 3));
      case "*":
        return make("mrow", held(a, 3), operator("·"), held(b, 3));
      case "/":
        return make("mfrac", typeset(a), typeset(b));
      case "**":
        return make("msup", held(a, 6), typeset(b));
      case "+":
      case "-":
        return make("mrow", held(a, 2), operator(what === "-" ? "−" : "+"), held(b, what === "-" ? 3 : 2));
      case "@":
        return make("mrow", held(a, 4), operator("@"), held(b, 4));
      case "tuple":
        return make("mrow", operator("("), ...listed(a.map(typeset)), operator(")"));
      case "get":
        return a === "T" || a === "mT"
          ? make("msup", held(b, 6), make("mi", "T"))
          : make("mrow", typeset(b), operator("."), make("mi", a));
      case "[]":
        return make("mrow", typeset(a), operator("["), typeset(b), operator("]"));
      case "if":
        return make("mrow", typeset(b), make("mtext", " if "), typeset(a), make("mtext", " else "), typeset(c));
      case "is None":
        return make("mrow", typeset(a), make("mtext", " is None"));
      case "call": {
        if (a === "sqrt") return make("msqrt", typeset(b[0]));
        if (a === "abs") return make("mrow", operator("|"), typeset(b[0]), operator("|"));
        if (a in BIG) {
          const head = b.length > 1 && b[1] !== null ? make("munder", make("mo", BIG[a]), typeset(b[1])) : make("mo", BIG[a]);
          return make("mrow", head, operator("("), typeset(b[0]), operator(")"));
        }
        return call(a, ...b.map(typeset));
      }
      default:
        return make("mrow", held(a, 2), operator({ "==": "=", ">=": "≥", "<=": "≤" }[what] ?? what), held(b, 2));
    }
  };
  const math = (...parts) => {
    const element = make("math", make("mrow", ...parts));
    element.setAttribute("display", "block");
    return element;
  };
  const equation = (name, tree) => math(...(name === null ? [] : [identifier(name), operator("=")]), typeset(tree));

  // As it applies here: the side of each `if` that is taken, and the axes of a reduction as they were given.
  const readable = (tree, names) => {
    const walk = part =>
      !Array.isArray(part)
        ? part
        : part[0] === "call" && part[1] in BIG && part[2].length > 1
          ? ["call", part[1], [walk(part[2][0]), axes(part[2][1])]]
          : part[0] === "call"
            ? ["call", part[1], part[2].map(walk)]
            : part.map((child, i) => (i ? walk(child) : child));
    const axes = part => {
      if (!Array.isArray(part) || part[0] !== "name" || part[1] !== "axis") return part;
      const value = names.axis;
      return Array.isArray(value) ? ["tuple", value] : (value ?? null);
    };
    return walk(Formula.taken(tree, names));
  };

  // ----- the numbers of one cell

  const POWERS = { 2: "²", 3: "³" };
  const MOST = 4; // terms of a sum that are written out
  const ELEMENTWISE = new Set([
    "abs",
    "clip",
    "erf",
    "exp",
    "expm1",
    "finite_or_0",
    "log",
    "log1p",
    "maximum",
    "minimum",
    "sign",
    "sqrt",
    "tanh",
    "where",
  ]);

  const fits = (shape, out) =>
    shape.length <= out.length && shape.every((n, i) => n === 1 || n === out[i + out.length - shape.length]);
  const at = (value, shape, flat) =>
    typeof value === "number" ? value : value.data[Formula.spreadPlaces(value.shape, shape)[flat]];
  const bracketed = v => (v < 0 ? `(${Page.number(v)})` : Page.number(v));
  const joined = (terms, between, count) => terms.join(between) + (count > terms.length ? `${between}… (${count} terms)` : "");

  // The expression with numbers for names, for the element `flat` of a result of this shape. Throws where it cannot say.
  const substituted = (tree, names, shape, flat) => {
    const evaluated = part => Formula.evaluate(part, names);
    const value = part => {
      const v = evaluated(part);
      if (v === null || (typeof v !== "number" && !v.data) || !fits(typeof v === "number" ? [] : v.shape, shape))
        throw new Error("not of this cell");
      return at(v, shape, flat);
    };
    const plain = part => bracketed(value(part));
    const held = (part, least) => (strength(part) >= least || !Array.isArray(part) ? write(part) : `(${write(part)})`);
    const write = part => {
      if (!Array.isArray(part)) return typeof part === "number" ? Page.number(part) : String(part);
      const [what, a, b] = part;
      switch (what) {
        case "name":
          return plain(part);
        case "neg":
          return `−${held(a, 3)}`;
        case "+":
          return `${held(a, 2)} + ${held(b, 2)}`;
        case "-":
          return `${held(a, 2)} − ${held(b, 3)}`;
        case "*":
          return `${held(a, 3)} · ${held(b, 3)}`;
        case "/":
          return `${held(a, 3)} / ${held(b, 4)}`;
        case "**":
          return `${held(a, 6)}${typeof b === "number" && b in POWERS ? POWERS[b] : `^${held(b, 6)}`}`;
        case "==":
        case ">":
        case "<":
        case ">=":
        case "<=":
          return `[${write(a)} ${what === "==" ? "=" : what} ${write(b)}]`;
        case "@":
          return dot(evaluated(a), evaluated(b)) ?? plain(part);
        case "call":
          if (ELEMENTWISE.has(a))
            return `${a === "sqrt" ? "√" : a}(${b.map(x => (Array.isArray(x) ? write(x) : x === null ? "None" : Page.number(x))).join(", ")})`;
          if (a === "sum" || a === "mean" || a === "max" || a === "min") return reduced(a, b) ?? plain(part);
          return plain(part);
        default:
          return plain(part);
      }
    };
    // One row times one column: only where the product has the result's own shape.
    const dot = (x, y) => {
      if (
        x.shape.length !== 2 ||
        y.shape.length !== 2 ||
        shape.length !== 2 ||
        x.shape[0] !== shape[0] ||
        y.shape[1] !== shape[1]
      )
        return null;
      const k = x.shape[1],
        row = Math.floor(flat / shape[1]),
        column = flat % shape[1];
      const terms = Formula.range(Math.min(k, MOST)).map(
        t => `${bracketed(x.data[row * k + t])} · ${bracketed(y.data[t * shape[1] + column])}`,
      );
      return terms.length ? (tree[0] === "@" ? joined(terms, " + ", k) : `(${joined(terms, " + ", k)})`) : null;
    };
    const reduced = (name, [inner, axis]) => {
      const x = evaluated(inner),
        v = evaluated(["call", name, [inner, axis ?? null, true]]);
      const own = axis === undefined || axis === null ? null : evaluated(axis);
      const axes = own === null ? Formula.range(x.shape.length) : [own].flat().map(d => (d + x.shape.length) % x.shape.length);
      const out = x.shape.map((n, i) => (axes.includes(i) ? 1 : n)),
        lost = x.shape.filter((_, i) => !axes.includes(i));
      let place;
      if (fits(out, shape)) place = Formula.spreadPlaces(out, shape)[flat];
      else if (String(lost) === String(shape)) place = flat;
      else return null;
      const mine = [];
      Formula.spreadPlaces(out, x.shape).forEach((to, i) => {
        if (to === place) mine.push(x.data[i]);
      });
      const terms = mine.slice(0, MOST).map(bracketed);
      if (!terms.length) return bracketed(v.data[place]);
      return name === "sum"
        ? `(${joined(terms, " + ", mine.length)})`
        : `${name}(${joined(
            mine.slice(0, MOST).map(u => Page.number(u)),
            ", ",
            mine.length,
          )})`;
    };
    return write(tree);
  };

  // Lines [name, text with numbers, result] for one cell: first those of `where`, then the formula itself.
  const lines = (name, formula, where, names, result, flat) => {
    const tree = Formula.taken(formula.tree, names),
      known = Formula.withWhere(tree, where, names),
      found = [];
    const line = (label, part, value) => {
      let text;
      try {
        text = substituted(part, known, result.shape, flat);
      } catch {
        return;
      }
      const number =
        typeof value === "number" ? value : fits(value.shape, result.shape) ? at(value, result.shape, flat) : undefined;
      if (number !== undefined) found.push([label, text, number]);
    };
    let seen = { pi: Math.PI, ...names };
    for (const [label, part] of Formula.needed(tree, where)) {
      const value = known[label];
      const before = { ...seen };
      seen = { ...seen, [label]: Formula.evaluate(part, seen) };
      if (Array.isArray(part) && /^(per_channel|along)$/.test(part[1])) continue; // its number stands in the formula
      if (Array.isArray(value) || (value !== null && typeof value === "object" && !value.data)) continue; // axes
      let text = null;
      try {
        text = substituted(part, before, result.shape, flat);
      } catch {
        /* its cells are not the result's */
      }
      const v = typeof value === "number" ? value : fits(value.shape, result.shape) ? at(value, result.shape, flat) : undefined;
      if (text !== null && v !== undefined) found.push([label, text, v]);
    }
    line(name, tree, result);
    return found;
  };

  return { equation, lines, readable, spelled };
})();
