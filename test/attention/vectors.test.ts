// Every vector, in every dtype, on every instruction set that this machine has, or on the GPU.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { VectorReport } from "../support/child/vector-errors.ts";
import { answer } from "../support/child.ts";
import { floatTypes } from "../support/compare.ts";
import { implementations, implementationsOf, kind, root } from "../support/devices.ts";

const flags = new Set(/^flags\s*: (.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1]?.split(" "));
const ofCpu = [
  { name: "base", needs: [] },
  { name: "avx2", needs: ["avx2", "fma"] },
  { name: "avx512", needs: ["avx512f", "avx512bw", "avx512vl", "avx512dq"] },
  { name: "avx512bf16", needs: ["avx512_bf16"] },
];

for (const { name, needs } of kind === "cuda" ? [{ name: "cuda", needs: [] }] : ofCpu) {
  const missing = needs.filter((flag) => !flags.has(flag));
  t.test(name, { skip: missing.length > 0 && `no ${missing.join(", ")} here` }, async (t) => {
    const [own] = implementations;
    const checked = name === "base" || name === "cuda" ? implementationsOf("bfloat16") : [own];
    const report = await answer<VectorReport>("vector-errors.ts", {
      environment: kind === "cuda" ? {} : { LONGSEQ_ISA: name },
      args: [join(root, "test/vectors"), ...checked],
    });
    if (kind === "cpu") t.equal(report.instructionSet, name);
    const runs = floatTypes.flatMap((dtype) =>
      checked.filter((one) => implementationsOf(dtype).includes(one)),
    );
    t.equal(report.rows.length, 12 * 5 * runs.length, "cases, results");
    for (const run of new Set(report.rows.map((row) => row.run))) {
      const rows = report.rows.filter((row) => row.run === run);
      // NaN comes as null.
      t.strictSame(
        rows.filter(({ error, bound }) => error === null || error >= bound),
        [],
        run,
      );
    }
  });
}
