// The rules of the code that can be read off its text.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import t from "tap";
import { root, skipFileOnGpu } from "./support/devices.ts";

skipFileOnGpu("it reads the sources");

interface Source {
  path: string;
  text: string;
  /** Without comments and the contents of texts. */
  code: string;
}

function sources(folder: string, suffix: RegExp): Source[] {
  const names = readdirSync(join(root, folder), { recursive: true, encoding: "utf8" });
  return names
    .filter((name) => suffix.test(name))
    .map((name) => {
      const text = readFileSync(join(root, folder, name), "utf8");
      const code = text
        .replace(/\/\*[\s\S]*?\*\//g, (comment) => comment.replace(/[^\n]/g, " "))
        .replace(/("|`)(?:\\.|(?!\1).)*?\1/gs, (literal) => literal.replace(/[^\n]/g, " "))
        .replace(/\/\/.*$/gm, "");
      return { path: join(folder, name), text, code };
    })
    .sort((a, b) => a.path.localeCompare(b.path));
}

const native = sources("cuda", /\.(h|cc|cu|cuh)$/);
const library = sources("lib", /\.ts$/);
const typescript = [
  ...library,
  ...sources("test", /\.ts$/),
  ...sources("bench", /\.ts$/),
  ...sources("examples", /\.ts$/),
];

/** The lines that a rule is broken on, as path:line. */
function found(
  files: readonly Source[],
  pattern: RegExp,
  isAllowed: (path: string) => boolean = () => false,
): string[] {
  return files
    .filter(({ path }) => !isAllowed(path))
    .flatMap(({ path, code }) =>
      code.split("\n").flatMap((line, i) => (pattern.test(line) ? [`${path}:${i + 1}`] : [])),
    );
}

const inAddon = (path: string) => path.startsWith("cuda/addon/");

t.test("native code", async (t) => {
  t.ok(native.length > 20);
  t.strictSame(
    found(native, /\bnapi_|\bNapi::|\bnode_api\b/, inAddon),
    [],
    "Node is known to cuda/addon alone",
  );
  t.strictSame(
    native
      .filter(({ path, text }) => !inAddon(path) && /#include <(napi|node)/.test(text))
      .map(({ path }) => path),
    [],
    "and so are its headers",
  );
  t.strictSame(
    found(native, /\b(printf|fprintf|puts|abort|exit|quick_exit)\s*\(|\bstd::(cout|cerr|clog)\b/),
    [],
  );
  t.strictSame(
    found(native, /\b_mm\d*_|__m(128|256|512)/, (path) => /^cuda\/(tile|attention)\//.test(path)),
    [],
  );
  t.strictSame(
    found(native, /\basm\b/, (path) => path.startsWith("cuda/tile/")),
    [],
    "assembly only in cuda/tile",
  );
  t.strictSame(
    native
      .filter(({ path, text }) => path.endsWith(".h") && !text.startsWith("#pragma once"))
      .map(({ path }) => path),
    [],
    "headers are guarded",
  );
  t.strictSame(found(native, /\b(TODO|FIXME|XXX)\b/), []);
});

t.test("what is compiled for each instruction set has no standard containers", async (t) => {
  const kernels = native.filter(({ path }) => path.endsWith("_cpu.cc") || path.startsWith("cuda/tile/"));
  t.ok(kernels.length >= 4);
  t.strictSame(found(kernels, /\bstd::(vector|string|map|function|shared_ptr|sort|copy|fill|max|min)\b/), []);
});

t.test("an operation's folder: its contract, its checks, its engine", async (t) => {
  // What is no operation: the addon, the engine, the tiles that kernels are made of, and their peak.
  const others = ["addon", "comm", "core", "peak", "tile", "transfer"];
  const folders = readdirSync(join(root, "cuda"), { withFileTypes: true }).filter((entry) =>
    entry.isDirectory(),
  );
  const names = folders.map(({ name }) => name).filter((name) => !others.includes(name));
  t.ok(names.length > 9);
  for (const name of names) {
    for (const suffix of [".h", ".cc"])
      t.ok(existsSync(join(root, "cuda", name, name + suffix)), name + suffix);
  }
});

t.test("the environment is read in few places", async (t) => {
  const readers = ["lib/cli/", "lib/launch/"];
  t.strictSame(
    found(library, /\bprocess\.env\b/, (path) => readers.some((reader) => path.startsWith(reader))),
    [],
  );
  t.strictSame(
    found(native, /\bgetenv\b/, (path) => path.startsWith("cuda/core/")),
    [],
  );
});

t.test("types", async (t) => {
  t.strictSame(found(typescript, /(:|<|\bas)\s*any\b|\bany\[\]/), []);
  t.strictSame(found(library, /\bas unknown as\b/), []);
});

t.test("who may import whom", async (t) => {
  const imports = (path: string) =>
    [...(sourceOf(path)?.text.matchAll(/ from "(\.[^"]+)"/g) ?? [])].map(([, from]) => from ?? "");
  const sourceOf = (path: string) => library.find((source) => source.path === path);
  for (const { path } of library.filter(({ path }) => !path.startsWith("lib/cli/"))) {
    t.strictSame(
      imports(path).filter((from) => from.includes("cli/")),
      [],
      `${path} does not import the command line`,
    );
  }
  // The command line uses the public API, but for what is its own affair, and for names that it lists.
  const internals =
    /^(errors|peak|values|launch\/\w[\w-]*|model\/(configuration|recompute)|parallel\/pending)\.ts$/;
  for (const { path } of library.filter(({ path }) => path.startsWith("lib/cli/"))) {
    const inside = imports(path).map((from) => join(dirname(path), from).replace(/^lib\//, ""));
    t.strictSame(
      inside.filter((from) => !from.startsWith("cli/") && from !== "index.ts" && !internals.test(from)),
      [],
      `${path} uses the public API`,
    );
  }
});

t.test("files are short, and named as things", async (t) => {
  // A third of tensor.ts is its methods' documentation.
  const most = (path: string) => (path === "lib/tensor.ts" ? 360 : 250);
  const long = library.filter(({ path, text }) => text.trimEnd().split("\n").length > most(path));
  t.strictSame(
    long.map(({ path, text }) => `${path}: ${text.trimEnd().split("\n").length}`),
    [],
  );
  const longNative = native.filter(({ text }) => text.trimEnd().split("\n").length > 650);
  t.strictSame(
    longNative.map(({ path }) => path),
    [],
  );
  const vague = /^(utils?|helpers?|common|base|misc|manager|impl)\b/;
  t.strictSame(
    [...native, ...typescript].filter(({ path }) => vague.test(basename(path))).map(({ path }) => path),
    [],
  );
});
