// Recomputes from the page's data the numbers that it shows; and steps from finding to finding by keys.
(() => {
  const rows = Page.data("rows");
  const median = values => {
    const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  };
  const close = (a, b) => Math.abs(a - b) <= 1e-9 + 1e-6 * Math.abs(b);
  const lines = [], bad = [];
  rows.forEach((row, i) => {
    if (!row.running_mean || typeof row.shift !== "number") return;
    const sigma = row.population_var.map(v => Math.sqrt(v + row.eps));
    const off = median(row.running_mean.map((v, c) => Math.abs(v - row.population_mean[c]) / sigma[c]));
    const ok = close(off, row.shift) && close(1 - row.slope ** 2, row.noise);
    const marks = document.querySelectorAll(`#layer-${i} .near, #layer-${i} .far`).length;
    lines.push(`${row.layer}: running mean off by ${Page.number(off)} standard deviations; ${marks} marks drawn`);
    if (!ok || marks > 2 * row.channels) bad.push(row.layer);
  });
  if (!rows.length) Page.badge("pass", "no layers were measured", ["The findings come from watching."]);
  else Page.badge(bad.length ? "fail" : "pass", bad.length ? `${bad.length} layers do not add up` : "the numbers add up", lines);

  const findings = [...document.querySelectorAll(".finding")];
  let at = -1;
  const go = step => {
    if (!findings.length) return;
    at = Math.min(findings.length - 1, Math.max(0, at + step));
    findings[at].scrollIntoView({ behavior: Page.calm() ? "auto" : "smooth", block: "start" });
    findings[at].focus({ preventScroll: true });
    Page.say(`finding ${at + 1} of ${findings.length}: ${findings[at].querySelector("code").textContent}`);
  };
  addEventListener("keydown", event => {
    if (Page.typing(event) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "n") go(1);
    else if (event.key === "p") go(-1);
  });
  Page.keys([["n", "the next finding"], ["p", "the one before"], ["?", "this list"]]);
})();
