// Text to token ids and back, as in nanogpt_lib/tokenizer.py: characters, or GPT-2's byte pairs.
"use strict";

class CharTokenizer { // one token per character of a fixed alphabet
  constructor({ characters }) {
    this.characters = [...characters];
    this.vocab_size = this.characters.length;
    this.ids = new Map(this.characters.map((c, i) => [c, i]));
    this.eot = null;
    this.first = this.ids.get("\n") ?? 0; // what an empty prompt begins with
  }
  encode(text) {
    return [...text].map((c) => {
      if (this.ids.has(c)) return this.ids.get(c);
      const shown = JSON.stringify(c).slice(1, -1);
      throw new Error(`“${shown}” is not among the ${this.vocab_size} characters that this ` +
        "model knows.");
    });
  }
  bytes(id) { return new TextEncoder().encode(this.characters[id]); }
}

// GPT-2's split: merges never cross these pieces. White space is Unicode's, unlike \s here.
const SPACE = "\\p{White_Space}", OTHER = "\\P{White_Space}";
const GPT2_SPLIT = new RegExp("'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+|" +
  ` ?[^${SPACE}\\p{L}\\p{N}]+|${SPACE}+(?!${OTHER})|${SPACE}+`, "gu");

class GPT2Tokenizer { // byte pairs: ids are the order in which merges were learned
  constructor({ tokens, added = [] }) {
    this.tokens = tokens; // a binary string per id: one character per byte
    this.rank = new Map(tokens.map((token, id) => [token, id]));
    this.eot = this.first = tokens.length; // <|endoftext|>
    this.names = ["<|endoftext|>", ...added];
    this.vocab_size = tokens.length + this.names.length;
    this.known = new Map(); // pieces encoded before
  }
  // Names of special tokens become those tokens, unless `special` is false; the rest is split and
  // merged.
  encode(text, special = true) {
    const ids = [], longest = [...this.names].sort((a, b) => b.length - a.length);
    const name = new RegExp("(" + longest.map(
      (n) => n.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|") + ")");
    for (const part of special ? text.split(name) : [text]) {
      if (special && this.names.includes(part)) ids.push(this.eot + this.names.indexOf(part));
      else for (const [piece] of part.matchAll(GPT2_SPLIT)) ids.push(...this.merge(piece));
    }
    return ids;
  }
  // Merge the two neighbours whose pair was learned first, until no pair is a token.
  merge(piece) {
    if (this.known.has(piece)) return this.known.get(piece);
    const parts = Array.from(new TextEncoder().encode(piece), (b) => String.fromCharCode(b));
    const rank = (i) => // of the pair that begins at part i
      (i + 1 < parts.length && this.rank.get(parts[i] + parts[i + 1])) || Infinity;
    const ranks = parts.map((_, i) => rank(i));
    for (;;) {
      let at = 0;
      for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[at]) at = i;
      if (!(ranks[at] < Infinity)) break;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
      ranks.splice(at, 1);
      for (const i of [at - 1, at]) if (i >= 0) ranks[i] = rank(i);
    }
    const ids = parts.map((part) => this.rank.get(part));
    this.known.set(piece, ids);
    return ids;
  }
  bytes(id) {
    if (id >= this.eot) return new TextEncoder().encode(this.names[id - this.eot]);
    return Uint8Array.from(this.tokens[id], (c) => c.charCodeAt(0));
  }
}
