// A node as Python: its arrays, and the formulas that compute what was recorded.
const AsPython = (() => {
  const { entry, array } = Run;
  const text = name =>
    JSON.stringify(name).replace(/[\u0080-\uffff]/g, c => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
  const tuple = shape => `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
  const literal = v => Number.isNaN(v) ? "np.nan" : Number.isFinite(v) ? String(v) : v > 0 ? "np.inf" : "-np.inf";
  const given = a => a.data === null
    ? `np.zeros(${tuple(a.shape)})  # only summarised in the page`
    : `np.array([${[...a.data].map(literal).join(", ")}], "${a.dtype}").reshape(${tuple(a.shape)})`;

  function option(tape, e, value) {
    if (value === null || typeof value !== "object" || Array.isArray(value)) return Run.optionText(value);
    if ("float" in value) return `float("${value.float}")`;
    if ("text" in value) return text(value.text);
    if ("int" in value) return value.int;
    const shape = e.op === "put" ? Run.optionText(e.options.shape) : tuple(Run.input(tape, e, 0).shape);
    return `np.unravel_index(${given(array(value.at))}, ${shape})`;  // which elements the index selects
  }

  function of(tape, id) {
    const e = entry(tape, id), visit = e.visits[0], formula = Run.formulaOf(e);
    const list = e.arguments.length > 0 && Run.listOf(e.arguments[0]);
    const value = i => {
      const v = Run.input(tape, e, i);
      return v === null ? "None" : typeof v === "number" ? String(v) : given(v);
    };
    const lines = ["import numpy as np", "from tinygrad_bn.graph import formula_numpy", ""];
    if (list) lines.push("inputs = [", ...e.arguments.map((_, i) => `    ${value(i)},`), "]");
    else lines.push("inputs = {", ...e.arguments.map((name, i) => `    ${text(name)}: ${value(i)},`), "}");
    const options = Object.entries(e.options).map(([name, v]) => `    ${text(name)}: ${option(tape, e, v)},`);
    const said = formula ? "  # " + formula.forward.text : "";
    lines.push("options = {", ...options, "}");
    lines.push(`out = formula_numpy.forward(${text(e.op)}, inputs, options)${said}`, "print(out)");
    if (visit) {
      lines.push("", `g = ${given(array(visit.grad))}`);
      for (const i of Object.keys(visit.contributions)) {
        const rule = Run.gradientOf(e, Number(i)), argument = list ? i : text(e.arguments[i]);
        const call = `formula_numpy.gradient(${text(e.op)}, ${argument}, g, out, inputs, options)`;
        lines.push(`print(${call})${rule ? "  # " + rule.text : ""}`);
      }
    }
    return lines.join("\n") + "\n";
  }
  return { of };
})();
