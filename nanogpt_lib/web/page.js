// The page around the model: reading, writing, buttons. Nothing here is needed to compute.
"use strict";

const MOST = 20000; // characters of a text that the page reads
const SHOWN = 10; // bars
const $ = (id) => document.getElementById(id);
let about, tokenizer, model, stream;
let seen = []; // for every token: what the model expected after it
let spans = []; // and its element
let yours = []; // for every token of the beginning: whether the reader wrote it
let roles = null; // the role tokens of a model that answers
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
      const ended = roles ? is_role(token, roles) : token === tokenizer.eot;
      if (ended && !roles) { say("The model ended its text."); break; }
      seen[stream.tokens.length - 1].loss = -Math.log(last.probs[token]);
      stream.tokens.push(ended ? roles.end : token);
      if (ended) break;
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
  else say(unread ? `reading, ${unread} to go` : `${stream.read} ${unit()}s read`);
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
    const ids = roles
      ? ask(stream?.tokens ?? [], text, tokenizer, roles, model.config.block_size - count)
      : tokenizer.encode(text);
    stream = new Stream(model);
    stream.tokens = ids.length ? ids : [tokenizer.first];
  } catch (error) {
    buttons(false);
    return say(error.message, true);
  }
  yours = roles ? asked(stream.tokens, roles) : stream.tokens.map(() => true);
  if (roles) $("prompt").value = "";
  [seen, spans, chosen, random] = [[], [], null, generator(value("seed"))];
  $("text").replaceChildren();
  go(count);
}

const most = () => (roles ? model.config.block_size >> 1 : 5000); // tokens to write
const write = () => begin(Math.max(1, Math.min(most(), value("length") || 400)));
const stop = () => { run++; buttons(false); };
function more() {
  if (!roles) { chosen = null; return go(value("length") || 400); }
  [stream, last, seen, spans, yours] = [null, null, [], [], []]; // another conversation
  for (const id of ["text", "bars"]) $(id).replaceChildren();
  for (const id of ["summary", "after", "looks"]) $(id).textContent = "";
  for (const canvas of document.querySelectorAll("#heads canvas")) canvas.width = 96; // empty
  say("");
  buttons(false);
}
function talk() { // the page of a model that answers
  roles = about.roles;
  $("prompt").labels[0].textContent = "Ask. The model answers, and sees the conversation so far.";
  [$("write").textContent, $("more").textContent] = ["Ask", "New conversation"];
  $("read").hidden = true;
  $("temperature").value = 0;
  [$("length").value, $("length").max] = [model.config.block_size >> 2, most()];
}

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
  if (!last || stream.read !== stream.tokens.length) return;
  expected(stream.read - 1, last.logits);
  bars();
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
  if (about.roles) talk();
  make_heads();
  redraw();
  $("write").addEventListener("click", write);
  $("read").addEventListener("click", () => {
    document.querySelector("[value=loss]").checked = true;
    begin(0);
  });
  $("stop").addEventListener("click", stop);
  $("more").addEventListener("click", more);
  $("prompt").addEventListener("keydown", (event) => {
    const send = event.ctrlKey || event.metaKey || (roles && !event.shiftKey);
    if (event.key === "Enter" && send) { event.preventDefault(); write(); }
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
