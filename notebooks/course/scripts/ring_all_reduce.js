// Ring all-reduce: data.gradients[rank][chunk]. In W − 1 steps sums travel round the ring (reduce-
// scatter), in W − 1 more the finished sums (all-gather); each rank sends one chunk a step.
const W = data.gradients.length, LAST = 2 * (W - 1);
const modulo = (n) => ((n % W) + W) % W;
// After `step` steps: numbers[rank][chunk], and how many ranks' numbers each holds.
function after(step) {
  let held = data.gradients.map((row) => row.map((x) => ({ x, n: 1 })));
  let moves = [];
  for (let s = 0; s < step; s++) {
    const adding = s < W - 1, from = held, first = adding ? -s : W - s; // rank 0 sends this chunk
    moves = data.gradients.map((_, rank) =>
      ({ rank, to: modulo(rank + 1), chunk: modulo(rank + first) }));
    held = from.map((row) => row.map((cell) => ({ ...cell })));
    for (const { rank, to, chunk } of moves) {
      const sent = from[rank][chunk], own = from[to][chunk];
      held[to][chunk] = adding ? { x: own.x + sent.x, n: own.n + sent.n } : { ...sent };
    }
  }
  return { held, moves };
}
const steps = stepper(LAST, draw), says = note(), box = make("div", { class: "scroll",
  tabindex: 0, role: "region", "aria-label": "every rank's numbers" });
const ring = make("svg", { viewBox: "0 0 420 300", width: 420, role: "img",
  "aria-label": `${W} ranks in a ring` });
const place = (rank) => {
  const turn = (2 * Math.PI * rank) / W - Math.PI / 2;
  return [210 + 118 * Math.cos(turn), 150 + 108 * Math.sin(turn)];
};
function drawRing({ held, moves }) {
  const parts = [];
  for (const { rank, to, chunk } of moves) {
    const [[x, y], [u, v]] = [place(rank), place(to)];
    const [dx, dy] = [u - x, v - y].map((d) => d / Math.hypot(u - x, v - y));
    const [mx, my] = [(x + u) / 2 + 34 * dy, (y + v) / 2 - 24 * dx]; // beside the line
    const tip = [(x + 2 * u) / 3, (y + 2 * v) / 3], wing = (side) =>
      `${tip[0] - 11 * dx + side * 5 * dy},${tip[1] - 11 * dy - side * 5 * dx}`;
    parts.push(make("line", { x1: x, y1: y, x2: u, y2: v, stroke: "var(--warm)",
      "stroke-width": 2 }), make("path", { d: `M${tip}L${wing(1)}L${wing(-1)}Z`,
      fill: "var(--warm)" }), make("text", { x: mx, y: my + 4, "text-anchor": "middle" },
      `piece ${chunk}`));
  }
  held.forEach((row, rank) => {
    const [x, y] = place(rank), size = Math.min(18, 84 / W);
    parts.push(make("rect", { x: x - (size * W) / 2 - 6, y: y - 22, width: size * W + 12,
      height: 44, rx: 6, fill: "var(--panel)", stroke: "var(--rule)" }),
    make("text", { x, y: y - 8, "text-anchor": "middle" }, `rank ${rank}`));
    row.forEach((cell, chunk) => parts.push(make("rect", { x: x - (size * W) / 2 + size * chunk,
      y: y - 2, width: size - 2, height: 18, fill: "var(--accent)", "fill-opacity": cell.n / W })));
  });
  ring.replaceChildren(...parts);
}
function draw() {
  const step = steps.value, state = after(step);
  const got = new Set(state.moves.map(({ to, chunk }) => `${to} ${chunk}`));
  drawRing(state);
  const head = make("tr", {}, make("th", {}, ""), ...data.gradients[0].map(
    (_, chunk) => make("th", { scope: "col" }, `piece ${chunk}`)));
  box.replaceChildren(make("table", {}, head, ...state.held.map((row, rank) =>
    make("tr", {}, make("th", { scope: "row" }, `rank ${rank}`), ...row.map((cell, chunk) => {
      const td = make("td", { class: got.has(`${rank} ${chunk}`) ? "new" : "",
        "data-value": cell.x }, +cell.x.toFixed(4));
      td.style.background = mix((0.5 * cell.n) / W);
      return td;
    })))));
  const part = step === 0 ? "Every rank holds its own gradients."
    : step < W ? `Reduce-scatter, step ${step} of ${W - 1}: each rank adds what it receives.`
      : `All-gather, step ${step - W + 1} of ${W - 1}: finished sums are copied on.`;
  says.textContent = `${part} Each rank has sent ${step}/${W} of its gradients` +
    (step === LAST ? ": 2 (W − 1)/W, never quite 2, however many ranks." : ".");
}
show(controls(...steps.nodes), says, ring, box);
draw();
