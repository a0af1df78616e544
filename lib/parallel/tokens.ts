// What a shard's rows are to be fed with: their tokens, positions and targets, out of the whole sequence's.
import { checkOptions, failure, shown, wrongKind } from "../errors.ts";
import type { Piece } from "../ops/attention-options.ts";
import { type Boundaries, checkedBoundaries, stretchesOf } from "./documents.ts";

type Tokens = Int32Array | Uint8Array;

/** How `SequenceShard.labels` reads its tokens. */
export interface LabelOptions {
  /** Sequences that lie in the tokens one behind the other. Default: 1. */
  batch?: number;
  /** Boundaries of documents in the whole sequence: 0, then the end of each. Default: one document. */
  cuSeqlens?: Int32Array | readonly number[];
  /** The target of rows that have none, an int32; default: -100, as `crossEntropy` has it. */
  ignoreIndex?: number;
}

interface Held {
  /** Of the whole sequence. */
  length: number;
  pieces: readonly Piece[];
  size: number;
}

export function tokensOf({ length, pieces, size }: Held, values: Tokens): Int32Array<ArrayBuffer> {
  checkTokens("SequenceShard.takeValues: values", values);
  const batch = length === 0 ? 0 : Math.floor(values.length / length);
  if (values.length !== batch * length) {
    throw failure(
      "ERR_SHAPE",
      `SequenceShard.takeValues: values has ${values.length} values, expected a multiple of ${length} (the length of the sequence)`,
    );
  }
  const taken = new Int32Array(batch * size);
  let row = 0;
  for (let sequence = 0; sequence < batch; sequence++) {
    for (const piece of pieces) {
      const from = sequence * length + piece.start;
      taken.set(values.subarray(from, from + piece.length), row);
      row += piece.length;
    }
  }
  return taken;
}

export function positionsOf(
  { length, pieces, size }: Held,
  cuSeqlens: Boundaries | undefined,
): Int32Array<ArrayBuffer> {
  const boundaries =
    cuSeqlens === undefined
      ? [0, length]
      : checkedBoundaries("SequenceShard.positions: cuSeqlens", cuSeqlens, length);
  const positions = new Int32Array(size);
  for (const { row, start, end, documentStart } of stretchesOf(pieces, boundaries)) {
    for (let at = start; at < end; at++) positions[row + at - start] = at - documentStart;
  }
  return positions;
}

export function labelsOf(
  { length, pieces, size }: Held,
  tokens: Tokens,
  options: LabelOptions,
): Int32Array<ArrayBuffer> {
  checkTokens("SequenceShard.labels: tokens", tokens);
  const { batch, ignoreIndex, cuSeqlens } = checkedOptions(options);
  const given = tokens.length / batch;
  if (given !== length && given !== length + 1) {
    throw failure(
      "ERR_SHAPE",
      `SequenceShard.labels: tokens has ${tokens.length} values, expected ${batch} times ${length} or ${length + 1} (the length of the sequence, or one more)`,
    );
  }
  const boundaries =
    cuSeqlens === undefined
      ? [0, given]
      : checkedBoundaries("SequenceShard.labels: cuSeqlens", cuSeqlens, length);
  const labels = new Int32Array(batch * size).fill(ignoreIndex);
  for (const { row, start, end, documentEnd } of stretchesOf(pieces, boundaries)) {
    for (let sequence = 0; sequence < batch; sequence++) {
      const next = tokens.subarray(
        sequence * given + start + 1,
        sequence * given + Math.min(end + 1, documentEnd, given),
      );
      labels.set(next, sequence * size + row);
    }
  }
  return labels;
}

function checkTokens(what: string, values: Tokens): void {
  if (!(values instanceof Int32Array || values instanceof Uint8Array))
    throw wrongKind(what, "an Int32Array or a Uint8Array", values);
}

function checkedOptions(options: LabelOptions): { batch: number; ignoreIndex: number } & LabelOptions {
  checkOptions("SequenceShard.labels", options, { batch: true, cuSeqlens: true, ignoreIndex: true });
  const { batch = 1, ignoreIndex = -100 } = options;
  for (const [name, value] of Object.entries({ batch, ignoreIndex })) {
    if (typeof value !== "number") throw wrongKind(`SequenceShard.labels: ${name}`, "an integer", value);
  }
  if (!Number.isSafeInteger(batch) || batch < 1) {
    throw failure(
      "ERR_OPTION",
      `SequenceShard.labels: batch is ${shown(batch)}, expected an integer of 1 or more`,
    );
  }
  if (ignoreIndex !== (ignoreIndex | 0)) {
    throw failure(
      "ERR_OPTION",
      `SequenceShard.labels: ignoreIndex is ${shown(ignoreIndex)}, expected an int32`,
    );
  }
  return { ...options, batch, ignoreIndex };
}
