// The backward pass of attention where keys come in parts, as a ring's do: what each part would make again is made once,
// and dq is rounded once.
import { native, type QueryGradientHandle } from "../native.ts";
import { handleOf, type Tensor } from "../tensor.ts";
import { type AttentionOptions, nativeOptions } from "./attention-options.ts";

/** Neighbouring queries that a part of the keys is seen by. */
interface Rows {
  start: number;
  length: number;
}

/** Parts have some of the queries: from a multiple of this many to another, or to the last. */
export const queryRows = 128;

/** dq of all queries, from one part of the keys after the other. */
export class QueryGradient implements Disposable {
  readonly #handle: QueryGradientHandle;
  readonly #q: Tensor;

  /** `options` are those that all parts share; a deterministic order is none of them. */
  constructor(
    { q, out, logSumExp, dout }: { q: Tensor; out: Tensor; logSumExp: Tensor; dout: Tensor },
    { scale, implementation }: AttentionOptions,
  ) {
    this.#q = q;
    this.#handle = native.queryGradientBegin(
      handleOf(q, "attention: q"),
      handleOf(out, "attention: out"),
      handleOf(logSumExp, "attention: logSumExp"),
      handleOf(dout, "attention: dout"),
      nativeOptions(q, { ...(scale !== undefined && { scale }), ...(implementation && { implementation }) }),
    );
  }

  /** Makes the gradients of a part of the keys in `dk` and `dv`, or adds them, in float32. */
  add(
    { start, length }: Rows,
    [k, v]: readonly [Tensor, Tensor],
    [dk, dv]: readonly [Tensor, Tensor],
    adds: boolean,
    options: AttentionOptions,
  ): void {
    native.queryGradientAdd(
      this.#handle,
      start,
      length,
      handleOf(k, "attention: k"),
      handleOf(v, "attention: v"),
      handleOf(dk, "attention: dk"),
      handleOf(dv, "attention: dv"),
      adds,
      adds,
      nativeOptions(this.#q, options),
    );
  }

  /** Behind the last part. */
  finish(dq: Tensor): void {
    native.queryGradientFinish(this.#handle, handleOf(dq, "attention: dq"));
  }

  [Symbol.dispose](): void {
    native.queryGradientDispose(this.#handle);
  }
}
