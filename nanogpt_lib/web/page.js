// The page around the model: reading, writing, buttons. Nothing here is needed to compute.
"use strict";

const MOST = 20000; // characters of a text that the page reads
const SHOWN = 10; // bars
const $ = (id) => document.getElementById(id);
let about, tokenizer, model, stream;
let seen = []; // for every token: what the model expected after it
let spans = []; // and its element
let yours = 0; // tokens that the reader wrote
let random; // generator of this text
let last; // after its last token: logits, the model's probabilities, and those to draw from
let chosen = null; // the token looked at; null: follow the last one
let head = { layer: 0, head: 0 };
let run = 0; // number of the writing under way; another number stops it

const value = (id) => +$(id).value;
const top_k = () => (value("top_k") > 50 ? 0 : value("top_k")); // the last position means all
const unit = () => (tokenizer.eot === null ? "character" : "token");

// ---- reading and writing ------------------------------------------------------------------------

const channel = new MessageChannel();
const breathe = () => new Promise((go) => { // let the browser draw, without a timer's delay
  channel.port1.onmessage = go;
  channel.port2.postMessage(null);
});

function say(words, wrong = false) {
  $("status").textContent = words;
  $("status").className = wrong ? "wrong" : "";
}

// Keep the best of what was expected after the token at this position, and its successor's loss.
function expected(position, logits) {
  const drawing = next_token_probabilities(logits, value("temperature"), top_k());
  const probs = softmax(logits), best = [];
  for (let i = 0; i < probs.length; i++) {
    if (best.length === SHOWN && probs[i] <= probs[best[SHOWN - 1]]) continue;
    best.push(i);
    best.sort((a, b) => probs[b] - probs[a]);
    best.length = Math.min(best.length, SHOWN);
  }
  const after = stream.tokens[position + 1];
  seen[position] = { top: best.map((id) => [id, probs[id], drawing[id]]),
    loss: after === undefined ? null : -Math.log(probs[after]) };
  last = { logits, probs, drawing };
}

// Read what is in `stream.tokens`, then write `count` more; slices of 25 ms, for the page's sake.
async function go(count) {
  const mine = ++run, began = performance.now();
  buttons(true);
  let wrote = 0, slice = began;
  for (;;) {
    if (!stream.feed(16, expected)) { // all read
      if (wrote === count) break;
      const token = draw(last.drawing, random);
      if (token === tokenizer.eot) { say("The model ended its text."); break; }
      seen[stream.tokens.length - 1].loss = -Math.log(last.probs[token]);
      stream.tokens.push(token);
      wrote++;
    }
    if (performance.now() - slice < 25) continue;
    progress(wrote, count, began);
    await breathe();
    if (mine !== run) return;
    slice = performance.now();
  }
  progress(wrote, count, began);
  buttons(false);
}

let drawn = 0; // when the panels were drawn last
function progress(wrote, count, began) {
  const now = performance.now(), seconds = (now - began) / 1000;
  const unread = stream.tokens.length - stream.read;
  if (count && wrote) say(`${wrote} ${unit()}s, ${Math.round(wrote / seconds)} per second`);
  else say(unread ? `reading, ${unread} to go` : `${yours} ${unit()}s read`);
  append();
  if (now - drawn < 150 && wrote < count) return; // the model comes first
  drawn = now;
  show();
}

function buttons(busy) {
  $("stop").disabled = !busy;
  $("more").disabled = busy || !stream || !stream.read;
}

function begin(count) {
  run++; // whatever is under way
  const text = $("prompt").value;
  try {
    if (text.length > MOST) {
      throw new Error(`This text has ${text.length.toLocaleString("en")} characters; the page ` +
        `reads at most ${MOST.toLocaleString("en")}.`);
    }
    const ids = tokenizer.encode(text);
    stream = new Stream(model);
    stream.tokens = ids.length ? ids : [tokenizer.first];
  } catch (error) {
    buttons(false);
    return say(error.message, true);
  }
  yours = stream.tokens.length;
  [seen, spans, chosen, random] = [[], [], null, generator(value("seed"))];
  $("text").replaceChildren();
  go(count);
}

const write = () => begin(Math.max(1, Math.min(5000, value("length") || 400)));
const stop = () => { run++; buttons(false); };

// ---- what the reader does -----------------------------------------------------------------------

function choose(position) {
  if (!stream?.read) return;
  chosen = Math.max(0, Math.min(stream.read - 1, position));
  show();
  spans[chosen].scrollIntoView({ block: "nearest" });
}
function redraw() { // settings changed: what would now be drawn after the last token
  for (const output of document.querySelectorAll("output")) {
    const number = value(output.htmlFor.value);
    output.textContent = output.htmlFor.value === "top_k" ? top_k() || "all" : number.toFixed(2);
  }
  if (last && stream.read === stream.tokens.length) expected(stream.read - 1, last.logits), bars();
}

function start() {
  try {
    ({ about, tokenizer, model } = load());
  } catch (error) {
    for (const id of ["write", "read"]) $(id) && ($(id).disabled = true);
    return $("status") ? say(error.message, true) : document.body.append(error.message);
  }
  $("facts").textContent = about.facts;
  $("prompt").value = about.prompt;
  make_heads();
  redraw();
  $("write").addEventListener("click", write);
  $("read").addEventListener("click", () => {
    document.querySelector("[value=loss]").checked = true;
    begin(0);
  });
  $("stop").addEventListener("click", stop);
  $("more").addEventListener("click", () => { chosen = null; go(value("length") || 400); });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write();
  });
  $("text").addEventListener("click", (event) => {
    if (event.target.dataset.position) choose(+event.target.dataset.position);
  });
  $("text").addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && stream?.read) { event.preventDefault(); choose(looking() + by); }
  });
  for (const id of ["temperature", "top_k"]) $(id).addEventListener("input", redraw);
  for (const radio of document.querySelectorAll("[name=colour]")) {
    radio.addEventListener("change", () => stream && show());
  }
  write(); // the first thing a visitor sees is a GPT that writes
}

function theme() { // page.html#dark, where the page around it decides
  for (const name of ["light", "dark"]) {
    document.documentElement.classList.toggle(name, location.hash === "#" + name);
  }
  if (stream) show();
}
theme();
addEventListener("hashchange", theme);
document.addEventListener("DOMContentLoaded", start);
