// Which step of a ring rounds the sums of a rank's rows.
import t from "tap";
import { ringParts } from "../../lib/parallel/ring-parts.ts";

const contiguous = [0, 1, 2].map((rank) => [{ start: 10 * rank, length: 10 }]);
const zigzag = [0, 1, 2].map((rank) => [
  { start: 5 * rank, length: 5 },
  { start: 5 * (5 - rank), length: 5 },
]);

t.test("the last one, where it takes all of them", (t) => {
  // The nearest rank's keys come last, and all of these rows see them.
  const [causal] = ringParts(zigzag, 1, { causal: true }).merged;
  t.strictSame(causal, { start: 0, length: 10, roundedBy: 2 });
  // Rows that only one step takes are rounded by it.
  const { merged } = ringParts(contiguous, 1, { window: [2, 3] });
  t.strictSame(merged, [
    { start: 0, length: 2, roundedBy: 2 },
    { start: 7, length: 3, roundedBy: 1 },
  ]);
  t.end();
});

t.test("none, where each takes a part of what all of them take", (t) => {
  const { merged } = ringParts(contiguous, 1, { window: [7, 7] });
  t.strictSame(merged, [{ start: 0, length: 10, roundedBy: -1 }]);
  t.end();
});
