// Drawing tokens, function by function as in nanogpt_lib/sampling.py.
"use strict";

// Random numbers in [0, 1) from a seed, the same in every browser (mulberry32). PyTorch's generator
// is another one: the same seed gives another text there.
function generator(seed) {
  return () => {
    let t = (seed = (seed + 0x6d2b79f5) | 0);
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function softmax(logits) { // (V) → (V)
  const most = logits.reduce((a, b) => Math.max(a, b));
  const probs = new Float64Array(logits).map((x) => Math.exp(x - most));
  const sum = probs.reduce((a, b) => a + b);
  return probs.map((p) => p / sum);
}

// All but the k largest become -Infinity; ties with the k-th stay.
function keep_top_k(logits, k) {
  const kth = new Float64Array(logits).sort().at(-Math.min(k, logits.length));
  return logits.map((x) => (x < kth ? -Infinity : x));
}

function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

// Logits (V) → probabilities (V). temperature 0 is greedy; top_k 0 keeps all.
function next_token_probabilities(logits, temperature, top_k) {
  if (temperature === 0) {
    const best = argmax(logits);
    return new Float64Array(logits.length).fill(1, best, best + 1);
  }
  let warm = new Float64Array(logits).map((x) => x / temperature);
  if (top_k) warm = keep_top_k(warm, top_k);
  return softmax(warm);
}

// The first i with p_0 + … + p_i > u, u uniform in [0, 1).
function draw(probs, random) {
  const u = random();
  let sum = 0;
  for (let i = 0; i < probs.length; i++) if ((sum += probs[i]) > u) return i;
  return probs.findLastIndex((p) => p > 0); // the sum may end a little under 1
}

// Index of the first token that the model still sees when the text has `length` tokens: 0 until the
// context is full. Then the older half is dropped at once, since every position shifts and the
// cache must be rebuilt.
function context_start(length, block_size) {
  if (length <= block_size) return 0;
  const half = Math.max(1, Math.floor(block_size / 2));
  return Math.ceil((length - block_size) / half) * half;
}

// A text under way: its tokens, the cache of those the model sees, and how many have been read.
class Stream {
  constructor(model) {
    this.model = model;
    this.tokens = [];
    this.read = 0; // tokens whose successor has been predicted
    this.start = 0; // the first token that the model sees
    this.cache = new_cache(model.config);
  }
  // Read further tokens, at most `most` at once; false when there are none left.
  // `seen(position, logits)` is called for each new one, with the logits of the token after it.
  feed(most, seen) {
    const { block_size, vocab_size: V } = this.model.config;
    if (this.read === this.tokens.length) return false;
    const start = context_start(this.read + 1, block_size); // as if the text ended there
    if (start !== this.start) {
      this.start = start;
      this.cache = new_cache(this.model.config);
    }
    const first = this.start + this.cache[0].length;
    const end = Math.min(first + most, this.tokens.length, this.start + block_size);
    const every = end > this.read; // a rebuilt cache needs no logits of what was read before
    const logits = this.model.forward(this.tokens.slice(first, end), this.cache, every);
    for (; this.read < end; this.read++) {
      const t = this.read - first;
      seen(this.read, logits.subarray(t * V, (t + 1) * V));
    }
    return true;
  }
}
