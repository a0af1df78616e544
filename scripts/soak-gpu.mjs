#!/usr/bin/env node
// Attention of random shapes and options on the default device, each twice: the same bits, but for dq, whose sums come in any order. Ends
// with the number of calls; a kernel that hangs is a time limit.
// usage: node scripts/soak-gpu.mjs [--problems N] [--seed N] [--timeout SECONDS]
import { parseArgs } from "node:util";
import { AttentionMask, attentionBackward, attentionForward, Device, Scope, Tensor } from "../dist/index.js";

const { values } = parseArgs({
  options: {
    problems: { type: "string", default: "2500" },
    seed: { type: "string", default: "1" },
    timeout: { type: "string", default: "300" },
  },
});
const device = new Device();
let state = Number(values.seed) >>> 0;

/** A whole number below `limit`: xorshift. */
function below(limit) {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return (state >>> 0) % limit;
}
const pick = (choices) => choices[below(choices.length)];

function problem() {
  const S = 1 + below(pick([64, 200, 700]));
  const keys = pick([S, S, 1 + below(900)]);
  const group = pick([1, 1, 2, 4]);
  const shape = {
    B: 1 + below(2),
    S,
    keys,
    Hkv: 1 + below(3),
    group,
    D: 8 * (1 + below(pick([16, 16, 32]))),
  };
  const options = { causal: pick([true, false]) };
  if (below(4) === 0) options.window = [below(300), below(300)];
  if (below(6) === 0) options.softcap = 5;
  if (keys === S && below(3) === 0)
    options.cuSeqlens = [0, below(S + 1), below(S + 1), S].sort((a, b) => a - b);
  return {
    ...shape,
    dtype: pick(["bfloat16", "float16"]),
    spread: pick([1, 1, 8]),
    options,
    masked: below(5) === 0,
  };
}

async function solve({ B, S, keys, Hkv, group, D, dtype, spread, masked, options }, seed) {
  const input = (rows, heads, at) =>
    Tensor.normal([B, rows, heads, D], { dtype, device, seed: 4 * seed + at, std: at < 2 ? spread : 1 });
  const [q, dout] = [input(S, Hkv * group, 0), input(S, Hkv * group, 3)];
  const [k, v] = [input(keys, Hkv, 1), input(keys, Hkv, 2)];
  const mask = masked ? AttentionMask.from(S, keys, (i, j) => (i * 7 + j * 3) % 5 < 3) : undefined;
  const all = { ...options, ...(mask && { mask }) };
  const saved = attentionForward(q, k, v, all);
  const gradients = attentionBackward({ q, k, v, dout, ...saved }, all);
  const results = { ...saved, ...gradients };
  const bits = {};
  for (const [name, tensor] of Object.entries(results)) bits[name] = await tensor.data();
  mask?.dispose();
  return bits;
}

const late = setTimeout(() => {
  console.error("soak: no end in time: a kernel hangs");
  process.exit(1);
}, 1000 * Number(values.timeout));
let differences = 0;
for (let seed = 0; seed < Number(values.problems); seed++) {
  const one = problem();
  const [first, second] = await Scope.run(async () => [await solve(one, seed), await solve(one, seed)]);
  for (const name of ["out", "logSumExp", "dk", "dv", "dq"]) {
    const [a, b] = [first[name], second[name]];
    const tolerance = name === "dq" ? 0.02 * a.reduce((most, x) => Math.max(most, Math.abs(x)), 1e-3) : 0;
    const at = a.findIndex((x, i) => !(Object.is(x, b[i]) || Math.abs(x - b[i]) <= tolerance));
    if (at < 0) continue;
    differences++;
    console.log(`${name}[${at}] is ${a[at]}, then ${b[at]}: ${JSON.stringify(one)}`);
  }
}
clearTimeout(late);
console.log(`${4 * Number(values.problems)} calls, ${differences} differences`);
process.exitCode = differences === 0 ? 0 : 1;
