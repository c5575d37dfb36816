// HellaSwag as a quiz: the reader chooses an ending, then sees the true one and the model's losses.
const answers = data.items.map(() => null);
let at = 0;
const taken = (item) => item.losses.indexOf(Math.min(...item.losses)); // the model's
const says = note(), text = make("p", {}), list = make("div", {}), score = note();
list.style.cssText = "display:grid;gap:6px";
const back = button("◀ back", () => go(-1)), next = button("next ▶", () => go(1));
function go(by) { at = Math.max(0, Math.min(data.items.length - 1, at + by)); draw(); }
function draw() {
  const item = data.items[at], chosen = answers[at], open = chosen === null;
  back.disabled = at === 0;
  next.disabled = at === data.items.length - 1;
  text.textContent = `${at + 1} of ${data.items.length}: ${item.ctx} …`;
  list.replaceChildren(...item.endings.map((ending, i) => {
    const words = open ? ending : `${ending}  — ${item.losses[i].toFixed(1)} nats` +
      (i === item.label ? " ✓ true" : "") + (i === taken(item) ? " · the model's choice" : "");
    const node = button(words, () => {
      if (answers[at] === null) answers[at] = i;
      draw();
      list.children[i].focus();
    });
    node.style.textAlign = "left";
    node.setAttribute("aria-pressed", i === chosen);
    if (!open && i === item.label) node.style.background = mix(0.25);
    if (!open && i === chosen && i !== item.label) node.style.background = mix(0.3, "--warm");
    node.dataset.value = item.losses[i];
    return node;
  }));
  says.textContent = open ? "Which ending is true? Choose one."
    : chosen === item.label ? "Right." : "No: the marked ending is the true one.";
  const done = data.items.filter((_, i) => answers[i] !== null);
  const yours = data.items.filter((it, i) => answers[i] === it.label).length;
  const models = done.filter((it) => taken(it) === it.label).length;
  score.textContent = done.length ? `You: ${yours} of ${done.length}. The model: ${models} of ` +
    `${done.length}. Guessing: a quarter.` : "";
}
show(controls(back, next), text, list, says, score);
draw();
