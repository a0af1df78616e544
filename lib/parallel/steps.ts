// Rows that travel between ranks, to a peer at a time where they are many: what is computed with some hides the way of
// the others. Few go to all peers at once, and what is computed with them is computed at once too.
import { native } from "../native.ts";
import type { Piece } from "../ops/attention-options.ts";
import { joined } from "../pieces.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { type DType, itemBytes } from "../values.ts";
import type { Communicator } from "./communicator.ts";
import type { Parcel } from "./link.ts";
import { land, landing, peerAt } from "./parcels.ts";
import { Pending } from "./pending.ts";
import { inRowMajor, release, splitRows, sum, untracked } from "./portions.ts";

/** Neighbouring rows of the whole sequence, [B, length, ..]. */
export interface Arrival extends Piece {
  rows: Tensor;
}

/** Messages to all peers go together below this: each takes time to begin, and slows products (bench/RESULTS.md). */
const largeBytes = 128 << 20;

/** Whether a peer's rows are a message that travels alone; the same to all ranks. `rowBytes` are a row's of all batches. */
function isLarge(counts: readonly number[], rowBytes: number): boolean {
  return rowBytes * Math.max(...counts) >= largeBytes;
}

function bytesOf(shape: readonly number[], dtype: DType): number {
  return shape.reduce((a, b) => a * b, 1) * itemBytes[dtype];
}

/** Each rank's rows. */
function piecesOf(counts: readonly number[]): Piece[] {
  return counts.map((length, rank) => ({ start: sum(counts.slice(0, rank)), length }));
}

/** Whom a rank sends to and receives from, one peer each after the other. */
function peersOf(communicator: { rank: number; size: number }): { to: number; from: number }[] {
  return Array.from({ length: communicator.size - 1 }, (_, i) => ({
    to: peerAt(communicator, i + 1),
    from: peerAt(communicator, -i - 1),
  }));
}

/**
 * All ranks' rows, x [B, n, ..] being this one's: calls `take` for them as they come, this rank's first.
 *
 * @returns [B, sum of counts, ..]
 */
export function gathering(
  communicator: Communicator,
  x: Tensor,
  counts: readonly number[],
  take: (arrival: Arrival) => void = () => undefined,
): Tensor {
  const { rank, size, device } = communicator;
  const [batch = 1, , ...rest] = x.shape;
  const own = untracked(x);
  const whole = Tensor.empty([batch, sum(counts), ...rest], { dtype: x.dtype, device });
  const places = splitRows(whole, counts, 1);
  const pieces = piecesOf(counts);
  const peers = peersOf(communicator);
  const areLarge = isLarge(counts, bytesOf([batch, ...rest], x.dtype));
  const groups = areLarge || size === 1 ? peers.map((one) => [one]) : [peers];
  const moves = groups.map((steps) => {
    const arriving = steps.map(({ from }) => landing(from, places[from] as Tensor));
    const leaving = steps.map(({ to }) => ({ peer: to, tensor: own }));
    return communicator.exchange(leaving, arriving).map(() => arriving);
  });
  take({ ...(pieces[rank] as Piece), rows: own });
  land({ peer: rank, tensor: own, place: places[rank] as Tensor });
  for (const move of moves) {
    const arrived = move.wait();
    arrived.forEach(land);
    const come = arrived.map(({ peer }) => pieces[peer] as Piece).toSorted((a, b) => a.start - b.start);
    for (const { start, length } of joined(come)) {
      const rows = whole.slice(1, start, start + length);
      take({ start, length, rows });
      rows.dispose();
    }
  }
  return whole;
}

/** Rows whose terms are made at once: those of neighbouring ranks. */
export interface ScatterStep {
  ranks: readonly number[];
  piece: Piece;
}
/** What is made at once of all ranks' terms: a peer's rows, or where they are few the peers' before and behind this rank. */
export interface Scattering {
  counts: readonly number[];
  steps: readonly ScatterStep[];
  /** This rank's rows, made last. */
  own: ScatterStep;
  /** Each step's rows are a message of their own. */
  areLarge: boolean;
}

/** `shape` is that of the terms, which are of `dtype`, but their rows. */
export function scatteringOf(
  { rank, size }: Communicator,
  counts: readonly number[],
  shape: readonly number[],
  dtype: DType,
): Scattering {
  const pieces = piecesOf(counts);
  const step = (ranks: readonly number[]): ScatterStep => ({
    ranks,
    piece: {
      start: pieces[ranks[0] ?? 0]?.start ?? 0,
      length: sum(ranks.map((other) => counts[other] ?? 0)),
    },
  });
  const ranks = pieces.map((_, other) => other);
  const areLarge = isLarge(counts, bytesOf(shape, dtype));
  const groups = areLarge
    ? peersOf({ rank, size }).map(({ to }) => [to])
    : [ranks.slice(rank + 1), ranks.slice(0, rank)].filter(({ length }) => length > 0);
  return { counts, steps: groups.map(step), own: step([rank]), areLarge };
}

/**
 * The sum over all ranks of their terms of this rank's rows, in the order of the ranks: `make(step)` gives this rank's
 * terms of the step's rows, [B, length, ..]; where they are large each is on its way while the next one is made.
 */
export function scattering(
  communicator: Communicator,
  { counts, steps, own, areLarge }: Scattering,
  make: (step: ScatterStep) => Tensor,
): Pending<Tensor> {
  const { rank, size, device } = communicator;
  const terms: Tensor[] = [];
  const moves: Pending<void>[] = [];
  let leaving: Parcel[] = [];
  const exchange = (peers: readonly { from: number }[]): void => {
    const arriving = peers.map(({ from: peer }, i) => {
      const { shape, dtype } = (leaving[i] as Parcel).tensor;
      const tensor = Tensor.empty(shape.with(1, counts[rank] ?? 0), { dtype, device });
      terms[peer] = tensor;
      return { peer, tensor };
    });
    moves.push(communicator.exchange(leaving, arriving));
    release(leaving.map(({ tensor }) => tensor));
    leaving = [];
  };
  const peers = peersOf(communicator);
  for (const [i, step] of steps.entries()) {
    const made = make(step);
    const lengths = step.ranks.map((other) => counts[other] ?? 0);
    const parts = splitRows(made, lengths, 1).map(inRowMajor);
    made.dispose();
    leaving.push(...parts.map((tensor, at) => ({ peer: step.ranks[at] as number, tensor })));
    if (areLarge) exchange(peers.slice(i, i + 1));
  }
  if (leaving.length > 0) exchange(peers);
  const last = make(own);
  terms[rank] = last;
  if (size === 1) return new Pending(() => last);
  const total = Tensor.empty(last.shape, { dtype: last.dtype, device });
  return new Pending(() => {
    for (const move of moves) move.wait();
    const handles = terms.map((term) => handleOf(term, "a term"));
    native.sum(handles, handleOf(total, "the sum"));
    release(terms);
    return total;
  });
}
