// What is seen: the text and its colours, the bars of the next token, the heads.
"use strict";

const visible = (text) => text.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "→");
const decode = (id) => new TextDecoder().decode(tokenizer.bytes(id));
const name = (id) => `“${visible(decode(id))}”`;
const percent = (p) => (p < 0.0005 ? "< 0.1" : (100 * p).toFixed(p < 0.0995 ? 1 : 0)) + " %";

// ---- the text and its colours -------------------------------------------------------------------

let decoder = new TextDecoder(); // a token may end in the middle of a character
function append() {
  if (!spans.length) decoder = new TextDecoder();
  const fresh = document.createDocumentFragment();
  for (let i = spans.length; i < stream.tokens.length; i++) {
    const span = document.createElement("span"), id = stream.tokens[i];
    span.textContent = id === tokenizer.eot && i === 0 ? ""
      : decoder.decode(tokenizer.bytes(id), { stream: true });
    if (roles && i > 1 && (id === roles.user || id === roles.assistant)) span.prepend("\n");
    span.dataset.position = i;
    if (yours[i]) span.className = "yours";
    spans.push(span);
    fresh.append(span);
  }
  const box = $("text"), atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  box.append(fresh);
  if (atEnd) box.scrollTop = box.scrollHeight;
}

// The cache that holds a token: the stream's, or, for one that has left it, the context read again.
let again = { start: -1, cache: [] };
function view(at) {
  const start = context_start(at + 1, model.config.block_size);
  if (at >= stream.start) return stream;
  if (again.stream !== stream || again.start !== start || again.cache[0].length <= at - start) {
    if (about.parameters * (at + 1 - start) > 3e9) return stream; // it would take too long
    again = { stream, start, cache: new_cache(model.config) };
    model.forward(stream.tokens.slice(start, at + 1), again.cache);
  }
  return again;
}

const looking = () => chosen ?? stream.read - 1; // the token whose prediction is shown
// What the head chosen gives to every token in view, for the token looked at; null: out of view.
function weights({ layer, head }, at = looking()) {
  const { start, cache } = view(at), { n_head, n_embd } = model.config;
  if (at < start || at - start >= cache[layer].length) return null;
  return attention_weights(cache[layer], at - start, head, n_head, n_embd / n_head);
}

let coloured = "plain"; // how the text was coloured last
function colour() {
  const mode = document.querySelector("[name=colour]:checked").value;
  if (mode === "plain" && mode === coloured && chosen === null) return;
  coloured = mode;
  const shown = mode === "attention" ? weights(head) : null, { start } = view(looking());
  const most = shown ? Math.max(...shown) : 1;
  spans.forEach((span, i) => {
    let part = 0, tint = "--warm";
    if (mode === "loss" && i) part = Math.min(1, (seen[i - 1]?.loss ?? 0) / 5);
    if (shown) [part, tint] = [(shown[i - start] ?? 0) / most, "--accent"];
    span.style.background = part < 0.01 ? ""
      : `color-mix(in srgb, var(${tint}) ${Math.round(70 * part)}%, transparent)`;
    span.classList.toggle("chosen", i === chosen);
    span.classList.toggle("unseen", mode === "attention" && (i < start || i > looking()));
  });
  $("legend").textContent = { plain: "", loss: "darker: less expected (5 nats and more: full)",
    attention: `layer ${head.layer}, head ${head.head}, from the token looked at` }[mode];
}

function average(mine) { // of the reader's tokens, or of the others
  let sum = 0, n = 0;
  for (let i = 1; i < stream.tokens.length; i++) {
    if (!!yours[i] === mine && seen[i - 1]?.loss != null) { sum += seen[i - 1].loss; n++; }
  }
  return n ? (sum / n).toFixed(3) : null;
}
function summary() {
  const mine = average(true), its = average(false);
  $("summary").textContent = [
    mine && `Mean loss of your text: ${mine} nats per ${unit()}.`,
    its && `Of what it wrote: ${its}.`,
  ].filter(Boolean).join(" ");
}

// ---- the panels ---------------------------------------------------------------------------------

function bars() {
  const at = looking(), entry = seen[at], next = stream.tokens[at + 1];
  if (!entry) return;
  const here = name(stream.tokens[at]);
  const came = entry.loss === null ? "" : `: ${name(next)} came, ` +
    `loss ${entry.loss.toFixed(2)} nats (${percent(Math.exp(-entry.loss))})`;
  $("after").textContent = `after token ${at + 1}, ${here}` + came;
  $("bars").replaceChildren(...entry.top.map(([id, p, drawing]) => {
    const part = (kind, words = "") => {
      const node = document.createElement("div");
      node.className = kind;
      node.textContent = words;
      return node;
    };
    const fill = part("fill"), track = part("track"), bar = part("bar"
      + (id === next ? " drawn" : "") + (drawing === 0 ? " out" : ""));
    fill.style.width = 100 * p + "%";
    track.append(fill);
    bar.dataset.token = id;
    bar.dataset.value = p;
    bar.title = `probability ${p.toFixed(4)}; drawn with ${drawing.toFixed(4)}`;
    bar.append(part("token", visible(decode(id))), track, part("number", percent(p)));
    return bar;
  }));
}

function make_heads() {
  const { n_layer, n_head } = model.config;
  $("heads").style.gridTemplateColumns = `repeat(${n_head}, minmax(34px, 1fr))`;
  for (let i = 0; i < n_layer * n_head; i++) {
    const which = { layer: Math.floor(i / n_head), head: i % n_head };
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    const words = document.createElement("small");
    words.textContent = `${which.layer}·${which.head}`;
    [canvas.width, canvas.height] = [96, 40];
    button.setAttribute("aria-label", `layer ${which.layer}, head ${which.head}`);
    button.addEventListener("click", () => {
      head = which;
      document.querySelector("[value=attention]").checked = true;
      show();
    });
    button.append(canvas, words);
    $("heads").append(button);
  }
}

// Every head's attention from the token looked at: the last 48 tokens, height by weight.
function heads() {
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  [...$("heads").children].forEach((button, i) => {
    const which = { layer: Math.floor(i / model.config.n_head), head: i % model.config.n_head };
    const canvas = button.firstChild, pen = canvas.getContext("2d"), all = weights(which);
    button.setAttribute("aria-pressed", which.layer === head.layer && which.head === head.head);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.fillStyle = ink;
    const most = all ? Math.max(...all) : 1;
    all?.slice(-48).forEach((w, s, part) => {
      const x = canvas.width - 2 * (part.length - s), high = (canvas.height * w) / most;
      pen.fillRect(x, canvas.height - high, 1.6, high);
    });
  });
  $("looks").textContent = looks(weights(head), looking());
}
function looks(mine, at) {
  if (!mine) {
    return `Out of the model's view: its context holds ${model.config.block_size} ${unit()}s.`;
  }
  const { start } = view(at), order = [...mine.keys()].sort((a, b) => mine[b] - mine[a]);
  const best = order.slice(0, 3).map((s) => {
    const back = at - start - s;
    return `${name(stream.tokens[start + s])} (${back ? back + " back" : "itself"}) ` +
      percent(mine[s]);
  });
  return `Layer ${head.layer}, head ${head.head} looks from ${name(stream.tokens[at])} at ` +
    best.join(", ") + ".";
}

function show() {
  if (!stream) return;
  append();
  if (!stream.read) return;
  colour();
  summary();
  bars();
  heads();
}
