// What AttentionMask refuses, and how.
import { execFileSync } from "node:child_process";
import fc from "fast-check";
import { AttentionMask } from "longseq";
import t from "tap";

t.test("bad input", async (t) => {
  const any = (value: unknown) => value as never;
  const mask = AttentionMask.causal(3, 4);
  const refused: [string, () => unknown, string, string, RegExp][] = [];
  const kind = (what: string, call: () => unknown, message: RegExp) =>
    refused.push([what, call, "TypeError", "ERR_OPTION", message]);
  const range = (code: string, what: string, call: () => unknown, message: RegExp) =>
    refused.push([what, call, "RangeError", code, message]);
  for (const value of [undefined, null, "3", {}, [3], true, 3n, Symbol("3")]) {
    if (value !== undefined) kind("keys", () => AttentionMask.causal(3, any(value)), /causal: keys is /);
    kind("queries", () => AttentionMask.causal(any(value)), /causal: queries is /);
    kind("left", () => AttentionMask.window(3, 3, any(value), 0), /window: left is /);
    kind("right", () => AttentionMask.window(3, 3, 0, any(value)), /window: right is /);
    kind("prefixLength", () => AttentionMask.prefix(3, any(value)), /prefix: prefixLength is /);
    kind("cuSeqlens", () => AttentionMask.documents(any([0, value])), /documents: cuSeqlens\[1\] is /);
    kind("sees", () => AttentionMask.from(3, 3, any(value)), /from: sees is /);
    if (value !== true) {
      kind("values", () => AttentionMask.dense(any([value]), 1, 1), /dense: values\[0\] is /);
      kind("result", () => AttentionMask.from(2, 2, () => any(value)), /from: sees\(0, 0\) is /);
    }
    if (!Array.isArray(value)) {
      kind("values", () => AttentionMask.dense(any(value), 1, 1), /dense: values is /);
      kind("cuSeqlens", () => AttentionMask.documents(any(value)), /documents: cuSeqlens is /);
    }
    kind("other", () => mask.and(any(value)), /and: other is /);
    kind("other", () => mask.or(any(value)), /or: other is /);
    if (!Array.isArray(value)) {
      kind(
        "queries",
        () => mask.select(any(value), []),
        /select: queries is .*, expected an array of \{ start/,
      );
      kind("keys", () => mask.select([], any(value)), /select: keys is /);
    }
    range("ERR_OPTION", "a piece", () => mask.select([any(value)], []), /select: queries holds a piece that/);
  }
  kind("values", () => AttentionMask.dense(any(new Float32Array(1)), 1, 1), /dense: values is /);
  kind(
    "a promise",
    () =>
      AttentionMask.from(
        2,
        2,
        any(async () => false),
      ),
    /sees\(0, 0\) is object/,
  );
  for (const value of [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 31, 2 ** 53]) {
    range("ERR_SHAPE", "queries", () => AttentionMask.causal(value, 3), /causal: queries is /);
    range("ERR_SHAPE", "keys", () => AttentionMask.window(3, value, 0, 0), /window: keys is /);
    range("ERR_SHAPE", "tokens", () => AttentionMask.prefix(value, 0), /prefix: tokens is /);
    range("ERR_SHAPE", "keys", () => AttentionMask.dense([], 3, value), /dense: keys is /);
    range("ERR_SHAPE", "queries", () => AttentionMask.from(value, 3, () => true), /from: queries is /);
  }
  range("ERR_OPTION", "left", () => AttentionMask.window(3, 3, -2, 0), /left is -2, expected -1/);
  range("ERR_OPTION", "right", () => AttentionMask.window(3, 3, 0, 0.5), /right is 0.5, expected an integer/);
  range("ERR_OPTION", "prefix", () => AttentionMask.prefix(3, 4), /prefixLength is 4, expected 0 to 3/);
  range("ERR_SHAPE", "no end", () => AttentionMask.documents([]), /cuSeqlens is empty/);
  range("ERR_OPTION", "begin", () => AttentionMask.documents([1, 2]), /begins with 1, expected 0/);
  range("ERR_OPTION", "order", () => AttentionMask.documents([0, 5, 3]), /cuSeqlens\[2\] is 3, expected 5/);
  range("ERR_SHAPE", "length", () => AttentionMask.documents([0, 2 ** 31]), /cuSeqlens is 2147483648/);
  range("ERR_SHAPE", "count", () => AttentionMask.dense(new Uint8Array(5), 2, 3), /has 5 values, expected 6/);
  range("ERR_SHAPE", "and", () => mask.and(AttentionMask.causal(4, 3)), /shape \[4, 3\], expected \[3, 4\]/);
  range("ERR_SHAPE", "or", () => mask.or(AttentionMask.causal(4, 3)), /shape \[4, 3\], expected \[3, 4\]/);
  const pieces: [start: number, length: number, message: RegExp][] = [
    [
      -1,
      2,
      /select: queries has a piece of 2 from -1, expected pieces that are ascending, disjoint and within 0 to 3/,
    ],
    [0, -1, /a piece of -1 from 0/],
    [2, 2, /a piece of 2 from 2/],
    [2 ** 53 - 1, 2 ** 53 - 1, /a piece of 9007199254740991 from/],
    [0.5, 1, /holds a piece that is not/],
  ];
  for (const [start, length, message] of pieces)
    range("ERR_OPTION", "a piece", () => mask.select([{ start, length }], []), message);
  const twice = [
    { start: 0, length: 2 },
    { start: 1, length: 1 },
  ];
  range(
    "ERR_OPTION",
    "order",
    () => mask.select([], twice),
    /keys has a piece of 1 from 1, expected .* to 4/,
  );
  for (const [what, call, name, code, message] of refused) t.throws(call, { name, code, message }, what);

  const known = new Set(["ERR_SHAPE", "ERR_OPTION", "ERR_OUT_OF_MEMORY"]);
  const rules = ["causal", "window", "documents", "prefix", "dense"] as const;
  const property = fc.property(
    fc.constantFrom(...rules),
    fc.array(fc.anything(), { maxLength: 5 }),
    (rule, args) => {
      try {
        (AttentionMask[rule] as (...args: unknown[]) => AttentionMask)(...args).dispose();
      } catch (error) {
        return known.has((error as { code: string }).code);
      }
      return true;
    },
  );
  t.doesNotThrow(() => fc.assert(property, { numRuns: 2000 }));
});

t.test("out of memory leaves the process usable", async (t) => {
  const program = `
    import { AttentionMask } from "longseq";
    const codes = [
      () => AttentionMask.causal(2 ** 31 - 1),
      () => AttentionMask.dense([], 2 ** 31 - 1, 0),
      () => AttentionMask.from(2 ** 31 - 1, 0, () => true),
      () => AttentionMask.causal(2 ** 20).toDense(),
      () => AttentionMask.from(3, 2 ** 31 - 1, () => true),
      () => AttentionMask.window(2 ** 20, 2 ** 20, 2 ** 18, 2 ** 18).not().or(AttentionMask.window(2 ** 20, 2 ** 20, 9, 9)),
    ].map((make) => {
      try {
        return make().kind;
      } catch (error) {
        return error.code;
      }
    });
    console.log(JSON.stringify([...codes, AttentionMask.causal(2).density]));
  `;
  const env = { ...process.env, LONGSEQ_MEMORY_LIMIT: "32m" };
  const output = execFileSync(process.execPath, ["--input-type=module", "-e", program], {
    env,
    encoding: "utf8",
  });
  t.same(JSON.parse(output), [...Array(6).fill("ERR_OUT_OF_MEMORY"), 0.75]);
});
