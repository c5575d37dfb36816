// From the text in this file to the model: about (JSON), tokenizer (JSON), weights (base64).
"use strict";

const DAMAGED = "This file is damaged: part of it is missing or was changed. Make it again with " +
  "page.py, or ask for another copy.";

function from_base64(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// The checksum that zlib.crc32 computes.
function crc32(bytes) {
  const table = Int32Array.from({ length: 256 }, (_, n) => {
    for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
    return n;
  });
  let crc = -1;
  for (const byte of bytes) crc = (crc >>> 8) ^ table[(crc ^ byte) & 255];
  return (crc ^ -1) >>> 0;
}

// Bytes → {name: {shape, data: Float32Array}}. A matrix is stored as "int8", a scale for each row
// and whole numbers from -127 to 127, or as "bfloat16", the upper half of a float32.
function unpack(tensors, bytes) {
  const state = {};
  let at = 0;
  const take = (Type, n) => {
    const end = at + n * Type.BYTES_PER_ELEMENT, part = new Type(bytes.slice(at, end).buffer);
    at = end;
    return part;
  };
  for (const { name, shape, dtype } of tensors) {
    const count = shape.reduce((a, b) => a * b), columns = shape.at(-1);
    let data;
    if (dtype === "int8") {
      const scales = take(Float32Array, shape[0]);
      data = Float32Array.from(take(Int8Array, count));
      for (let i = 0; i < count; i++) data[i] *= scales[Math.floor(i / columns)];
    } else if (dtype === "bfloat16") {
      data = new Float32Array(Uint32Array.from(take(Uint16Array, count), (x) => x << 16).buffer);
    } else data = take(Float32Array, count);
    state[name] = { shape, data };
  }
  return state;
}

// → {about, tokenizer, model}; throws an Error whose message is a sentence for the reader.
function load() {
  const text = (id) => document.getElementById(id)?.textContent ?? "";
  let about, bytes, alphabet;
  try {
    about = JSON.parse(text("about"));
    alphabet = JSON.parse(text("tokenizer"));
    bytes = from_base64(text("weights").trim());
  } catch {
    throw new Error(DAMAGED);
  }
  if (bytes.length !== about.bytes || crc32(bytes) !== about.crc32) throw new Error(DAMAGED);
  const tokenizer = alphabet.characters ? new CharTokenizer(alphabet) : new GPT2Tokenizer(alphabet);
  return { about, tokenizer, model: new GPT(about.config, unpack(about.tensors, bytes)) };
}
