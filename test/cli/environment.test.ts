// The variables that are ours: one list of them, which the sources and README.md agree with.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { isOfOneLaunch, ownVariables, variableNames } from "../../lib/cli/environment.ts";
import { root, skipFileOnGpu } from "../support/devices.ts";

skipFileOnGpu("it reads the sources");

/** What the pattern's group finds in files of a folder, sorted. */
function found(folder: string, suffix: RegExp, pattern: RegExp): string[] {
  const names = readdirSync(join(root, folder), { recursive: true, encoding: "utf8" });
  const texts = names
    .filter((name) => suffix.test(name) && name !== join("cli", "environment.ts"))
    .map((name) => readFileSync(join(root, folder, name), "utf8"));
  return [...texts.join("\n").matchAll(pattern)].map(([, name = ""]) => name);
}

const sorted = (names: readonly string[]) => [...new Set(names)].sort();

t.test("all that are read are known, and no others", async (t) => {
  // In C++ a text: the same names are also macros'.
  const read = [
    ...found("lib", /\.ts$/, /(LONGSEQ_[A-Z_]+)/g),
    ...found("cuda", /\.(h|cc|cu)$/, /"(LONGSEQ_[A-Z_]+)/g),
    ...found("cuda", /\.cmake$/, /ENV\{(LONGSEQ_[A-Z_]+)\}/g),
  ];
  t.strictSame(variableNames, sorted(read));
});

t.test("README explains each", async (t) => {
  const rows = readFileSync(join(root, "README.md"), "utf8")
    .split("\n")
    .filter((line) => /^\| `LONGSEQ_/.test(line));
  const names = rows.flatMap((row) =>
    [...(row.split(" | ")[0] ?? "").matchAll(/LONGSEQ_[A-Z_]+/g)].map(String),
  );
  t.strictSame(names.sort(), variableNames);
});

t.test("those that are set", async (t) => {
  const environment = {
    LONGSEQ_TOKEN: "a secret",
    PATH: "/bin",
    LONGSEQ_DEVICE: "cpu",
    LONGSEQ_DEVICES: "",
    longseq_isa: "base",
    LONGSEQ_constructor: "x",
  };
  t.strictSame(ownVariables(environment), [
    { name: "LONGSEQ_DEVICE", value: "cpu", known: true },
    { name: "LONGSEQ_DEVICES", value: "", known: false },
    { name: "LONGSEQ_TOKEN", value: null, known: true },
    { name: "LONGSEQ_constructor", value: "x", known: false },
    { name: "longseq_isa", value: "base", known: false },
  ]);
  t.strictSame(
    ["RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "RENDEZVOUS", "TOKEN", "ISA"].map((name) =>
      isOfOneLaunch(`LONGSEQ_${name}`),
    ),
    [true, true, true, true, true, true, false],
  );
});
