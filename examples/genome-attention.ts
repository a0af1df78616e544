// Causal attention over a whole genome: the lambda phage's 48,502 bases, forward and backward, held against the
// `reference` implementation on rows and columns spread over the sequence.
//
// The reference materialises its scores, which for the whole sequence would be 9.4 GB a head; for 64 queries
// against all keys they are 12 MB. So it computes
//   out, log-sum-exp and dq  for the chosen queries, at their positions, against all keys;
//   dk and dv                for the chosen keys, at their positions, from all queries.
// Every entry of these depends on the whole sequence.
//
//   npm run example:genome
import { pathToFileURL } from "node:url";
import { attentionBackward, attentionForward, Device, type Piece, readFasta, Scope, Tensor } from "longseq";

export interface Settings {
  /** A FASTA file; its first record is used. */
  genome: string;
  heads: number;
  headDim: number;
  /** How many queries, and how many keys, are held against the reference. */
  checked: number;
}

export interface Outcome {
  bases: number;
  forwardSeconds: number;
  backwardSeconds: number;
  peakBytes: number;
  /** ‖x - reference‖ / ‖reference‖ of what was checked. */
  errors: Record<"out" | "logSumExp" | "dq" | "dk" | "dv", number>;
}

export async function genomeAttention({ genome, heads, headDim, checked }: Settings): Promise<Outcome> {
  const [record] = await readFasta(genome);
  if (!record) throw new Error(`${genome}: no record`);
  const bases = record.sequence.length;
  const embedded = embed(record.sequence, modelSize);
  using device = new Device("cpu");
  // Every tensor below is freed at the end of the scope.
  return await Scope.run(async () => {
    const shape = [1, bases, heads, headDim];
    const [q, k, v] = [1, 2, 3].map((seed) => {
      return Tensor.from(projected(embedded, heads * headDim, seed), shape, { device });
    }) as [Tensor, Tensor, Tensor];
    const dout = Tensor.normal(shape, { device, seed: 4 });
    await device.synchronize();

    device.resetPeak();
    let start = performance.now();
    const { out, logSumExp } = attentionForward(q, k, v, { causal: true });
    await device.synchronize();
    const forwardSeconds = (performance.now() - start) / 1000;
    start = performance.now();
    const gradients = attentionBackward({ q, k, v, out, logSumExp, dout }, { causal: true });
    await device.synchronize();
    const backwardSeconds = (performance.now() - start) / 1000;
    const { peakBytes } = device.memory();

    const errors = await compare({ q, k, v, out, logSumExp, dout, ...gradients }, spread(bases, checked));
    return { bases, forwardSeconds, backwardSeconds, peakBytes, errors };
  });
}

type Whole = Record<"q" | "k" | "v" | "out" | "logSumExp" | "dout" | "dq" | "dk" | "dv", Tensor>;

/** The whole sequence's results at `rows`, against the reference's. */
async function compare(whole: Whole, rows: readonly number[]): Promise<Outcome["errors"]> {
  const { q, k, v, out, logSumExp, dout } = whole;
  const chosen: Piece[] = rows.map((row) => ({ start: row, length: 1 }));
  const all: Piece[] = [{ start: 0, length: q.shape[1] ?? 0 }];
  const reference = { causal: true, implementation: "reference" } as const;

  const queries = { ...reference, queryPositions: chosen, keyPositions: all };
  const qRows = await gather(q, 1, rows);
  const expected = attentionForward(qRows, k, v, queries);
  const saved = { q: qRows, k, v, ...expected, dout: await gather(dout, 1, rows) };
  const { dq } = attentionBackward(saved, queries);

  const keys = { ...reference, queryPositions: all, keyPositions: chosen };
  const kRows = await gather(k, 1, rows);
  const vRows = await gather(v, 1, rows);
  // out and logSumExp are those of all keys, as for a step of a ring.
  const { dk, dv } = attentionBackward({ q, k: kRows, v: vRows, out, logSumExp, dout }, keys);
  return {
    out: await relativeError(await gather(out, 1, rows), expected.out),
    logSumExp: await relativeError(await gather(logSumExp, 2, rows), expected.logSumExp),
    dq: await relativeError(await gather(whole.dq, 1, rows), dq),
    dk: await relativeError(await gather(whole.dk, 1, rows), dk),
    dv: await relativeError(await gather(whole.dv, 1, rows), dv),
  };
}

const modelSize = 64;

/** [tokens, size]: a fixed random vector a base, plus sines of the position. */
function embed(sequence: Uint8Array, size: number): Float32Array {
  const tables = new Map<number, Float32Array>();
  const embedded = new Float32Array(sequence.length * size);
  for (let position = 0; position < sequence.length; position++) {
    const base = sequence[position] ?? 0;
    let table = tables.get(base);
    if (!table) {
      table = normal(size, base);
      tables.set(base, table);
    }
    for (let i = 0; i < size; i++) {
      const angle = position / 10000 ** ((i - (i % 2)) / size);
      embedded[position * size + i] = (table[i] ?? 0) + (i % 2 === 0 ? Math.sin(angle) : Math.cos(angle));
    }
  }
  return embedded;
}

/** [tokens, columns]: `x [tokens, modelSize]` times a random matrix. */
function projected(x: Float32Array, columns: number, seed: number): Float32Array {
  const weight = normal(modelSize * columns, 1000 + seed).map((value) => value / Math.sqrt(modelSize));
  const tokens = x.length / modelSize;
  const y = new Float32Array(tokens * columns);
  for (let token = 0; token < tokens; token++) {
    const row = y.subarray(token * columns, (token + 1) * columns);
    for (let i = 0; i < modelSize; i++) {
      const value = x[token * modelSize + i] ?? 0;
      for (let column = 0; column < columns; column++) {
        row[column] = (row[column] ?? 0) + value * (weight[i * columns + column] ?? 0);
      }
    }
  }
  return y;
}

/** Normal values that are the same in every run (mulberry32, then Box-Muller). */
function normal(count: number, seed: number): Float32Array {
  let state = seed;
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return (((mixed ^ (mixed >>> 14)) >>> 0) + 0.5) / 2 ** 32;
  };
  return Float32Array.from({ length: count }, () => {
    return Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  });
}

/** First, last, and the ones between at equal distances. */
function spread(length: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => Math.round((i * (length - 1)) / (count - 1)));
}

/** The entries of `axis` at `rows`, as a tensor of their own. */
async function gather(tensor: Tensor, axis: number, rows: readonly number[]): Promise<Tensor> {
  const values = await tensor.data();
  const length = tensor.shape[axis] ?? 1;
  const inner = tensor.shape.slice(axis + 1).reduce((product, size) => product * size, 1);
  const outer = tensor.size / (length * inner);
  const gathered = new Float32Array(outer * rows.length * inner);
  for (let i = 0; i < outer; i++) {
    rows.forEach((row, j) => {
      const from = (i * length + row) * inner;
      gathered.set(values.subarray(from, from + inner), (i * rows.length + j) * inner);
    });
  }
  const shape = tensor.shape.with(axis, rows.length);
  return Tensor.from(gathered, shape, { device: tensor.device });
}

async function relativeError(tensor: Tensor, reference: Tensor): Promise<number> {
  const [values, expected] = await Promise.all([tensor.data(), reference.data()]);
  let difference = 0;
  let norm = 0;
  expected.forEach((value, i) => {
    difference += ((values[i] ?? Number.NaN) - value) ** 2;
    norm += value ** 2;
  });
  return Math.sqrt(difference / norm);
}

async function main(genome: string) {
  const { bases, forwardSeconds, backwardSeconds, peakBytes, errors } = await genomeAttention({
    genome,
    heads: 2,
    headDim: 64,
    checked: 64,
  });
  console.log(`${genome}: ${bases.toLocaleString("en-US")} bases, 2 heads of 64, causal, float32`);
  console.log(`forward   ${forwardSeconds.toFixed(2)} s`);
  console.log(`backward  ${backwardSeconds.toFixed(2)} s`);
  console.log(`memory    ${(peakBytes / 2 ** 20).toFixed(0)} MiB at most, inputs and results included`);
  console.log("relative error on 64 rows (out, logSumExp, dq) and 64 keys (dk, dv) against the reference:");
  for (const [name, error] of Object.entries(errors))
    console.log(`  ${name.padEnd(9)} ${error.toExponential(1)}`);
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  await main(process.argv[2] ?? "test/data/lambda_phage_NC_001416.fa.gz");
}
