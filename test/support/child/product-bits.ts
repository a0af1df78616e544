// Prints hashes of products, for shapes whose work is cut in different ways, twice each; with the argument "errors" also
// which are wrong: as JSON.
import { createHash } from "node:crypto";
import { info, linearBackward, matmul, Tensor } from "longseq";
import { bitsOf } from "../bits.ts";
import { bounds, type FloatType, floatTypes, relativeError } from "../compare.ts";
import { matrixOf, product } from "../product.ts";

export interface ProductReport {
  threads: number;
  instructionSet: string;
  hashes: Record<string, [first: string, second: string]>;
  /** Those whose error is above its bound. */
  wrong: string[];
}

const sizes = [
  [1, 700, 300],
  [200, 100, 110],
  [40, 2100, 26],
  [37, 33, 31],
] as const;
const { threads, instructionSet } = info().cpu;
const report: ProductReport = { threads, instructionSet, hashes: {}, wrong: [] };

async function hashed(tensors: readonly Tensor[]): Promise<string> {
  const sum = createHash("sha256");
  for (const tensor of tensors) sum.update(await bitsOf(tensor));
  return sum.digest("hex");
}

async function solve([M, K, N]: (typeof sizes)[number], dtype: FloatType): Promise<void> {
  const a = Tensor.normal([M, K], { seed: 1, dtype });
  const weight = Tensor.normal([N, K], { seed: 2, dtype });
  const dy = Tensor.normal([M, N], { seed: 3, dtype });
  const run = () => {
    const { dx, dweight, dbias } = linearBackward({ x: a, weight, dy }, { hasBias: true });
    return [matmul(a, weight, { transposeB: true }), dx, dweight, dbias as Tensor] as const;
  };
  const [y, dx, dweight] = run();
  const name = `${[M, K, N]} ${dtype}`;
  report.hashes[name] = [await hashed(run()), await hashed(run())];
  if (!process.argv.includes("errors")) return;
  const expected = {
    y: product(await matrixOf(a), await matrixOf(weight, true)),
    dx: product(await matrixOf(dy), await matrixOf(weight)),
    dweight: product(await matrixOf(dy, true), await matrixOf(a)),
  };
  for (const [which, tensor] of Object.entries({ y, dx, dweight })) {
    const error = relativeError(await tensor.data(), expected[which as keyof typeof expected].values);
    if (!(error < bounds[dtype].result)) report.wrong.push(`${which}, ${name}: ${error}`);
  }
}

for (const size of sizes) for (const dtype of floatTypes) await solve(size, dtype);
console.log(JSON.stringify(report));
