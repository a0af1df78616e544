// Attention and its gradients as cuda/attention/attention.h states them: plain loops in float64 over one row of scores at
// a time. It shares nothing with the package.
import { at } from "./compare.ts";
import type { Predicate } from "./masks.ts";

export interface Shape {
  batch: number;
  queries: number;
  keys: number;
  /** Query heads. */
  heads: number;
  keyHeads: number;
  headDim: number;
}

/** What a query may look at and how a score is made, with every row's position and document written out. */
export interface Rule {
  scale: number;
  softcap: number;
  slopes: readonly number[] | undefined;
  causal: boolean;
  window: readonly [left: number, right: number];
  queryPositions: readonly number[];
  keyPositions: readonly number[];
  /** The number of each row's document. */
  documents: { queries: readonly number[]; keys: readonly number[] } | undefined;
  mask: Predicate | undefined;
}

export type Values = ArrayLike<number>;

export interface Inputs {
  q: Values;
  k: Values;
  v: Values;
  dout: Values;
  dlogSumExp: Values | undefined;
}

/** Sums, and beside each the sum of its terms' sizes: what rounding errors are to be measured by. */
export class Sums {
  readonly values: Float64Array;
  readonly sizes: Float64Array;

  constructor(length: number) {
    this.values = new Float64Array(length);
    this.sizes = new Float64Array(length);
  }

  /** Adds factor * x[from + d] to each sum start + d. */
  add(start: number, count: number, factor: number, x: Values, from: number, size = Math.abs(factor)): void {
    for (let d = 0; d < count; d++) {
      const term = at(x, from + d);
      this.values[start + d] = at(this.values, start + d) + factor * term;
      this.sizes[start + d] = at(this.sizes, start + d) + size * Math.abs(term);
    }
  }
}

export type Attended = Record<"out" | "logSumExp" | "dq" | "dk" | "dv", Sums>;

function sees(rule: Rule, i: number, j: number): boolean {
  const distance = at(rule.keyPositions, j) - at(rule.queryPositions, i);
  const [left, right] = rule.window;
  if (rule.documents && rule.documents.queries[i] !== rule.documents.keys[j]) return false;
  if (rule.causal && distance > 0) return false;
  if (left >= 0 && distance < -left) return false;
  if (right >= 0 && distance > right) return false;
  return rule.mask?.(i, j) ?? true;
}

export function attend(shape: Shape, rule: Rule, inputs: Inputs): Attended {
  const { batch, queries, keys, heads, keyHeads, headDim } = shape;
  const { q, k, v, dout, dlogSumExp } = inputs;
  const { scale, softcap, slopes } = rule;
  const ofQueries = batch * queries * heads * headDim;
  const ofKeys = batch * keys * keyHeads * headDim;
  const out = new Sums(ofQueries);
  const logSumExp = new Sums(batch * heads * queries);
  const dq = new Sums(ofQueries);
  const dk = new Sums(ofKeys);
  const dv = new Sums(ofKeys);

  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const keyHead = Math.floor(h / (heads / keyHeads));
      for (let i = 0; i < queries; i++) {
        const row = ((b * queries + i) * heads + h) * headDim;
        const statistic = (b * heads + h) * queries + i;
        const visible = Array.from({ length: keys }, (_, j) => j)
          .filter((j) => sees(rule, i, j))
          .map((j) => {
            const keyRow = ((b * keys + j) * keyHeads + keyHead) * headDim;
            const product = scale * dot(q, row, k, keyRow, headDim);
            const capped = softcap > 0 ? softcap * Math.tanh(product / softcap) : product;
            const distance = Math.abs(at(rule.keyPositions, j) - at(rule.queryPositions, i));
            return { keyRow, capped, score: capped - (slopes ? at(slopes, h) * distance : 0) };
          });
        const most = visible.reduce((max, { score }) => Math.max(max, score), Number.NEGATIVE_INFINITY);
        const total = visible.reduce((sum, { score }) => sum + Math.exp(score - most), 0);
        logSumExp.values[statistic] = visible.length === 0 ? most : most + Math.log(total);
        logSumExp.sizes[statistic] = visible.length === 0 ? 0 : 1 + Math.abs(most);

        for (const { keyRow, score } of visible) {
          out.add(row, headDim, Math.exp(score - most) / total, v, keyRow);
        }
        const dstatistic = dlogSumExp ? at(dlogSumExp, statistic) : 0;
        const delta = dot(dout, row, out.values, row, headDim) - dstatistic;
        const deltaSize = dotOfSizes(dout, row, out.sizes, row, headDim) + Math.abs(dstatistic);
        for (const { keyRow, capped, score } of visible) {
          const p = Math.exp(score - most) / total;
          const dp = dot(dout, row, v, keyRow, headDim);
          const dcapped = p * (dp - delta);
          const ds = dcapped * scale * (softcap > 0 ? 1 - (capped / softcap) ** 2 : 1);
          const dsSize = p * (dotOfSizes(dout, row, v, keyRow, headDim) + deltaSize) * Math.abs(scale);
          dq.add(row, headDim, ds, k, keyRow, dsSize);
          dk.add(keyRow, headDim, ds, q, row, dsSize);
          dv.add(keyRow, headDim, p, dout, row);
        }
      }
    }
  }
  return { out, logSumExp, dq, dk, dv };
}

function dot(x: Values, from: number, y: Values, start: number, count: number): number {
  let sum = 0;
  for (let d = 0; d < count; d++) sum += at(x, from + d) * at(y, start + d);
  return sum;
}

function dotOfSizes(x: Values, from: number, y: Values, start: number, count: number): number {
  let sum = 0;
  for (let d = 0; d < count; d++) sum += Math.abs(at(x, from + d) * at(y, start + d));
  return sum;
}
