// The backward pass of attention where keys come in parts, as a ring's do: what each part would make again is made once,
// and dq is rounded once.
import { native, type QueryGradientHandle, type TensorPlace } from "../native.ts";
import { handleOf, type Tensor } from "../tensor.ts";
import { type NativeRule, type NativeScoring, nativeRule } from "./attention-options.ts";

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
  readonly #scoring: NativeScoring;

  /** A deterministic order is not to be had. */
  constructor(
    { q, out, logSumExp, dout }: { q: Tensor; out: Tensor; logSumExp: Tensor; dout: Tensor },
    scoring: NativeScoring,
  ) {
    this.#scoring = scoring;
    this.#handle = native.queryGradientBegin(
      handleOf(q, "attention: q"),
      handleOf(out, "attention: out"),
      handleOf(logSumExp, "attention: logSumExp"),
      handleOf(dout, "attention: dout"),
      [...scoring, ...nativeRule({})],
    );
  }

  /** Makes the gradients of a part of the keys in `dk` and `dv`, or adds them, in float32. */
  add(
    { start, length }: Rows,
    [k, v]: readonly [TensorPlace, TensorPlace],
    [dk, dv]: readonly [TensorPlace, TensorPlace],
    adds: boolean,
    rule: NativeRule,
  ): void {
    const options = [...this.#scoring, ...rule] as const;
    native.queryGradientAdd(this.#handle, start, length, k, v, dk, dv, adds, adds, options);
  }

  /** Behind the last part. */
  finish(dq: Tensor): void {
    native.queryGradientFinish(this.#handle, handleOf(dq, "attention: dq"));
  }

  [Symbol.dispose](): void {
    native.queryGradientDispose(this.#handle);
  }
}
