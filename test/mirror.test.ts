// lib/native.ts and native-operations.ts say in types what cuda/addon exports: the same names, the same number of
// arguments.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import t from "tap";
import { root, skipFileOnGpu } from "./support/devices.ts";

skipFileOnGpu("it reads the sources");
const { default: ts } = await import("typescript");

/** The methods of an interface, by name, with how many parameters each has. */
function declared(name: string, source: string): Record<string, number> {
  const path = join(root, source);
  const file = ts.createSourceFile(path, readFileSync(path, "utf8"), ts.ScriptTarget.ES2022);
  const methods: Record<string, number> = {};
  for (const statement of file.statements) {
    if (!ts.isInterfaceDeclaration(statement) || statement.name.text !== name) continue;
    for (const member of statement.members) {
      if (ts.isMethodSignature(member)) methods[member.name.getText(file)] = member.parameters.length;
    }
  }
  return methods;
}

function exported(): Record<string, number> {
  const find = createRequire(import.meta.url)("node-gyp-build") as (root: string) => object;
  const functions = Object.entries(find(root) as Record<string, { arity: number }>);
  return Object.fromEntries(functions.map(([name, { arity }]) => [name, arity]));
}

t.test("names and arity", async (t) => {
  const native = {
    ...declared("Native", "lib/native.ts"),
    ...declared("NativeOperations", "lib/native-operations.ts"),
  };
  t.ok(Object.keys(native).length > 20);
  t.strictSame(Object.entries(exported()).sort(), Object.entries(native).sort());
});
