// Rows that travel between ranks a peer at a time: what is computed with some hides the way of the others.
import { native } from "../native.ts";
import { handleOf, Tensor } from "../tensor.ts";
import type { Communicator } from "./communicator.ts";
import { land, landing } from "./parcels.ts";
import { Pending } from "./pending.ts";
import { inRowMajor, release, splitRows, sum, untracked } from "./portions.ts";

/** A peer's rows [B, n, ..]; they are views of `gathering`'s result, or copied there. */
export interface Arrival {
  peer: number;
  rows: Tensor;
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
  const moves = Array.from({ length: size - 1 }, (_, i) => {
    const [to, from] = [(rank + i + 1) % size, (rank + size - i - 1) % size];
    const arriving = landing(from, places[from] as Tensor);
    return communicator.exchange([{ peer: to, tensor: own }], [arriving]).map(() => arriving);
  });
  const here = { peer: rank, tensor: own, place: places[rank] as Tensor };
  for (const move of [new Pending(() => here), ...moves]) {
    const arrived = move.wait();
    take({ peer: arrived.peer, rows: arrived.tensor });
    land(arrived);
  }
  return whole;
}

/**
 * The sum over all ranks of their terms of this rank's rows, in the order of the ranks: `make(peer)` gives this rank's
 * term of a peer's rows, [B, n of the peer, ..]; each is on its way while the next one is made, its own last.
 */
export function scattering(
  communicator: Communicator,
  counts: readonly number[],
  make: (peer: number) => Tensor,
): Pending<Tensor> {
  const { rank, size, device } = communicator;
  const moves: Pending<void>[] = [];
  const terms: Tensor[] = [];
  for (let step = 1; step < size; step++) {
    const [to, from] = [(rank + step) % size, (rank + size - step) % size];
    const part = inRowMajor(make(to));
    const [batch = 1, , ...rest] = part.shape;
    const term = Tensor.empty([batch, counts[rank] ?? 0, ...rest], { dtype: part.dtype, device });
    moves.push(communicator.exchange([{ peer: to, tensor: part }], [{ peer: from, tensor: term }]));
    terms[from] = term;
    part.dispose();
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
