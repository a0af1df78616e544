// Every vector, in every dtype, on every instruction set that this machine has, or on the GPU.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { VectorReport } from "../support/child/vector-errors.ts";
import { answer } from "../support/child.ts";
import { floatTypes } from "../support/compare.ts";
import { implementations, implementationsOf, kind, root } from "../support/devices.ts";

const flags = new Set(/^flags\s*: (.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1]?.split(" "));
interface Run {
  name: string;
  needs: string[];
  environment: Record<string, string>;
  implementations: ReturnType<typeof implementationsOf>;
}
const [own] = implementations;
const all = implementationsOf("bfloat16");
const instructionSets = {
  base: [],
  avx2: ["avx2", "fma"],
  avx512: ["avx512f", "avx512bw", "avx512vl", "avx512dq"],
  avx512bf16: ["avx512_bf16"],
};
const ofCpu = Object.entries(instructionSets).map(
  ([name, needs]): Run => ({
    name,
    needs,
    environment: { LONGSEQ_ISA: name },
    implementations: name === "base" ? all : [own],
  }),
);
// What blocks of compute capability 8.6, 8.9 and 12 have, for which Hopper's kernels are not there.
const less = { LONGSEQ_SHARED_BYTES: "99k" };
const ofGpu: Run[] = [
  { name: "cuda", needs: [], environment: {}, implementations: all },
  {
    name: "cuda, 99 KiB",
    needs: [],
    environment: less,
    implementations: all.filter((one) => one !== "sm90"),
  },
];

for (const { name, needs, environment, implementations: checked } of kind === "cuda" ? ofGpu : ofCpu) {
  const missing = needs.filter((flag) => !flags.has(flag));
  t.test(name, { skip: missing.length > 0 && `no ${missing.join(", ")} here` }, async (t) => {
    const report = await answer<VectorReport>("vector-errors.ts", {
      environment,
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
