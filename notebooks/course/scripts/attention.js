// Attention over a sentence: data.weights[layer][head] is a lower triangle in millionths, by rows.
const T = data.tokens.length;
let query = T - 1;
const weight = (key) =>
  data.weights[layer.value][head.value][(query * (query + 1)) / 2 + key] / 1e6;
const layer = choice("layer", data.weights.map((_, i) => String(i)), draw);
const head = choice("head", data.weights[0].map((_, i) => String(i)), draw);
const chips = data.tokens.map((token, i) => make("button", { type: "button",
  onclick: () => choose(i), onkeydown: (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) { event.preventDefault(); choose(query + by); }
  } }, visible(token)));
const says = note();
const size = Math.min(440, Math.max(160, 11 * T)) / T;
const map = make("svg", { viewBox: `0 0 ${size * T} ${size * T}`, width: size * T,
  role: "img", "aria-label": "all queries (rows) and keys (columns)" });
function choose(i) {
  query = Math.max(0, Math.min(T - 1, i));
  draw();
  chips[query].focus();
}
function draw() {
  const now = data.tokens.map((_, key) => (key <= query ? weight(key) : 0));
  const top = Math.max(...now);
  chips.forEach((chip, key) => {
    chip.className = key > query ? "later" : "";
    chip.tabIndex = key === query ? 0 : -1;
    chip.setAttribute("aria-pressed", key === query);
    chip.style.background = mix((0.75 * now[key]) / top);
    chip.dataset.value = now[key];
    chip.title = `token ${key} “${visible(data.tokens[key])}”: ${now[key].toFixed(4)}`;
    chip.setAttribute("aria-label", chip.title);
  });
  const most = [...now.keys()].sort((a, b) => now[b] - now[a]).slice(0, 4).filter((k) => now[k]);
  says.textContent = `Query ${query} “${visible(data.tokens[query])}” attends to ` + most.map(
    (k) => `${k} “${visible(data.tokens[k])}” ${now[k].toFixed(3)}`).join(", ") + ".";
  drawMap();
}
function drawMap() {
  const rows = data.weights[layer.value][head.value], cells = [];
  for (let q = 0, i = 0; q < T; q++) for (let k = 0; k <= q; k++, i++) {
    if (rows[i] > 5000 || q === query) cells.push(make("rect", { x: k * size, y: q * size,
      width: size, height: size, fill: q === query ? "var(--warm)" : "var(--accent)",
      "fill-opacity": q === query ? 0.12 + (0.88 * rows[i]) / 1e6 : rows[i] / 1e6 }));
  }
  map.replaceChildren(make("rect", { width: size * T, height: size * T, fill: "var(--panel)" }),
    ...cells);
}
map.addEventListener("click", (event) => {
  const box = map.getBoundingClientRect();
  choose(Math.floor(((event.clientY - box.top) / box.height) * T));
});
show(controls(layer.node, head.node), make("div", { class: "line" }, ...chips), says, map);
draw();
