// What the variables may hold. A wrong one is an error of whoever opens a device, not a default.
import t from "tap";
import type { Environment } from "./support/child/environment.ts";
import { answer } from "./support/child.ts";

const ask = (environment: NodeJS.ProcessEnv) => answer<Environment>("environment.ts", { environment });

t.test("bytes", async (t) => {
  const GiB = 2 ** 30;
  const right = {
    "1e9": 1e9,
    "3000000000": 3e9,
    "4g": 4 * GiB,
    "1.5 GiB": 1.5 * GiB,
    "900MB": 900 * 2 ** 20,
  };
  for (const [text, bytes] of Object.entries(right)) {
    t.strictSame((await ask({ LONGSEQ_MEMORY_LIMIT: text })).memoryLimit, bytes, text);
  }
  const wrong = [
    ...["much", "-1g", "0", "4 gibs", "4_GB", "0x10", "inf"].map((text) => ["LONGSEQ_MEMORY_LIMIT", text]),
    ["LONGSEQ_MASK_BUDGET", "half"],
    ["LONGSEQ_SHARED_BYTES", "99 kilo"],
  ] as const;
  for (const [name = "", text] of wrong) {
    const { errors } = await ask({ [name]: text });
    const message = `${name}: is "${text}", expected bytes, such as 512m or 4g`;
    t.strictSame(errors[0], { code: "ERR_OPTION", message }, text);
  }
});

t.test("threads", async (t) => {
  t.equal((await ask({ LONGSEQ_THREADS: "3" })).threads, 3);
  for (const text of ["0", "-2", "1025", "2.5", "many", "99999999999999999999"]) {
    const { errors } = await ask({ LONGSEQ_THREADS: text });
    const message = `LONGSEQ_THREADS: is "${text}", expected a whole number from 1 to 1024`;
    t.strictSame(errors, Array(2).fill({ code: "ERR_OPTION", message }), text);
  }
});

t.test("the instruction set", async (t) => {
  t.equal((await ask({ LONGSEQ_ISA: "base" })).instructionSet, "base");
  const { errors } = await ask({ LONGSEQ_ISA: "avx" });
  t.equal(errors[0]?.code, "ERR_OPTION");
  t.match(errors[0]?.message, /LONGSEQ_ISA: is "avx", expected "base", "avx2"/);
});

t.test("none, or empty ones", async (t) => {
  const names = ["MEMORY_LIMIT", "MASK_BUDGET", "SHARED_BYTES", "THREADS", "ISA"];
  t.strictSame((await ask(Object.fromEntries(names.map((name) => [`LONGSEQ_${name}`, ""])))).errors, []);
});
