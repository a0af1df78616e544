// Code compiled for AVX must not reach a processor without it. The linker keeps the first copy of an inline function that
// several objects define, so no such copy may come from an AVX object unless the function is that instruction set's own.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { root, skipFileOnGpu } from "../support/devices.ts";
import { readElf } from "./elf.ts";

skipFileOnGpu("it reads the build");

interface LinkedObject {
  readonly path: string;
  /** The instruction set, of an object that not every processor can run. */
  readonly isa: string | undefined;
}

const build = join(root, "build/cmake");

/** The objects in the order in which the linker saw them. */
function linkedObjects(): LinkedObject[] {
  const map = readFileSync(join(build, "longseq.map"), "utf8");
  return [...map.matchAll(/^LOAD (.*\.o)$/gm)].flatMap(([, path]) => {
    if (path === undefined || !path.startsWith("CMakeFiles/")) return [];
    const isa = /^CMakeFiles\/cpu_(\w+)\.dir\//.exec(path)?.[1];
    return [{ path: join(build, path), isa: isa === "base" ? undefined : isa }];
  });
}

/** The functions that the linker takes from an AVX object though any object may define and call them. */
function hazards(objects: readonly LinkedObject[]): string[] {
  const seen = new Set<string>();
  const found: string[] = [];
  for (const { path, isa } of objects) {
    const shared = readElf(path).symbols.filter(
      (symbol) => symbol.isDefined && symbol.isFunction && ["weak", "unique"].includes(symbol.binding),
    );
    for (const { name } of shared) {
      const isOwn = isa !== undefined && name.includes(`7longseq${isa.length}${isa}`);
      if (isa !== undefined && !isOwn && !seen.has(name)) found.push(`${name} in ${path}`);
      seen.add(name);
    }
  }
  return found;
}

t.test("no function that objects share comes from an AVX object", async (t) => {
  const objects = linkedObjects();
  const isas = new Set(objects.flatMap(({ isa }) => isa ?? []));
  t.strictSame([...isas], process.arch === "x64" ? ["avx2", "avx512", "avx512bf16"] : []);
  const firstAvx = objects.findIndex(({ isa }) => isa !== undefined);
  t.ok(
    objects.slice(firstAvx === -1 ? objects.length : firstAvx).every(({ isa }) => isa !== undefined),
    "the baseline objects are linked first",
  );
  t.strictSame(hazards(objects), []);
});

t.test("the check finds the hazard", { skip: process.arch !== "x64" && "AVX is x86's" }, async (t) => {
  const folder = t.testdir({
    "shared.h": "[[gnu::noinline]] inline int shared(int x) { return x * x; }\n",
    "base.cc": '#include "shared.h"\nint base(int x) { return shared(x); }\n',
    "avx2.cc":
      '#include "shared.h"\nnamespace longseq::avx2 { template <class T> [[gnu::noinline]] T own(T x) { return x + x; }\n' +
      "int kernel(int x) { return shared(x) + own(x); } }\n",
  });
  const compile = (name: string): string => {
    execFileSync(process.env.CXX ?? "c++", ["-O2", "-c", `${name}.cc`, "-o", `${name}.o`], { cwd: folder });
    return join(folder, `${name}.o`);
  };
  const base = { path: compile("base"), isa: undefined };
  const avx2 = { path: compile("avx2"), isa: "avx2" };
  t.strictSame(hazards([base, avx2]), []);
  t.strictSame(hazards([avx2]), [`_Z6sharedi in ${avx2.path}`]);
  t.strictSame(hazards([avx2, base]), [`_Z6sharedi in ${avx2.path}`]);
});
