// Rows that travel between ranks, to a peer at a time where they are many: what is computed with some hides the way of
// the others.
import { native } from "../native.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { itemBytes } from "../values.ts";
import type { Communicator } from "./communicator.ts";
import type { Parcel } from "./link.ts";
import { land, landing, peerAt } from "./parcels.ts";
import { Pending } from "./pending.ts";
import { inRowMajor, release, splitRows, sum, untracked } from "./portions.ts";

/** A peer's rows [B, n, ..]; they are views of `gathering`'s result, or copied there. */
export interface Arrival {
  peer: number;
  rows: Tensor;
}

/** Messages to all peers go together below this: each takes time to begin, and slows products (bench/RESULTS.md). */
const largeBytes = 128 << 20;

/** Whether a peer's rows, [B, n, ..] as `x` is, are a message that travels alone; the same to all ranks. */
function isLarge(x: Tensor, counts: readonly number[]): boolean {
  const [batch = 1, , ...rest] = x.shape;
  const rowBytes = rest.reduce((a, b) => a * b, batch) * itemBytes[x.dtype];
  return rowBytes * Math.max(...counts) >= largeBytes;
}

/** Whom a rank sends to and receives from, one peer each after the other. */
function peersOf(communicator: Communicator): { to: number; from: number }[] {
  return Array.from({ length: communicator.size - 1 }, (_, i) => ({
    to: peerAt(communicator, i + 1),
    from: peerAt(communicator, -i - 1),
  }));
}

/**
 * All ranks' rows, x [B, n, ..] being this one's: calls `take` for each peer's as they come, this rank's first.
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
  const peers = peersOf(communicator);
  const groups = isLarge(x, counts) || size === 1 ? peers.map((one) => [one]) : [peers];
  const moves = groups.map((steps) => {
    const arriving = steps.map(({ from }) => landing(from, places[from] as Tensor));
    const leaving = steps.map(({ to }) => ({ peer: to, tensor: own }));
    return communicator.exchange(leaving, arriving).map(() => arriving);
  });
  const here = { peer: rank, tensor: own, place: places[rank] as Tensor };
  for (const move of [new Pending(() => [here]), ...moves]) {
    for (const arrived of move.wait()) {
      take({ peer: arrived.peer, rows: arrived.tensor });
      land(arrived);
    }
  }
  return whole;
}

/**
 * The sum over all ranks of their terms of this rank's rows, in the order of the ranks: `make(peer)` gives this rank's
 * term of a peer's rows, [B, n of the peer, ..]; where they are large each is on its way while the next one is made,
 * its own last.
 */
export function scattering(
  communicator: Communicator,
  counts: readonly number[],
  make: (peer: number) => Tensor,
): Pending<Tensor> {
  const { rank, size, device } = communicator;
  const moves: Pending<void>[] = [];
  const terms: Tensor[] = [];
  const peers = peersOf(communicator);
  let [leaving, arriving]: [Parcel[], Parcel[]] = [[], []];
  for (const { to, from } of peers) {
    const part = inRowMajor(make(to));
    const [batch = 1, , ...rest] = part.shape;
    const term = Tensor.empty([batch, counts[rank] ?? 0, ...rest], { dtype: part.dtype, device });
    terms[from] = term;
    leaving.push({ peer: to, tensor: part });
    arriving.push({ peer: from, tensor: term });
    if (!isLarge(part, counts) && leaving.length < peers.length) continue;
    moves.push(communicator.exchange(leaving, arriving));
    release(leaving.map(({ tensor }) => tensor));
    [leaving, arriving] = [[], []];
  }
  const own = make(rank);
  terms[rank] = own;
  if (size === 1) return new Pending(() => own);
  const total = Tensor.empty(own.shape, { dtype: own.dtype, device });
  return new Pending(() => {
    for (const move of moves) move.wait();
    const handles = terms.map((term) => handleOf(term, "a term"));
    native.sum(handles, handleOf(total, "the sum"));
    release(terms);
    return total;
  });
}
