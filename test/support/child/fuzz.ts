// Calls everything with anything: the public functions with garbage among good arguments, the addon's functions with each
// other's handles. Prints as JSON what was thrown that has no code. That it comes to print is the main thing.
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import * as longseq from "longseq";
import { garbage, onlyRefused, publicCalls } from "../public-calls.ts";

export interface FuzzReport {
  calls: number;
  refused: number;
  /** Errors without a code of ours, with the call that they came from. */
  uncoded: string[];
  /** What the package has that is not called here. */
  untried: string[];
  /** Of an attention after all this. */
  result: number[];
}

const { Tensor } = longseq;
const [root = "", seed = "0", runs = "0"] = process.argv.slice(2);
// Garbage that is a path may be written to.
const folder = mkdtempSync(join(tmpdir(), "longseq-fuzz-"));
process.chdir(folder);
process.once("exit", () => rmSync(folder, { recursive: true }));
const report: FuzzReport = { calls: 0, refused: 0, uncoded: [], untried: [], result: [] };

async function attempt(name: string, args: readonly unknown[], call: () => unknown): Promise<void> {
  report.calls++;
  try {
    await call();
  } catch (error) {
    report.refused++;
    const { code, message } = error as { code?: unknown; message?: unknown };
    // A class that was given as a function is called: that is the caller's own error.
    if (String(message).startsWith("Class constructor")) return;
    if (typeof code !== "string" || !code.startsWith("ERR_")) {
      report.uncoded.push(`${name}(${fc.stringify(args)}): ${String(message)}`);
    }
  }
}

const everything = { ...publicCalls, ...onlyRefused };
for (const [name, [call, ...args]] of Object.entries(everything)) {
  const given = args.map(({ good }) => good);
  const anything = call as (...args: unknown[]) => unknown;
  await attempt(name, [], () => anything());
  for (const at of given.keys()) {
    for (const wrong of [undefined, null, 5, "x", {}, [], [null], 1n, Symbol("s")]) {
      await attempt(name, given.with(at, wrong), () => anything(...given.with(at, wrong)));
    }
  }
}

/** Every function, constructor and method that users may call. */
const isClass = (value: unknown) => /^class\b/.test(String(value));
const uncallable = new Set(["constructor", "dispose", "prototype", "length", "name"]);
const internal = new Set(["Tape.of", "Tape.gradients", "Tape.note", "Scope.owns", "Communicator.lend"]);
const hasPrivateConstructor = new Set([
  "Tensor",
  "AttentionMask",
  "SequenceShard",
  "Communicator",
  "SharedParameters",
]);
const methodsOf = (of: object) =>
  Object.entries(Object.getOwnPropertyDescriptors(of)).flatMap(([name, { value }]) =>
    typeof value === "function" && !uncallable.has(name) ? [name] : [],
  );
const names = Object.entries(longseq).flatMap(([name, value]) => {
  if (typeof value !== "function") return [];
  if (!isClass(value)) return [name];
  const methods = [...methodsOf(value), ...methodsOf(value.prototype)].map((method) => `${name}.${method}`);
  return hasPrivateConstructor.has(name) ? methods : [`new ${name}`, ...methods];
});
report.untried = names.filter((name) => !internal.has(name) && !Object.hasOwn(everything, name));

const calls = fc.oneof(
  ...Object.entries(publicCalls).map(([name, [call, ...args]]) =>
    fc
      .tuple(...args.map(({ values }) => values))
      .map((given) => ({ name, call: call as (...args: unknown[]) => unknown, given })),
  ),
);

for (const { name, call, given } of fc.sample(calls, { numRuns: Number(runs), seed: Number(seed) })) {
  await attempt(name, given, () => call(...given));
}

// The addon's own functions: what JavaScript code without our checks could do.
const native = createRequire(import.meta.url)("node-gyp-build")(root) as Record<
  string,
  ((...args: unknown[]) => unknown) & { arity: number }
>;
const call = (name: string, ...args: unknown[]) => native[name]?.(...args);
const ofDevice = call("deviceOpen", call("defaultDevice"));
const tensors = [[1, 4, 2, 8], [1, 2, 4], [4], []].map((shape) => call("tensorEmpty", ofDevice, 0, shape));
const handles = [
  ofDevice,
  ...tensors,
  call("tensorEmpty", ofDevice, 3, [4]),
  call("maskCausal", 4, 4),
  call("maskBuilder", 4, 4),
];
const [q, statistics] = tensors;
const attentionOptions = [1, 0, null, null, false, false, -1, -1, null, null, null, null, null];
const nativeArgument = fc.oneof(
  { weight: 4, arbitrary: fc.constantFrom<unknown>(...handles) },
  { weight: 2, arbitrary: fc.constantFrom<unknown>(q, q, statistics, [q], [statistics]) },
  fc.array(fc.constantFrom(-1, 0, 1, 2, 3, 4), { maxLength: 7 }),
  // A part of a tensor, or none.
  fc.tuple(fc.constantFrom(...handles), fc.integer({ min: -1, max: 4 }), fc.nat(4), fc.nat(5)),
  fc
    .tuple(fc.nat(attentionOptions.length - 1), garbage)
    .map(([index, value]) => attentionOptions.with(index, value as never)),
  garbage,
);
// It measures for a tenth of a second at each call.
const nativeNames = Object.keys(native).filter(
  (name) => typeof native[name] === "function" && name !== "measurePeak",
);
const nativeCalls = fc.constantFrom(...nativeNames).chain((name) => {
  const arity = native[name]?.arity ?? 0;
  const exact = fc.array(nativeArgument, { minLength: arity, maxLength: arity });
  return fc
    .oneof({ weight: 9, arbitrary: exact }, fc.array(nativeArgument, { maxLength: 13 }))
    .map((given) => ({ name, given }));
});
for (const { name, given } of fc.sample(nativeCalls, { numRuns: Number(runs), seed: Number(seed) })) {
  // Disposing these would end the fuzzing early.
  if (name.endsWith("Dispose") && handles.includes(given[0])) continue;
  if (name === "deviceClose" && given[0] === ofDevice) continue;
  await attempt(`native.${name}`, given, () => call(name, ...given));
}

const one = Tensor.from([1, 2, 3, 4, 5, 6, 7, 8], [1, 1, 1, 8]);
const out = await longseq.attention(one, one, one).data();
report.result = [...out];
console.log(JSON.stringify(report));
