// The addon loads on the systems that the README names: nothing in it needs a newer C library, or another C++ one.
import { createRequire } from "node:module";
import t from "tap";
import { root, skipFileOnGpu } from "../support/devices.ts";
import { readElf } from "./elf.ts";

skipFileOnGpu("it is about the file that users install");

const GLIBC_FLOOR = [2, 28];
// gcc 8's, the compiler of the oldest such system.
const GCC_FLOOR = [7, 0, 0];
const SYSTEM_LIBRARIES = /^(lib(c|m|dl|pthread|rt|gcc_s)|ld-linux-[a-z0-9-]+)\.so\.[0-9]$/;

const addon = readElf(
  (createRequire(import.meta.url)("node-gyp-build") as { path(root: string): string }).path(root),
);

/** The symbols whose version is `family` and newer than `floor`. */
function newer(family: string, floor: readonly number[]): string[] {
  return addon.symbols
    .filter(({ version }) => {
      if (version === undefined || !version.startsWith(`${family}_`)) return false;
      const numbers = version
        .slice(family.length + 1)
        .split(".")
        .map(Number);
      const difference = numbers.map((number, i) => number - (floor[i] ?? 0)).find((part) => part !== 0) ?? 0;
      return !(difference <= 0);
    })
    .map(({ name, version }) => `${name} needs ${version}`);
}

t.test("the addon needs no symbol newer than glibc 2.28 (define it in cuda/core/glibc.cc)", async (t) => {
  t.strictSame(newer("GLIBC", GLIBC_FLOOR), []);
  t.strictSame(newer("GCC", GCC_FLOOR), []);
  const families = new Set(addon.symbols.flatMap(({ version }) => version?.replace(/_[^_]*$/, "") ?? []));
  t.strictSame([...families].sort(), ["GCC", "GLIBC"], "and of no other library, nor of glibc's ABI markers");
});

t.test("every other symbol that it needs is Node-API's", async (t) => {
  const unversioned = addon.symbols.filter(
    (symbol) => !symbol.isDefined && symbol.binding === "global" && symbol.version === undefined,
  );
  t.strictSame(
    unversioned.filter(({ name }) => !/^(napi|node_api)_/.test(name)).map(({ name }) => name),
    [],
  );
});

t.test("it needs the C library's own files alone", async (t) => {
  t.strictSame(
    addon.needed.filter((library) => !SYSTEM_LIBRARIES.test(library)),
    [],
  );
});

t.test("it exports what Node looks for and nothing else", async (t) => {
  t.strictSame(
    addon.symbols
      .filter((symbol) => symbol.isDefined)
      .map(({ name }) => name)
      .sort(),
    ["napi_register_module_v1", "node_api_module_get_api_version_v1"],
  );
});
