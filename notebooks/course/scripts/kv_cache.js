// The key-value cache step by step: data.q, data.k, data.v are (T, D), one head of the notebook's.
const T = data.tokens.length, D = data.q[0].length;
const steps = stepper(T - 1, draw), says = note();
const tableBox = make("div", { class: "scroll", tabindex: 0, role: "region",
  "aria-label": "keys, values and weights" }), out = make("p", { class: "text mono" });
const largest = Math.max(...[...data.k, ...data.v].flat().map(Math.abs)) || 1;
function attend(t) { // softmax(q kᵀ / √D) over the keys 0 … t
  const scores = data.k.slice(0, t + 1).map(
    (key) => key.reduce((sum, x, d) => sum + x * data.q[t][d], 0) / Math.sqrt(D));
  const most = Math.max(...scores), exps = scores.map((s) => Math.exp(s - most));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((e) => e / sum);
}
function numbers(row, known, fresh) {
  return row.map((x) => {
    const cell = make("td", { class: fresh ? "new" : "" }, known ? x.toFixed(2) : "");
    if (known) cell.style.background = mix((0.5 * Math.abs(x)) / largest,
      x < 0 ? "--warm" : "--accent");
    return cell;
  });
}
function draw() {
  const t = steps.value, weights = attend(t);
  const head = make("tr", {}, make("th", { scope: "col" }, "token"),
    make("th", { colspan: D, scope: "colgroup" }, "key"),
    make("th", { colspan: D, scope: "colgroup" }, "value"), make("th", { scope: "col" }, "weight"));
  tableBox.replaceChildren(make("table", {}, head, ...data.tokens.map((token, s) => {
    const weight = make("td", { "data-value": s <= t ? weights[s] : false },
      s <= t ? weights[s].toFixed(4) : "");
    if (s <= t) weight.style.background = mix(0.6 * weights[s]);
    return make("tr", {}, make("th", { scope: "row" }, visible(token)),
      ...numbers(data.k[s], s <= t, s === t), ...numbers(data.v[s], s <= t, s === t), weight);
  })));
  const mixed = data.v[0].map((_, d) => weights.reduce((sum, w, s) => sum + w * data.v[s][d], 0));
  out.textContent = `output for “${visible(data.tokens[t])}”: ` +
    `[${mixed.map((x) => x.toFixed(4)).join(", ")}]`;
  out.dataset.value = JSON.stringify(mixed);
  const n = t + 1, all = (n * (n + 1)) / 2;
  says.textContent = `Token ${n}: 1 key and 1 value computed (outlined), ${t} read from the ` +
    "cache. " +
    `So far ${n} with the cache; without one, ${all}: ${(all / n).toFixed(1)} times as many.`;
}
show(controls(...steps.nodes), says, tableBox, out);
draw();
