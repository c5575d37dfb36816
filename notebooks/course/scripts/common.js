// What the figures share. `root` is the figure's <div>, `data` the notebook's numbers.
const DRAWN = ["svg", "g", "rect", "text", "path", "line", "circle", "title"];
function make(tag, attributes = {}, ...children) {
  const node = DRAWN.includes(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
// A range with its number beside it; `changed` is called after every move.
function slider(words, { min, max, step = 1, value, show = String }, changed) {
  const number = make("output", {}, show(value));
  const input = make("input", { type: "range", min, max, step, value, oninput() {
    number.textContent = show(+input.value);
    changed();
  } });
  return { node: make("label", {}, words, input, number), get value() { return +input.value; } };
}
function numberField(words, value, changed) {
  const input = make("input", { type: "number", step: "any", value, oninput: () => changed() });
  return { node: make("label", {}, words, input), input, get value() { return +input.value; } };
}
function choice(words, options, changed, value = 0) {
  const select = make("select", { onchange: () => changed() },
    ...options.map((text, i) => make("option", { value: i, selected: i === value }, text)));
  return { node: make("label", {}, words, select), get value() { return +select.value; } };
}
function button(words, clicked) {
  return make("button", { type: "button", onclick: clicked }, words);
}
// Back, a slider and forward, for figures that go step by step.
function stepper(last, changed) {
  const at = slider("step", { min: 0, max: last, value: 0 }, changed);
  const input = at.node.querySelector("input");
  const go = (by) => { input.value = +input.value + by; input.dispatchEvent(new Event("input")); };
  return { get value() { return at.value; },
    nodes: [button("◀ back", () => go(-1)), button("next ▶", () => go(1)), at.node] };
}
const controls = (...nodes) => make("div", { class: "controls" }, ...nodes);
const note = () => make("p", { class: "note", "aria-live": "polite" });
const visible = (token) => token.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "→");
const mix = (weight, colour = "--accent") =>
  `color-mix(in srgb, var(${colour}) ${(100 * weight).toFixed(1)}%, transparent)`;
// A generator of numbers in [0, 1) from a seed (mulberry32): the same in every browser.
function seeded(seed) {
  return () => {
    let t = (seed = (seed + 0x6d2b79f5) | 0);
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
// Replace the still picture by the figure's own elements.
function show(...nodes) {
  root.querySelectorAll(".still, noscript").forEach((node) => node.remove());
  root.append(...nodes);
}
