import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { readFasta } from "longseq";
import t from "tap";

const folder = t.testdir({});
let count = 0;
async function fileOf(bytes: string | Uint8Array): Promise<string> {
  const path = join(folder, String(count++));
  await writeFile(path, bytes);
  return path;
}
const read = async (bytes: string | Uint8Array) => {
  const records = await readFasta(await fileOf(bytes));
  return records.map(({ name, description, sequence }) => [
    name,
    description,
    Buffer.from(sequence).toString(),
  ]);
};

t.test("the lambda phage", async (t) => {
  const [genome, ...others] = await readFasta("test/data/lambda_phage_NC_001416.fa.gz");
  t.same(others, []);
  t.match(genome?.name, "NC_001416.1");
  t.equal(genome?.description, "Enterobacteria phage lambda, complete genome");
  t.equal(genome?.sequence.length, 48502);
  t.match(Buffer.from(genome?.sequence ?? []).toString(), /^GGGCGGCGACCTCGCGGGTTTTCGCTATTTATG[ACGT]+$/);
});

t.test("records, line ends, case and compression", async (t) => {
  t.same(await read(">a first one\nACGT\nacgtn\n\n>b\r\nAC-T*\r\nA\r\n>c\rGG\rCC"), [
    ["a", "first one", "ACGTACGTN"],
    ["b", "", "AC-T*A"],
    ["c", "", "GGCC"],
  ]);
  const text = ">a\nAC\n";
  t.same(await read(gzipSync(text)), [["a", "", "AC"]]);
  // As bgzip writes it: several members end to end.
  t.same(await read(Buffer.concat([gzipSync(text), gzipSync("GT\n")])), [["a", "", "ACGT"]]);
});

t.test("spaces, comments, and the mark that some editors put first, are no part of it", async (t) => {
  t.same(await read(">a\nAC GT \r\n\t AC\t\n"), [["a", "", "ACGTAC"]]);
  const text = "; made by hand\n>a one; two\nAC\n;between\r\nGT\n;\n>b\nN\n; end";
  const expected = [
    ["a", "one; two", "ACGT"],
    ["b", "", "N"],
  ];
  t.same(await read(text), expected);
  t.same(await read(`\uFEFF${text}`), expected);
  t.same(await read(gzipSync(`\uFEFF${text}`)), expected);
  for (const text of [Uint8Array.of(0xef, 0x3e, 0x61, 0x0a, 0x41), "a >b\nA\n", " >a\nA\n", ">a\n ;c\nA\n"]) {
    await t.rejects(readFasta(await fileOf(text)), { code: "ERR_FILE", message: /line [12]: / });
  }
  const later = await fileOf(">a\nA;\n");
  await t.rejects(readFasta(later), { code: "ERR_FILE", message: /line 2: ";" is no part of a sequence/ });
  const twice = await fileOf("\uFEFF\uFEFF>a\nA\n");
  await t.rejects(readFasta(twice), { code: "ERR_FILE", message: /line 1: expected a title/ });
});

t.test("what is no FASTA is an error with the line", async (t) => {
  const wrong: [string | Uint8Array, RegExp][] = [
    ["", /holds no record/],
    ["\n\n", /holds no record/],
    ["ACGT\n", /line 1: expected a title/],
    [">a\nAC\nA1\n", /line 3: "1" is no part of a sequence/],
    [">a\nAC\u0001GT\n", /line 2: byte 1 is no part/],
    [">a\nAC>b\n", /line 2: ">" is no part/],
    [">a\n>b\nAC\n", /line 2: record "a" has no bases/],
    [">a\n", /record "a" has no bases/],
    [gzipSync(">a\nACGT\n").subarray(0, 20), /unexpected end of file/],
    [Buffer.of(0x1f, 0x8b, 0, 0), /./],
  ];
  for (const [bytes, message] of wrong) {
    const path = await fileOf(bytes);
    await t.rejects(readFasta(path), { code: "ERR_FILE", message }, String(message));
    await t.rejects(readFasta(path), { message: `readFasta: ${path}: ` });
  }
  await t.rejects(readFasta(join(folder, "absent")), { code: "ERR_FILE", message: /ENOENT/ });
  await t.rejects(readFasta("a\0b"), { code: "ERR_FILE" });
  await t.rejects(readFasta(Symbol("s") as never), {
    code: "ERR_OPTION",
    message: "readFasta: path is symbol, expected a string",
  });
});

t.test("a title without an end is an error, not the end of the process", async (t) => {
  const endless = await fileOf(gzipSync(Buffer.concat([Buffer.from(">"), Buffer.alloc(2 ** 21, "A")])));
  await t.rejects(readFasta(endless), { code: "ERR_FILE", message: /line 1: a title of 1048576 bytes/ });
});

t.test("records come back however their lines are cut", async (t) => {
  const sequence = fc.string({
    unit: fc.constantFrom("A", "C", "G", "T", "N"),
    minLength: 1,
    maxLength: 300,
  });
  const property = fc.asyncProperty(
    fc.array(sequence, { minLength: 1, maxLength: 4 }),
    fc.integer({ min: 1, max: 80 }),
    async (all, width) => {
      const lines = all.flatMap((bases, i) => [
        `>r${i} x`,
        ...(bases.match(new RegExp(`.{1,${width}}`, "g")) ?? []),
      ]);
      const back = await read(lines.join("\n"));
      return back.length === all.length && back.every(([, , bases], i) => bases === all[i]);
    },
  );
  await t.resolves(fc.assert(property, { numRuns: 30 }));
});
