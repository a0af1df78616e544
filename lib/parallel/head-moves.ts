// The all-to-all of Ulysses: from a rank's rows of all heads to all rows of its heads, and back.
import { Tensor } from "../tensor.ts";
import type { Communicator } from "./communicator.ts";
import { addInto, copyInto } from "./key-values.ts";
import type { Parcel } from "./link.ts";
import { filled, type Landing, land, landing } from "./parcels.ts";
import type { Pending } from "./pending.ts";
import { inRowMajor, release, splitRows, sum } from "./portions.ts";
import type { Range } from "./strategy.ts";

/** A tensor, and which heads each rank has or gets. */
export interface Move {
  tensor: Tensor;
  heads: readonly Range[];
}

/**
 * This rank's rows of all heads, [B, n, H, D], to all rows of its own heads, [B, S, h, D]: all moves in one step. What
 * stays on the rank is copied to its place and is no parcel.
 */
export function toHeads(
  communicator: Communicator,
  counts: readonly number[],
  moves: readonly Move[],
): Pending<Tensor[]> {
  const { rank, device } = communicator;
  const sent: Parcel[] = [];
  const received: Landing[] = [];
  const wholes = moves.map(({ tensor, heads }) => {
    const { begin, end } = heads[rank] as Range;
    const [batch = 1, , , columns = 0] = tensor.shape;
    const whole = Tensor.empty([batch, sum(counts), end - begin, columns], { dtype: tensor.dtype, device });
    for (const [peer, place] of splitRows(whole, counts, 1).entries()) {
      const { begin, end } = heads[peer] as Range;
      using part = tensor.slice(2, begin, end);
      if (peer === rank) {
        copyInto(place, part);
        place.dispose();
      } else {
        sent.push({ peer, tensor: part.contiguous() });
        received.push(landing(peer, place));
      }
    }
    return whole;
  });
  const moved = communicator.exchange(filled(sent), filled(received));
  release(sent.map(({ tensor }) => tensor));
  return moved.map(() => {
    for (const parcel of received) land(parcel);
    return wholes;
  });
}

/** Where a rank's heads come to. */
export interface MoveBack extends Move {
  /** This rank's rows of all heads, [B, n, H, D]. */
  place: Tensor;
}

/** The way back. Heads that several ranks have are summed, in the order of the ranks. */
export function toRows(
  communicator: Communicator,
  counts: readonly number[],
  moves: readonly MoveBack[],
): Pending<void> {
  const { rank, device } = communicator;
  const sent: Parcel[] = [];
  const received: Parcel[] = [];
  const terms: { rows: Tensor; place: Tensor; isFirst: boolean }[] = [];
  for (const { tensor, heads, place: whole } of moves) {
    const { dtype } = tensor;
    let behind = 0;
    for (const [peer, part] of splitRows(tensor, counts, 1).entries()) {
      const { begin, end } = heads[peer] as Range;
      const place = whole.slice(2, begin, end);
      const rows = peer === rank ? part : Tensor.empty(place.shape, { dtype, device });
      terms.push({ rows, place, isFirst: begin >= behind });
      behind = Math.max(behind, end);
      if (peer === rank) continue;
      received.push({ peer, tensor: rows });
      sent.push({ peer, tensor: inRowMajor(part) });
    }
  }
  const moved = communicator.exchange(filled(sent), filled(received));
  release(sent.map(({ tensor }) => tensor));
  return moved.map(() =>
    terms.forEach(({ rows, place, isFirst }) => {
      if (isFirst) copyInto(place, rows);
      else addInto(place, rows);
      release([rows, place]);
    }),
  );
}
