// The learning rate's schedule, and how a step's tokens are divided among processes.
const fields = {};
const names = { max_lr: "maximum", min_lr: "minimum", warmup_steps: "warm-up steps",
  max_steps: "steps", total_batch_size: "tokens per step", block_size: "context",
  batch_size: "most rows", world_size: "processes" };
for (const [name, words] of Object.entries(names)) {
  fields[name] = numberField(words, data[name], draw);
}
const of = (name) => fields[name].value;
// As learning_rate_at of the library.
function rate(step) {
  const high = of("max_lr"), low = of("min_lr"), warm = of("warmup_steps"), end = of("max_steps");
  if (step < warm) return (high * (step + 1)) / warm;
  if (step >= end) return low;
  return low + 0.5 * (1 + Math.cos((Math.PI * (step - warm)) / (end - warm))) * (high - low);
}
// As micro_batch of the library: the most rows, up to batch_size, that divide a process's share.
function micro() {
  const windows = of("total_batch_size") / of("block_size"), share = windows / of("world_size");
  if (!(Number.isInteger(windows) && windows > 0)) return "The tokens per step are not whole rows.";
  if (!Number.isInteger(share)) return `${windows} rows cannot be shared equally by the processes.`;
  let rows = Math.min(of("batch_size"), share);
  while (rows > 1 && share % rows) rows--;
  if (!(rows >= 1)) return "At least one row is needed.";
  return { rows, steps: share / rows };
}
const curve = make("svg", { viewBox: "0 0 600 170", width: 600, role: "img",
  "aria-label": "learning rate by step" });
const at = slider("step", { min: 0, max: data.max_steps, value: data.step }, draw);
const says = note(), sums = make("p", { class: "text mono" });
function draw() {
  const end = of("max_steps"), step = Math.min(at.value, end), high = Math.max(of("max_lr"), 1e-12);
  at.node.querySelector("input").max = end;
  const x = (s) => 10 + (580 * s) / end, y = (lr) => 150 - (130 * lr) / high;
  const points = Array.from({ length: 301 }, (_, i) => Math.round((i * end) / 300));
  const path = points.map((s, i) => `${i ? "L" : "M"}${x(s).toFixed(2)},${y(rate(s)).toFixed(2)}`);
  curve.replaceChildren(
    make("line", { x1: 10, y1: 150, x2: 590, y2: 150, stroke: "var(--rule)" }),
    make("path", { d: path.join(""), fill: "none", stroke: "var(--accent)", "stroke-width": 2 }),
    make("circle", { cx: x(step), cy: y(rate(step)), r: 5, fill: "var(--warm)" }));
  says.textContent = `Step ${step}: learning rate ${rate(step).toExponential(4)}.`;
  says.dataset.value = rate(step);
  const split = micro(), total = of("total_batch_size");
  const number = (n) => n.toLocaleString("en");
  sums.textContent = typeof split === "string" ? split
    : `${number(total)} tokens per step = ${split.rows} rows × ${of("block_size")} × ` +
      `${of("world_size")} process(es) × ${split.steps} micro-step(s)\n` +
      `${number(total * end)} tokens in ${number(end)} steps` + (data.dataset_tokens
        ? ` = ${((total * end) / data.dataset_tokens).toFixed(3)} epochs of ` +
          `${number(data.dataset_tokens)}` : "");
  sums.dataset.value = typeof split === "string" ? "" : JSON.stringify(split);
}
show(controls(...Object.values(fields).map((field) => field.node)), controls(at.node), says, curve,
  sums);
draw();
