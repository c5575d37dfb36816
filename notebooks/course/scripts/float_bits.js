// The bits of a float: sign, exponent, mantissa, for formats with 8 or 5 exponent bits.
const FORMATS = data.formats; // [name, exponent bits, mantissa bits]
// The number nearest to x that a format holds, ties to the even mantissa; → {sign, e, f}.
function encode(x, [, E, F]) {
  const sign = x < 0 || Object.is(x, -0) ? 1 : 0, bias = 2 ** (E - 1) - 1, top = 2 ** E - 1;
  if (Number.isNaN(x)) return { sign: 0, e: top, f: 2 ** (F - 1) };
  const size = Math.abs(x);
  let power = size ? Math.floor(Math.log2(size)) : -Infinity;
  if (2 ** (power + 1) <= size) power++; // log2 rounds
  if (2 ** power > size) power--;
  power = Math.max(power, 1 - bias); // below: subnormal numbers
  const steps = size / 2 ** (power - F);
  let whole = Math.floor(steps);
  if (steps - whole > 0.5 || (steps - whole === 0.5 && whole % 2)) whole++;
  if (whole === 2 ** (F + 1)) [whole, power] = [2 ** F, power + 1];
  if (!(power <= bias)) return { sign, e: top, f: 0 }; // infinity
  const normal = whole >= 2 ** F;
  return { sign, e: normal ? power + bias : 0, f: whole - (normal ? 2 ** F : 0) };
}
function decode({ sign, e, f }, [, E, F]) {
  const bias = 2 ** (E - 1) - 1, s = sign ? -1 : 1;
  if (e === 2 ** E - 1) return f ? NaN : s * Infinity;
  return s * (e ? (1 + f / 2 ** F) * 2 ** (e - bias) : (f / 2 ** F) * 2 ** (1 - bias));
}
const input = numberField("number", data.value, () => { parts = encode(wanted(), now()); draw(); });
const format = choice("format", FORMATS.map((f) => f[0]), () => {
  parts = encode(wanted(), now());
  draw();
}, data.format);
const now = () => FORMATS[format.value];
const wanted = () => (input.input.value === "" ? NaN : input.value);
let parts = encode(data.value, now());
const bits = make("div", { class: "line" }), says = note();
const value = make("p", { class: "text mono" });
function flip(i) {
  const [, E, F] = now(), place = i <= E ? E - i : F + E - i;
  const key = i === 0 ? "sign" : i <= E ? "e" : "f", unit = i === 0 ? 1 : 2 ** place;
  parts[key] += Math.floor(parts[key] / unit) % 2 ? -unit : unit;
  input.input.value = decode(parts, now());
  draw();
  bits.children[i].focus();
}
function draw() {
  const [name, E, F] = now(), { sign, e, f } = parts, x = decode(parts, now());
  const text = String(sign) + e.toString(2).padStart(E, "0") + f.toString(2).padStart(F, "0");
  bits.replaceChildren(...[...text].map((bit, i) => {
    const kind = i === 0 ? "sign" : i <= E ? "exponent" : "mantissa";
    const cell = make("button", { type: "button", onclick: () => flip(i),
      "aria-label": `${kind} bit ${i}: ${bit}`, "aria-pressed": "false" }, bit);
    cell.style.background = mix(0.35, i === 0 ? "--soft" : i <= E ? "--warm" : "--accent");
    if (i === 1 || i === E + 1) cell.style.marginLeft = "8px";
    return cell;
  }));
  const power = (e || 1) - (2 ** (E - 1) - 1), lead = e ? 1 : 0;
  const special = e === 2 ** E - 1 ? "all exponent bits set: infinity, or not a number"
    : `${sign ? "−" : "+"} 2^${power} × (${lead} + ${f}/${2 ** F})`;
  value.textContent = `${name}: ${special} = ${x}\nstep to the next number: ` +
    `${2 ** (power - F)}; wanted ${wanted()}, difference ${x - wanted()}`;
  value.dataset.value = x;
  says.textContent = `1 sign bit, ${E} exponent bits, ${F} mantissa bits: ${1 + E + F} in all. ` +
    "Click a bit to change it.";
}
show(controls(input.node, format.node), bits, says, value);
draw();
