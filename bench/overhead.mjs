// What a call costs the JavaScript thread besides its work: `npm run build && node bench/overhead.mjs`.
// Calls that do next to nothing, in microseconds: the median of rounds of 1,000, which are queued while others run.
import { attention, attentionForward, Device, Tensor } from "longseq";

const device = Device.default;
const small = Tensor.normal([1, 8, 2, 64]);
const q = Tensor.normal([1, 128, 8, 64], { dtype: "bfloat16" });

const calls = {
  "device.memory()": () => device.memory(),
  "tensor.slice() and dispose()": () => small.slice(1, 0, 1).dispose(),
  "Tensor.empty() and dispose()": () => Tensor.empty([1, 8, 2, 64]).dispose(),
  "attention() of 8 tokens and dispose()": () => attention(small, small, small).dispose(),
  "attentionForward() of 128 tokens": () => {
    for (const result of Object.values(attentionForward(q, q, q, { causal: true }))) result.dispose();
  },
};

for (const [name, call] of Object.entries(calls)) {
  const rounds = [];
  for (let round = 0; round < 30; round++) {
    const start = performance.now();
    for (let i = 0; i < 1000; i++) call();
    rounds.push(performance.now() - start);
    await device.synchronize();
  }
  rounds.sort((a, b) => a - b);
  console.log(`${name.padEnd(40)} ${(rounds[15] ?? 0).toFixed(2)} us`);
}
