// Why is this zero? What a reader would ask at a step, and the answer.
const Notes = (() => {
  const { entry, isStep, array } = Run, { html, number } = Page, { largest } = Panel;
  const steps = tape => Run.run.tapes[tape].entries.filter(isStep);
  const aside = (question, answer) =>
    html("aside", { class: "note" }, html("h3", { text: question }), html("p", { text: answer }));

  function twoValues(e) {
    if (e.op !== "batch_norm" || Formula.product(e.shape) / e.shape[1] !== 2) return [];
    const answer =
      "Each channel has two values. Normalised, they are +1 and −1 (but for ε), whatever they were: no change of the input " +
      "changes the output, so no gradient goes back. What is left is ±(γ/2) · ε/std³ · (g₁ − g₂).";
    return [aside("Why is almost no gradient passed on?", answer)];
  }

  function biasBeforeBatchNorm(tape, id, e, visit) {
    const before = (e.op === "linear" || e.op === "conv2d") && e.inputs[2] !== null && visit;
    if (!before || !steps(tape).some(s => s.op === "batch_norm" && s.inputs[0] === id)) return [];
    const c = array(visit.contributions[2]), g = array(visit.grad);
    if (!c?.data || !g?.data) return [];
    const rounding = 8 * (Formula.EPS[c.dtype] ?? 0) * (g.data.length / c.data.length) * largest(g.data);
    if (largest(c.data) > rounding) return [];
    const left = largest(c.data) ? `, and what is left, ${number(largest(c.data), 2)}, is rounding` : "";
    const answer =
      "BatchNorm comes next, and subtracts each channel’s mean: adding the same number to a whole channel changes nothing " +
      `after it. So the gradients of a channel add up to zero${left}. A layer before a BatchNorm needs no bias.`;
    return [aside("Why is the gradient of the bias zero?", answer)];
  }

  function deadRelu(e, visit) {
    const out = e.op === "relu" && visit ? array(e.value) : null, off = out?.data?.filter(v => !(v > 0)).length;
    if (!off) return [];
    const answer = `Where the output is 0 (${off} of ${out.data.length} here) a small change of the input changes nothing.`;
    return [aside("Why are some gradients zero?", answer)];
  }

  const of = (tape, id, visit) => {
    const e = entry(tape, id);
    return [...twoValues(e), ...biasBeforeBatchNorm(tape, id, e, visit), ...deadRelu(e, visit)];
  };
  return { of };
})();
