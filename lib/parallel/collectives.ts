// What ranks do together, made of exchanges and of sums in the order of the ranks.
import { checkOptions, failure, shown, wrongKind } from "../errors.ts";
import { checkOutDtype } from "../ops/matmul.ts";
import { Scope } from "../scope.ts";
import { handleOf, noteWrite, type Tensor } from "../tensor.ts";
import { copyInto } from "./key-values.ts";
import type { Link } from "./link.ts";
import type { Pending } from "./pending.ts";
import { portions, rowsOf, splitRows, sum, untracked, wrongRows } from "./portions.ts";

/** Below this many elements each rank sums all for itself, in one step. */
const fewElements = 1 << 14;

/** How a sum over ranks comes out. */
export interface SumOptions {
  /** Leaves the sum unrounded. */
  outDtype?: "float32";
}

function checkSum(what: string, options: SumOptions): void {
  checkOptions(what, options, { outDtype: true });
  checkOutDtype(what, options.outDtype);
}

export function allGather(link: Link, x: Tensor, counts: readonly number[] | undefined): Pending<Tensor> {
  const rows = rowsOf("allGather", x);
  const sizes = countsOf(link, "allGather", counts ?? new Array<number>(link.size).fill(rows));
  if (sizes[link.rank] !== rows) throw wrongRows("allGather", rows, sizes[link.rank]);
  return started(link, () => {
    const out = link.empty([sum(sizes), ...x.shape.slice(1)], x);
    const parts = splitRows(out, sizes);
    // From their place among all, so that x may go.
    const own = parts[link.rank] as Tensor;
    copyInto(own, x);
    const others = link.others();
    const work = () => {
      link.exchange(
        others.map((peer) => ({ peer, tensor: own })),
        others.map((peer) => ({ peer, tensor: parts[peer] as Tensor })),
      );
    };
    return { out, work };
  });
}

export function reduceScatter(
  link: Link,
  x: Tensor,
  counts: readonly number[] | undefined,
  options: SumOptions,
): Pending<Tensor> {
  checkSum("reduceScatter", options);
  const rows = rowsOf("reduceScatter", x);
  if (counts === undefined && rows % link.size !== 0)
    throw failure(
      "ERR_SHAPE",
      `reduceScatter: x has ${rows} rows, expected a multiple of ${link.size}, or counts`,
    );
  const sizes = countsOf(
    link,
    "reduceScatter",
    counts ?? new Array<number>(link.size).fill(rows / link.size),
  );
  if (sum(sizes) !== rows) throw wrongRows("reduceScatter", rows, sum(sizes));
  return started(link, () => {
    const sent = splitRows(untracked(x), sizes);
    const shape = [sizes[link.rank] ?? 0, ...x.shape.slice(1)];
    const terms = sent.map((own, peer) => (peer === link.rank ? own : link.empty(shape, x)));
    const out = link.empty(shape, x, options.outDtype);
    const others = <T>(parcels: readonly T[]) => parcels.filter((_, peer) => peer !== link.rank);
    const work = () => {
      link.exchange(
        others(sent.map((tensor, peer) => ({ peer, tensor }))),
        others(terms.map((tensor, peer) => ({ peer, tensor }))),
      );
      link.sum(terms, out);
    };
    return { out, work };
  });
}

export function allReduce(link: Link, x: Tensor, options: SumOptions): Pending<Tensor> {
  checkSum("allReduce", options);
  handleOf(x, "allReduce: x");
  return started(link, () => {
    const out = link.empty(x.shape, x, options.outDtype);
    const [flat, sums] = [untracked(x).reshape([x.size]), out.reshape([x.size])];
    // Few elements go to everybody whole; of many, each rank sums a portion.
    const counts = x.size < fewElements ? [x.size] : portions(x.size, link.size);
    const [sent, summed] = [splitRows(flat, counts), splitRows(sums, counts)];
    const isWhole = counts.length === 1;
    const own = (parts: Tensor[]) => parts[isWhole ? 0 : link.rank] as Tensor;
    const shape = own(summed).shape;
    const others = link.others();
    const terms = link.peers().map((peer) => (peer === link.rank ? own(sent) : link.empty(shape, x)));
    const work = () => {
      link.exchange(
        others.map((peer) => ({ peer, tensor: sent[isWhole ? 0 : peer] as Tensor })),
        others.map((peer) => ({ peer, tensor: terms[peer] as Tensor })),
      );
      link.sum(terms, own(summed));
      if (isWhole) return;
      link.exchange(
        others.map((peer) => ({ peer, tensor: own(summed) })),
        others.map((peer) => ({ peer, tensor: summed[peer] as Tensor })),
      );
    };
    return { out, work };
  });
}

export function allToAll(
  link: Link,
  x: Tensor,
  sendCounts: readonly number[],
  receiveCounts: readonly number[],
): Pending<Tensor> {
  const rows = rowsOf("allToAll", x);
  const [sends, receives] = [
    countsOf(link, "allToAll", sendCounts),
    countsOf(link, "allToAll", receiveCounts),
  ];
  if (sum(sends) !== rows) throw wrongRows("allToAll", rows, sum(sends));
  return started(link, () => {
    const out = link.empty([sum(receives), ...x.shape.slice(1)], x);
    const [sent, received] = [splitRows(untracked(x), sends), splitRows(out, receives)];
    const work = () => {
      link.exchange(
        sent.map((tensor, peer) => ({ peer, tensor })),
        received.map((tensor, peer) => ({ peer, tensor })),
      );
    };
    return { out, work };
  });
}

/** Of what is prepared only the result outlives the call: what is queued holds its tensors' memory itself. */
function started(link: Link, prepare: () => { out: Tensor; work: () => void }): Pending<Tensor> {
  return Scope.run(() => {
    const { out, work } = prepare();
    return { out, pending: link.start(work, out) };
  }).pending;
}

function countsOf(link: Link, what: string, counts: readonly number[]): readonly number[] {
  if (!Array.isArray(counts)) throw wrongKind(`${what}: counts`, "an array of integers", counts);
  if (counts.length !== link.size || !counts.every((count) => Number.isSafeInteger(count) && count >= 0)) {
    throw failure(
      "ERR_OPTION",
      `${what}: counts is ${shown(counts)}, expected ${link.size} integers from 0 on`,
    );
  }
  return counts;
}

export function fromRoot(link: Link, x: Tensor, root: number): Pending<void> {
  handleOf(x, "broadcast: x");
  if (!Number.isSafeInteger(root) || root < 0 || root >= link.size)
    throw failure("ERR_OPTION", `broadcast: root is ${shown(root)}, expected 0 to ${link.size - 1}`);
  const sent = link.rank === root ? link.others().map((peer) => ({ peer, tensor: x })) : [];
  const received = link.rank === root ? [] : [{ peer: root, tensor: x }];
  const pending = link.start(() => link.exchange(sent, received), undefined);
  noteWrite(x); // on the root too, for what follows from a write must follow on all ranks
  return pending;
}
