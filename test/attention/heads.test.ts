// Many heads at once, as few: a GPU takes them in sections, and prepares the next ones' rows while it computes.
import { AttentionMask, type AttentionOptions, Scope, Tensor } from "longseq";
import t from "tap";
import { bounds, relativeError } from "../support/compare.ts";
import { implementationsOf, kind } from "../support/devices.ts";
import { scatter } from "../support/masks.ts";
import { solve } from "../support/problems.ts";

const [B, S] = [2, 2048] as const;
const scattered = scatter(3, 90);
const cuSeqlens = [0, 200, 201, 420, 600, 800, 1000, 1230, 1400, 1600, 1800, S];
const cases: [name: string, Hkv: number, group: number, headDim: number, options: () => AttentionOptions][] =
  [
    ["a window", 12, 1, 64, () => ({ window: [100, 0] })],
    ["a window", 12, 1, 96, () => ({ window: [100, 0] })],
    ["a window", 12, 2, 128, () => ({ window: [100, 0] })],
    ["causal order", 20, 1, 64, () => ({ causal: true, softcap: 5 })],
    ["documents", 12, 1, 120, () => ({ causal: true, cuSeqlens })],
    [
      "a mask",
      20,
      1,
      128,
      () => ({ mask: AttentionMask.from(S, S, (i, j) => Math.abs(i - j) < 300 && scattered(i, j)) }),
    ],
  ];

for (const [name, Hkv, group, headDim, options] of cases) {
  t.test(`${name}, D ${headDim}`, { skip: kind === "cpu" && "sections are a GPU's" }, async (t) => {
    await Scope.run(async () => {
      const input = (heads: number, seed: number) =>
        Tensor.normal([B, S, heads, headDim], { seed, dtype: "bfloat16" });
      const [q, k, v, dout] = [input(Hkv * group, 1), input(Hkv, 2), input(Hkv, 3), input(Hkv * group, 4)];
      const given = options();
      for (const implementation of implementationsOf("bfloat16")) {
        if (implementation === "reference") continue;
        const whole = solve({ q, k, v, dout, options: { ...given, implementation } });
        for (let part = 0; part < 2 * B; part++) {
          const half = (x: Tensor) => {
            const [batch, heads] = [Math.floor(part / 2), (x.shape[2] ?? 0) / 2];
            return x.slice(0, batch, batch + 1).slice(2, (part % 2) * heads, (part % 2) * heads + heads);
          };
          const inputs = { q: half(q), k: half(k), v: half(v), dout: half(dout) };
          const expected = solve({ ...inputs, options: { ...given, implementation } });
          for (const of of ["dq", "dk", "dv"] as const) {
            const error = relativeError(await half(whole[of]).data(), await expected[of].data());
            t.ok(error < bounds.bfloat16.result, `${implementation}: ${of} of part ${part}: ${error}`);
          }
        }
      }
      given.mask?.dispose();
    });
  });
}
