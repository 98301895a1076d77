"use strict";
// What every page of this package needs: its data, its state in the address, numbers as text, the theme, the badge, the keys.
const Page = (() => {
  const root = document.documentElement;
  const find = id => document.getElementById(id);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  // An element with attributes (text: its text; on...: a listener) and children; names and values are text, never HTML.
  const make = create => (tag, attributes = {}, ...children) => {
    const element = create(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") element.textContent = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  };

  // A number as text: four significant digits unless told, a true minus, 10,000 with a comma, powers of ten beyond 1e-4 and 1e6.
  const number = (x, digits = 4) => {
    if (typeof x !== "number") return "–";
    if (!Number.isFinite(x)) return Number.isNaN(x) ? "not a number" : x > 0 ? "∞" : "−∞";
    if (x === 0) return "0";
    const size = Math.abs(x);
    if (size < 1e-4 || size >= 1e6) {
      const [mantissa, power] = x.toExponential(digits - 1).split("e");
      const front = (mantissa.includes(".") ? mantissa.replace(/\.?0+$/, "") : mantissa) + "·";
      return (/^-?1·$/.test(front) ? front.slice(0, -2) : front).replace("-", "−") + "10" + superscript(Number(power));
    }
    const rounded = Number(x.toPrecision(digits));
    return (size < 1e4 ? String(rounded) : rounded.toLocaleString("en")).replace("-", "−");
  };
  const superscript = n => String(n).replace(/[-\d]/g, c => c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]);

  // With a fixed number of decimals, so that points stand under each other.
  const fixed = (x, decimals = 2) => {
    if (!Number.isFinite(x)) return number(x);
    const written = x.toFixed(decimals);
    return (Number(written) === 0 ? written.replace("-", "") : written).replace("-", "−");
  };

  // The state that the address keeps: #name=value&...
  const hash = {
    read: () => Object.fromEntries(new URLSearchParams(location.hash.slice(1))),
    write: state => {
      const written = new URLSearchParams(Object.entries(state).filter(([, value]) => value !== null && value !== undefined));
      history.replaceState(null, "", "#" + written);
    },
  };

  let last = 0;
  const say = what => {  // to a screen reader; the same words twice are said twice
    clearTimeout(last);
    last = setTimeout(() => { find("live").textContent = find("live").textContent === what ? what + "\u00a0" : what; }, 150);
  };

  // state: "pass", "fail", "open" (nothing can be said) or "waiting"; details: lines that the badge opens to.
  const badge = (state, summary, details = []) => {
    const element = find("badge"), mark = { pass: "✓ ", fail: "✗ ", open: "? ", waiting: "" }[state];
    element.dataset.state = state;
    element.querySelector("summary").textContent = mark + summary;
    element.querySelector("div").replaceChildren(...details.map(line => html("p", { text: line })));
  };

  // rows: [["← →", "one step back, one on"], ...]
  const keys = rows => {
    find("keys").querySelector("dl").replaceChildren(
      ...rows.flatMap(([key, what]) => [html("dt", {}, html("kbd", { text: key })), html("dd", { text: what })]));
  };
  const showKeys = () => { if (!find("keys").open) find("keys").showModal(); };
  find("keys-button").addEventListener("click", showKeys);
  const typing = event => event.target.matches?.("input:not([type=range]):not([type=checkbox]):not([type=radio]), textarea, select");
  addEventListener("keydown", event => { if (event.key === "?" && !typing(event)) showKeys(); });

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = name => {
    root.dataset.theme = name;
    find("theme").title = name === "dark" ? "Light colours" : "Dark colours";
    find("theme").setAttribute("aria-label", find("theme").title);
  };
  theme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
  find("theme").addEventListener("click", () => theme(root.dataset.theme === "dark" ? "light" : "dark"));

  const html = make(tag => document.createElement(tag));
  const svg = make(tag => document.createElementNS("http://www.w3.org/2000/svg", tag));
  const data = id => JSON.parse(find(id).textContent);
  return { badge, data, find, fixed, hash, html, keys, number, say, svg, theme, typing, calm: () => calm.matches };
})();
