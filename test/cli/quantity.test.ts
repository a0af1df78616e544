import fc from "fast-check";
import t from "tap";
import {
  formatBytes,
  formatFigure,
  formatLength,
  median,
  parseLength,
  parseLengths,
  rateUnit,
} from "../../lib/cli/quantity.ts";

t.test("lengths", async (t) => {
  const lengths = { 1024: "1024", 131072: "128k", 1048576: "1m", 128000: "128000", 2048: "2K", 7: "7" };
  for (const [length, text] of Object.entries(lengths)) t.equal(parseLength(text), Number(length), text);
  t.same(parseLengths("4k,1k, 128000,1024"), [1024, 4096, 128000]);
  for (const text of ["", "k", "0", "-1", "1.5k", "1g", "1e3", "2048m", "1k,,2k", "1k,"]) {
    t.throws(() => parseLengths(text), /sequence length/, JSON.stringify(text));
  }
});

t.test("lengths are written as they were meant", async (t) => {
  const written = [1024, 98304, 2 ** 20, 128000, 1000, 1023].map(formatLength);
  t.same(written, ["1k", "96k", "1m", "128,000", "1,000", "1,023"]);
});

t.test("every length reads back as it is written", async (t) => {
  const anyLength = fc.integer({ min: 1, max: 2 ** 31 - 1 });
  const readsBack = fc.property(anyLength, (length) => {
    return parseLength(formatLength(length).replaceAll(",", "")) === length;
  });
  t.doesNotThrow(() => fc.assert(readsBack));
});

t.test("figures", async (t) => {
  t.same([0, 0.01234, 1.234, 12.34, 123.4, 12345.6].map(formatFigure), [
    "0",
    "0.012",
    "1.23",
    "12.3",
    "123",
    "12,346",
  ]);
  t.same([0, 1000, 1024, 1.5 * 2 ** 30].map(formatBytes), ["0 B", "1000 B", "1.00 KiB", "1.50 GiB"]);
  t.same([rateUnit(0.3).name, rateUnit(1).name], ["GFLOP/s", "TFLOP/s"]);
  t.same([median([3, 1, 2]), median([4, 1, 3, 2])], [2, 2.5]);
});
