// Rows from all ranks, and sums of all ranks' terms: in one message to all peers where they are few, else to one after the other.
import t from "tap";
import { Communicator, Device, Tensor } from "../../lib/index.ts";
import { native } from "../../lib/native.ts";
import { gathering, scattering } from "../../lib/parallel/steps.ts";
import { Scope } from "../../lib/scope.ts";
import { handleOf } from "../../lib/tensor.ts";

const counts = [2, 1, 0] as const;
const size = counts.length;
/** Two rows of so many float32 columns are 64 bytes, or the 128 MiB from which on messages go one by one. */
const widths = { "few rows": 8, "many rows": 1 << 24 };

/** The first and the last value of each row of x, [1, n, columns]. */
async function ends(x: Tensor, columns: number): Promise<number[][]> {
  return Promise.all(
    Array.from({ length: x.shape[1] ?? 0 }, async (_, row) => {
      const values = x.slice(1, row, row + 1);
      const [first, last] = [values.slice(2, 0, 1), values.slice(2, columns - 1, columns)];
      return [...(await first.data()), ...(await last.data())];
    }),
  );
}

for (const [name, columns] of Object.entries(widths)) {
  const rowsOf = (rank: number, value: number, device: Device) => {
    const rows = Tensor.empty([1, counts[rank] ?? 0, columns], { device });
    native.fill(handleOf(rows, "rows"), value);
    return rows;
  };
  const ranks = () => Communicator.local(Array.from({ length: size }, () => new Device()));

  t.test(`${name}: gathered`, async (t) => {
    await Scope.run(async () => {
      const found = ranks().map((communicator) => {
        const { rank, device } = communicator;
        const arrivals: number[] = [];
        const whole = gathering(communicator, rowsOf(rank, rank + 1, device), counts, ({ peer, rows }) => {
          t.equal(rows.shape[1], counts[peer], "a peer's rows");
          arrivals.push(peer);
        });
        return { rank, arrivals, whole };
      });
      for (const { rank, arrivals, whole } of found) {
        t.strictSame(arrivals, [rank, (rank + 2) % size, (rank + 1) % size], "its own first");
        t.strictSame(
          await ends(whole, columns),
          [1, 1, 2].map((value) => [value, value]),
          `rank ${rank}`,
        );
      }
    });
  });

  t.test(`${name}: scattered`, async (t) => {
    await Scope.run(async () => {
      const found = ranks().map((communicator) => {
        const { rank, device } = communicator;
        const made: number[] = [];
        const sum = scattering(communicator, counts, (peer) => {
          made.push(peer);
          return rowsOf(peer, 10 * (rank + 1) + peer, device);
        });
        return { rank, made, sum };
      });
      for (const { rank, made, sum } of found) {
        t.strictSame(made, [(rank + 1) % size, (rank + 2) % size, rank], "its own last");
        const value = 60 + 3 * rank;
        t.strictSame(
          await ends(sum.wait(), columns),
          Array.from({ length: counts[rank] ?? 0 }, () => [value, value]),
          `rank ${rank}`,
        );
      }
    });
  });
}
