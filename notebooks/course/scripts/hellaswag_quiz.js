// HellaSwag as a quiz: the reader chooses an ending, then sees the true one and the model's losses.
const answers = data.items.map(() => null);
let at = 0;
const mean = (item) => item.losses.map((loss, i) => loss / item.lengths[i]);
const least = (values) => values.indexOf(Math.min(...values));
const says = note(), text = make("p", {}), list = make("div", {}), score = note();
list.style.cssText = "display:grid;gap:6px";
const back = button("◀ back", () => go(-1)), next = button("next ▶", () => go(1));
function go(by) { at = Math.max(0, Math.min(data.items.length - 1, at + by)); draw(); }
function draw() {
  const item = data.items[at], chosen = answers[at], perByte = mean(item), open = chosen === null;
  back.disabled = at === 0;
  next.disabled = at === data.items.length - 1;
  text.textContent = `${at + 1} of ${data.items.length}: ${item.ctx} …`;
  list.replaceChildren(...item.endings.map((ending, i) => {
    const words = open ? ending : `${ending}  — ${item.losses[i].toFixed(2)} nats, ` +
      `${perByte[i].toFixed(3)} per ${data.unit}` + (i === item.label ? " ✓ true" : "") +
      (i === least(perByte) ? " · the model's choice" : "");
    const node = button(words, () => {
      if (answers[at] === null) answers[at] = i;
      draw();
      list.children[i].focus();
    });
    node.style.textAlign = "left";
    node.setAttribute("aria-pressed", i === chosen);
    if (!open && i === item.label) node.style.background = mix(0.25);
    if (!open && i === chosen && i !== item.label) node.style.background = mix(0.3, "--warm");
    node.dataset.value = perByte[i];
    return node;
  }));
  says.textContent = open ? "Which ending is true? Choose one."
    : chosen === item.label ? "Right." : "No: the marked ending is the true one.";
  const done = data.items.filter((_, i) => answers[i] !== null);
  const yours = data.items.filter((it, i) => answers[i] === it.label).length;
  const models = done.filter((it) => least(mean(it)) === it.label).length;
  score.textContent = done.length ? `You: ${yours} of ${done.length}. The model, by loss per ` +
    `${data.unit}: ${models} of ${done.length}. Guessing: a quarter.` : "";
}
show(controls(back, next), text, list, says, score);
draw();
