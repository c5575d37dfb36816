// GPT-2 in plain JavaScript, function by function as in nanogpt_lib/model.py.
//
// Shapes: T tokens fed at once, S tokens so far (S ≥ T), C channels (n_embd), H heads,
// D head size = C / H, V vocabulary. There is no batch: a page writes one text.
// A matrix (T, C) is a Float32Array of T·C numbers, row after row: element (t, c) is number
// t·C + c. `state` maps the checkpoint's names to such matrices: {data, shape}.
"use strict";

// ---- what PyTorch gave us: linear, layer norm, gelu ---------------------------------------------

const row = (x, t, n) => x.subarray(t * n, (t + 1) * n); // row t of a matrix with n columns

function dot(a, b) { // a[0] b[0] + a[1] b[1] + …
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

// x Wᵀ: (T, n) and (out, n) → (T, out). Nearly all of the time is spent in the inner loop. It takes
// four rows of W at once: each number of x is fetched once for four products, and a processor can
// add to four sums side by side, whereas one sum would have to wait for itself. Twice as fast.
function matmul(x, W, T, n) {
  const out = W.length / n, y = new Float32Array(T * out);
  for (let o = 0; o < out; o += 4) {
    const [o1, o2, o3] = [o + 1, o + 2, o + 3].map((i) => Math.min(i, out - 1)); // the last: twice
    const a = row(W, o, n), b = row(W, o1, n), c = row(W, o2, n), d = row(W, o3, n);
    for (let t = 0; t < T; t++) {
      const u = row(x, t, n);
      let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
      for (let i = 0; i < n; i++) {
        const v = u[i];
        s0 += a[i] * v;
        s1 += b[i] * v;
        s2 += c[i] * v;
        s3 += d[i] * v;
      }
      y[t * out + o] = s0, y[t * out + o1] = s1, y[t * out + o2] = s2, y[t * out + o3] = s3;
    }
  }
  return y;
}

class Linear { // y = x Wᵀ + b
  constructor(state, name) {
    this.weight = state[name + ".weight"].data; // (out, in)
    this.in = state[name + ".weight"].shape[1];
    this.bias = state[name + ".bias"]?.data; // (out), or none
  }
  forward(x, T) { // (T, in) → (T, out)
    const y = matmul(x, this.weight, T, this.in);
    if (this.bias) for (let t = 0; t < T; t++) add(row(y, t, this.bias.length), this.bias);
    return y;
  }
}

class LayerNorm { // every token's channels: mean 0, variance 1, then a learned gain and bias
  constructor(state, name) {
    this.weight = state[name + ".weight"].data; // (C)
    this.bias = state[name + ".bias"]?.data;
  }
  forward(x, T) { // (T, C) → (T, C)
    const C = this.weight.length, y = new Float32Array(T * C);
    for (let t = 0; t < T; t++) {
      const u = row(x, t, C), mean = u.reduce((sum, v) => sum + v, 0) / C;
      const variance = u.reduce((sum, v) => sum + (v - mean) * (v - mean), 0) / C;
      const scale = 1 / Math.sqrt(variance + 1e-5);
      for (let c = 0; c < C; c++) {
        y[t * C + c] = (u[c] - mean) * scale * this.weight[c] + (this.bias ? this.bias[c] : 0);
      }
    }
    return y;
  }
}

// GELU in the tanh approximation that GPT-2 was trained with.
function gelu(x) {
  const k = Math.sqrt(2 / Math.PI);
  return x.map((u) => 0.5 * u * (1 + Math.tanh(k * (u + 0.044715 * u * u * u))));
}

function add(x, y) { // x + y, into x: the residual stream
  for (let i = 0; i < x.length; i++) x[i] += y[i];
  return x;
}

// ---- the key-value cache (context.py) -----------------------------------------------------------

class LayerCache { // keys and values of one block, (S, C), in buffers allocated once
  constructor(block_size, C) {
    this.length = 0; // S, tokens in the cache
    this.k = new Float32Array(block_size * C);
    this.v = new Float32Array(block_size * C);
    this.q = new Float32Array(block_size * C); // only so that the page can show the attention
  }
  append(q, k, v) { // of one token, (C) each
    this.q.set(q, this.length * q.length);
    this.k.set(k, this.length * q.length);
    this.v.set(v, this.length * q.length);
    this.length++;
  }
}

const new_cache = ({ n_layer, block_size, n_embd }) =>
  Array.from({ length: n_layer }, () => new LayerCache(block_size, n_embd));

// ---- model.py -----------------------------------------------------------------------------------

// What the query at position `at` attends to, in one head: softmax(q kᵀ / √D) over keys 0 … at.
// q and k are (S, C) with the heads side by side, so a head's part of a token is a row of D.
function attention_weights({ q, k }, at, head, H, D) { // → (at + 1)
  const weights = new Float32Array(at + 1), query = row(q, at * H + head, D);
  let largest = -Infinity, sum = 0;
  for (let s = 0; s <= at; s++) {
    weights[s] = dot(query, row(k, s * H + head, D)) / Math.sqrt(D);
    largest = Math.max(largest, weights[s]);
  }
  for (let s = 0; s <= at; s++) sum += weights[s] = Math.exp(weights[s] - largest);
  for (let s = 0; s <= at; s++) weights[s] /= sum;
  return weights;
}

// softmax(q kᵀ / √D) v for the last T tokens in the cache. Causal: no key after the query's own.
function attention_by_hand(cache, T, H, D) { // → (T, C)
  const y = new Float32Array(T * H * D);
  for (let t = 0; t < T; t++) {
    for (let head = 0; head < H; head++) {
      const weights = attention_weights(cache, cache.length - T + t, head, H, D);
      const mixed = row(y, t * H + head, D);
      for (let s = 0; s < weights.length; s++) {
        const value = row(cache.v, s * H + head, D), weight = weights[s];
        for (let d = 0; d < D; d++) mixed[d] += weight * value[d];
      }
    }
  }
  return y;
}

class CausalSelfAttention { // each token looks at itself and at earlier tokens
  constructor(config, state, name) {
    this.c_attn = new Linear(state, name + ".c_attn");
    this.c_proj = new Linear(state, name + ".c_proj");
    this.n_head = config.n_head;
  }
  forward(x, T, cache) { // (T, C) → (T, C)
    const C = x.length / T, qkv = this.c_attn.forward(x, T); // (T, 3C): per token q, k and v
    for (let t = 0; t < T; t++) {
      cache.append(row(qkv, 3 * t, C), row(qkv, 3 * t + 1, C), row(qkv, 3 * t + 2, C));
    }
    const y = attention_by_hand(cache, T, this.n_head, C / this.n_head);
    return this.c_proj.forward(y, T);
  }
}

class MLP { // two linear layers, four times as wide in between; each token by itself
  constructor(state, name) {
    this.c_fc = new Linear(state, name + ".c_fc");
    this.c_proj = new Linear(state, name + ".c_proj");
  }
  forward(x, T) { // (T, C) → (T, 4C) → (T, C)
    return this.c_proj.forward(gelu(this.c_fc.forward(x, T)), T);
  }
}

class Block { // attention exchanges information between tokens, then an MLP on each token
  constructor(config, state, name) {
    this.ln_1 = new LayerNorm(state, name + ".ln_1");
    this.attn = new CausalSelfAttention(config, state, name + ".attn");
    this.ln_2 = new LayerNorm(state, name + ".ln_2");
    this.mlp = new MLP(state, name + ".mlp");
  }
  forward(x, T, cache) { // (T, C) → (T, C)
    x = add(x, this.attn.forward(this.ln_1.forward(x, T), T, cache));
    return add(x, this.mlp.forward(this.ln_2.forward(x, T), T));
  }
}

class GPT { // token ids in, logits out
  constructor(config, state) {
    this.config = config;
    this.wte = state["transformer.wte.weight"].data; // (V, C): embedding, and the head's weight
    this.wpe = state["transformer.wpe.weight"].data; // (block_size, C)
    this.h = Array.from({ length: config.n_layer },
      (_, i) => new Block(config, state, `transformer.h.${i}`));
    this.ln_f = new LayerNorm(state, "transformer.ln_f");
  }
  // Feed tokens that follow those in the cache → logits after the last (V), or after each (T, V)
  forward(idx, cache, every = false) {
    const C = this.config.n_embd, T = idx.length, start = cache[0].length;
    let x = new Float32Array(T * C);
    idx.forEach((token, t) => { // which token is it, and where does it stand?
      add(add(row(x, t, C), row(this.wte, token, C)), row(this.wpe, start + t, C));
    });
    this.h.forEach((block, i) => { x = block.forward(x, T, cache[i]); });
    x = this.ln_f.forward(x, T);
    // one matrix, two jobs: wte turns tokens into channels, and its rows score what comes next
    return every ? matmul(x, this.wte, T, C) : matmul(row(x, T - 1, C), this.wte, 1, C);
  }
}
