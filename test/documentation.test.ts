// Every example of the documentation compiles and runs, and says what comes out; everything public has one.
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import * as longseq from "longseq";
import t from "tap";
import type { Outcome } from "./support/child/examples.ts";
import { run } from "./support/child.ts";
import { root, skipFileOnGpu } from "./support/devices.ts";

skipFileOnGpu("it compiles the sources' examples");
const { compile, documentation, readmeExamples, withChecks } = await import("./support/examples.ts");

const exported = Object.keys(longseq);
const { declared, examples, written } = documentation();
const parent = join(root, ".tap");
mkdirSync(parent, { recursive: true });
const folder = mkdtempSync(join(parent, "examples-"));
t.teardown(() => rmSync(folder, { recursive: true }));

t.test("every function, class and method that is exported has an example", async (t) => {
  const isPublic = (name: string) => exported.includes(name.split(".")[0] ?? "");
  const names = [...declared.keys()].filter(isPublic);
  t.ok(
    exported.every((name) => names.includes(name)),
    `${exported} are declared in lib`,
  );
  for (const name of names) {
    const tags = declared.get(name) ?? [];
    // `using` is what shows dispose.
    if (!tags.includes("internal") && !name.endsWith(".dispose")) t.ok(tags.includes("example"), name);
  }
});

t.test("every example is found, and what it says comes out is checked", async (t) => {
  t.equal(examples.length, written, "every @example is found");
  t.equal(withChecks("f(1); // [2, 3]"), "expectEqual(f(1), [2,3]); // [2, 3]");
  t.equal(withChecks("m(); // 1 0, 1 1"), "expectEqual(m(), [1, 0, 1, 1]); // 1 0, 1 1");
  t.equal(withChecks("f(1); // waits"), "f(1); // waits");
});

t.test("every example compiles and runs", async (t) => {
  const modules = compile([...examples, ...readmeExamples()], folder, exported);
  t.ok(
    modules.some(({ name }) => name.startsWith("README")),
    "README.md has one",
  );
  const work = join(folder, "work");
  mkdirSync(work);
  const { code, signal, stdout, stderr } = await run("examples.ts", {
    args: [work, ...modules.map(({ path }) => path)],
  });
  const ended = stdout.split("\n").filter((line) => line !== "");
  for (const [at, { name, errors }] of modules.entries()) {
    const line = ended[at];
    // The first without a line is the one that ended the process.
    const error =
      line === undefined ? `the process ended: ${signal ?? code} ${stderr}` : (JSON.parse(line) as Outcome);
    t.same([...errors, ...(error === null ? [] : [error])], [], name);
    if (line === undefined) break;
  }
  t.equal(code, 0, "the process ended well");
});
