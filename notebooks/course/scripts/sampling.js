// Temperature, top-k and top-p: data.logits holds rows of logits. With one row every token is
// drawn from it; with V rows, row i holds the logits that follow token i, and a text can be drawn.
const V = data.labels.length;
let start = data.start; // the token whose row is shown
const row = (token) => data.logits[data.logits.length > 1 ? token : 0];
function softmax(logits) {
  const most = Math.max(...logits), exps = logits.map((x) => Math.exp(x - most));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((x) => x / sum);
}
// As next_token_probabilities of the library: ties with the k-th stay; ties in mass, by number.
function probabilities(logits) {
  if (temperature.value === 0) {
    const best = logits.indexOf(Math.max(...logits));
    return logits.map((_, i) => (i === best ? 1 : 0));
  }
  const kth = [...logits].sort((a, b) => b - a)[Math.min(topK.value, V) - 1];
  const warm = logits.map((x) => (x < kth ? -Infinity : x / temperature.value));
  const probs = softmax(warm), order = [...probs.keys()].sort((a, b) => probs[b] - probs[a]);
  let before = 0;
  for (const i of order) {
    const p = probs[i];
    if (before >= topP.value && topP.value < 1) probs[i] = 0;
    before += p;
  }
  const kept = probs.reduce((a, b) => a + b, 0);
  return probs.map((p) => p / kept);
}
function pick(probs, u) {
  for (let i = 0, sum = 0; i < V; i++) if ((sum += probs[i]) > u) return i;
  return probs.findLastIndex((p) => p > 0);
}
const two = (x) => x.toFixed(2);
const temperature = slider("temperature",
  { min: 0, max: 2, step: 0.05, value: data.temperature, show: two }, draw);
const topK = slider("top-k",
  { min: 1, max: V, value: data.top_k, show: (k) => (k === V ? "all" : k) }, draw);
const topP = slider("top-p", { min: 0.05, max: 1, step: 0.05, value: data.top_p, show: two }, draw);
const seed = slider("seed", { min: 1, max: 99, value: 1 }, draw);
const says = note(), text = make("p", { class: "text mono" });
const SHOWN = Math.min(V, 14);
const chart = make("svg", { viewBox: `0 0 400 ${22 * SHOWN + 6}`, width: 400, role: "img",
  "aria-label": "probabilities of the most likely next tokens" });
function bars(probs, plain) {
  const order = [...plain.keys()].sort((a, b) => plain[b] - plain[a]).slice(0, SHOWN);
  chart.replaceChildren(...order.flatMap((token, i) => {
    const y = 4 + 22 * i, p = probs[token];
    return [
      make("text", { x: 84, y: y + 13, "text-anchor": "end" }, visible(data.labels[token])),
      make("rect", { x: 92, y, width: 250 * plain[token], height: 17, rx: 2, fill: "none",
        stroke: "var(--soft)" }),
      make("rect", { x: 92, y, width: 250 * p, height: 17, rx: 2, fill: "var(--accent)",
        "fill-opacity": 0.8, "data-token": token, "data-value": p }),
      make("text", { x: 98 + 250 * Math.max(p, plain[token]), y: y + 13 },
        p ? p.toFixed(4) : "out"),
    ];
  }));
}
function draw() {
  const probs = probabilities(row(start)), plain = softmax(row(start));
  bars(probs, plain);
  const left = probs.filter((p) => p > 0).length;
  says.textContent = `${left} of ${V} tokens can be drawn; outlined: the model's own ` +
    "probabilities.";
  const random = seeded(seed.value), drawn = [];
  for (let token = start; drawn.length < data.length;) {
    token = pick(probabilities(row(token)), random());
    drawn.push(data.labels[token]);
  }
  text.textContent = data.logits.length > 1 ? data.prompt + drawn.join("")
    : drawn.map((token) => data.prompt + "▸" + visible(token)).join("\n");
}
show(controls(temperature.node, topK.node, topP.node, seed.node), says, chart, text);
draw();
