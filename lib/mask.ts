import { failure, wrongKind } from "./errors.ts";
import { bit, bitsOf, byteArray, integer, sizesOf } from "./mask-input.ts";
import { MaskMemory } from "./mask-memory.ts";
import { type MaskHandle, native } from "./native.ts";
import type { Piece } from "./ops/attention-options.ts";
import { flatPieces } from "./pieces.ts";

let memoryOfMask: (mask: AttentionMask, what: string) => MaskMemory;
let aliasOfMask: (mask: AttentionMask) => AttentionMask; // of the same memory, and lives on when that is disposed

/**
 * Which keys each query may look at: a matrix of booleans [Sq, Sk] that is never stored whole. Made from a rule, an
 * array or a function, combined by `and`, `or` and `not`, and used by any number of calls, for all batches and heads.
 * Immutable. Freed by `dispose`, by `using`, or at last by the garbage collector; a call that is queued keeps it.
 *
 * Sizes are 0 to 2,147,483,647, or `ERR_SHAPE` is thrown; for an argument of the wrong kind a TypeError, `ERR_OPTION`;
 * for a mask that was disposed `ERR_DISPOSED`; where the memory does not suffice `ERR_OUT_OF_MEMORY`.
 *
 * @example
 * using mask = AttentionMask.causal(1024).and(AttentionMask.documents([0, 700, 1024]));
 * const q = Tensor.normal([1, 1024, 4, 64]);
 * const out = attention(q, q, q, { mask });
 */
export class AttentionMask implements Disposable {
  /** Sq, the rows. */
  readonly queries: number;
  /** Sk, the columns. */
  readonly keys: number;
  /**
   * How it is kept. "intervals": each query sees one run of keys, which moves forward from query to query: two integers
   * a query. "blocks": by blocks of 128 x 128, the empty ones left out, with bits only for those that are not full.
   */
  readonly kind: "intervals" | "blocks";
  /** Memory that it holds. */
  readonly bytes: number;
  /** How many pairs of a query and a key are visible. */
  readonly visible: number;
  /** The share of the pairs of a query and a key that are visible, 0 to 1; 0 where there are no pairs. */
  readonly density: number;
  #memory: MaskMemory | undefined;

  static {
    memoryOfMask = (mask, what) => {
      if (!(#memory in Object(mask))) throw wrongKind(what, "an AttentionMask", mask);
      if (mask.#memory === undefined) throw failure("ERR_DISPOSED", `${what} was disposed`);
      return mask.#memory;
    };
    aliasOfMask = (mask) => {
      const memory = memoryOfMask(mask, "the mask");
      return new AttentionMask(memory.handle, memory);
    };
  }

  private constructor(handle: MaskHandle, memory = new MaskMemory(handle)) {
    const { queries, keys, kind, bytes, visible } = native.maskInfo(handle);
    this.#memory = memory.hold();
    this.queries = queries;
    this.keys = keys;
    this.kind = kind;
    this.bytes = bytes;
    this.visible = visible;
    this.density = visible === 0 ? 0 : visible / (queries * keys);
  }

  /**
   * No query sees a later key. Aligned at the bottom right: query i stands at position i + Sk - Sq, so the last query
   * sees all keys.
   *
   * @example
   * AttentionMask.causal(2, 4).toDense(); // 1 1 1 0, 1 1 1 1
   */
  static causal(queries: number, keys = queries): AttentionMask {
    return new AttentionMask(native.maskCausal(...sizesOf("AttentionMask.causal", queries, keys)));
  }

  /**
   * Query i, at position p = i + Sk - Sq, sees the keys p - left to p + right; -1 is unbounded.
   *
   * @throws `ERR_OPTION` where left or right is below -1.
   * @example
   * AttentionMask.window(3, 3, 1, 0).toDense(); // 1 0 0, 1 1 0, 0 1 1
   */
  static window(queries: number, keys: number, left: number, right: number): AttentionMask {
    const sizes = sizesOf("AttentionMask.window", queries, keys);
    integer("AttentionMask.window: left", left, "ERR_OPTION");
    integer("AttentionMask.window: right", right, "ERR_OPTION");
    return new AttentionMask(native.maskWindow(...sizes, left, right));
  }

  /**
   * Documents that lie one behind the other, [T, T]: a token sees its own document only.
   *
   * @param cuSeqlens 0, then the end of each document; the last is T. A document may be empty.
   * @throws `ERR_OPTION` where it does not begin with 0, or decreases; `ERR_SHAPE` where it is empty.
   * @example
   * AttentionMask.documents([0, 2, 3]).toDense(); // 1 1 0, 1 1 0, 0 0 1
   */
  static documents(cuSeqlens: Int32Array | readonly number[]): AttentionMask {
    const name = "AttentionMask.documents: cuSeqlens";
    if (!(cuSeqlens instanceof Int32Array)) {
      if (!Array.isArray(cuSeqlens))
        throw wrongKind(name, "an Int32Array or an array of integers", cuSeqlens);
      for (const [at, end] of cuSeqlens.entries()) integer(`${name}[${at}]`, end, "ERR_OPTION");
    }
    return new AttentionMask(native.maskDocuments(cuSeqlens));
  }

  /**
   * A prefix that all tokens see, then causal order, [S, S]: token i sees key j where j < prefixLength or j <= i.
   *
   * @throws `ERR_OPTION` where prefixLength is not 0 to S.
   * @example
   * AttentionMask.prefix(3, 2).toDense(); // 1 1 0, 1 1 0, 1 1 1
   */
  static prefix(tokens: number, prefixLength: number): AttentionMask {
    integer("AttentionMask.prefix: tokens", tokens, "ERR_SHAPE");
    integer("AttentionMask.prefix: prefixLength", prefixLength, "ERR_OPTION");
    return new AttentionMask(native.maskPrefix(tokens, prefixLength));
  }

  /**
   * From an array [Sq, Sk] in row-major order: visible where true, or not 0.
   *
   * @throws `ERR_SHAPE` where the number of values is not Sq x Sk.
   * @example
   * AttentionMask.dense(Uint8Array.of(1, 0, 1, 0, 1, 1), 2, 3);
   */
  static dense(values: Uint8Array | readonly boolean[], queries: number, keys: number): AttentionMask {
    const sizes = sizesOf("AttentionMask.dense", queries, keys);
    if (values instanceof Uint8Array) return new AttentionMask(native.maskDense(...sizes, values));
    return new AttentionMask(native.maskDense(...sizes, bitsOf("AttentionMask.dense", values)));
  }

  /**
   * From a function of the query's and the key's index, which is called once for each pair, row by row. An array of
   * Sq x Sk never exists; the calls do take their time, some seconds for 16,384 x 16,384.
   *
   * @example
   * AttentionMask.from(4096, 4096, (query, key) => key <= query && (query - key) % 64 === 0);
   */
  static from(queries: number, keys: number, sees: (query: number, key: number) => boolean): AttentionMask {
    const sizes = sizesOf("AttentionMask.from", queries, keys);
    if (typeof sees !== "function") throw wrongKind("AttentionMask.from: sees", "a function", sees);
    const builder = native.maskBuilder(...sizes);
    const nextRows = () => native.maskBuilderNextRows(builder);
    const bytes = byteArray("AttentionMask.from", nextRows() * keys);
    for (let first = 0, rows = nextRows(); rows > 0; first += rows, rows = nextRows()) {
      for (let row = 0; row < rows; row++) {
        for (let key = 0; key < keys; key++) {
          const value = sees(first + row, key);
          bytes[row * keys + key] = bit(value, () => `AttentionMask.from: sees(${first + row}, ${key})`);
        }
      }
      native.maskBuilderAdd(builder, bytes.subarray(0, rows * keys));
    }
    return new AttentionMask(native.maskBuilderFinish(builder));
  }

  /**
   * Visible where both masks say so.
   *
   * @throws `ERR_SHAPE` where the other mask has another shape.
   * @example
   * AttentionMask.causal(1024).and(AttentionMask.documents([0, 700, 1024])).kind; // "intervals"
   */
  and(other: AttentionMask): AttentionMask {
    return this.#combined("AttentionMask.and", other, native.maskAnd);
  }

  /**
   * Visible where one of the masks, or both, say so.
   *
   * @throws `ERR_SHAPE` where the other mask has another shape.
   * @example
   * const sinks = AttentionMask.from(1024, 1024, (_, key) => key < 4);
   * AttentionMask.window(1024, 1024, 256, 0).or(sinks).and(AttentionMask.causal(1024)).kind; // "blocks"
   */
  or(other: AttentionMask): AttentionMask {
    return this.#combined("AttentionMask.or", other, native.maskOr);
  }

  /**
   * Visible where this mask says not.
   *
   * @example
   * AttentionMask.causal(3).not().toDense(); // 0 1 1, 0 0 1, 0 0 0
   */
  not(): AttentionMask {
    return new AttentionMask(native.maskNot(handleOfMask(this, "AttentionMask.not: the mask")));
  }

  /**
   * Some of the queries and keys, as a mask of their own: its rows and columns are those of the pieces, one piece behind
   * the other. Of the whole sequence's mask, what the queries of one `SequenceShard` see of the keys of another, for
   * `attention` with the same pieces as `queryPositions` and `keyPositions`. Where `visible` is 0, nothing.
   *
   * @param queries ascending and disjoint, within 0 to Sq.
   * @param keys the same within 0 to Sk.
   * @throws `ERR_OPTION` for other pieces.
   * @example
   * const part = AttentionMask.causal(4).select([{ start: 1, length: 2 }], [{ start: 0, length: 1 }, { start: 2, length: 2 }]);
   * part.toDense(); // 1 0 0, 1 1 0
   */
  select(queries: readonly Piece[], keys: readonly Piece[]): AttentionMask {
    const handle = handleOfMask(this, "AttentionMask.select: the mask");
    const rows = flatPieces("AttentionMask.select: queries", queries);
    return new AttentionMask(native.maskSelect(handle, rows, flatPieces("AttentionMask.select: keys", keys)));
  }

  /**
   * All Sq x Sk values in row-major order, 1 where visible: for small masks.
   *
   * @throws `ERR_OUT_OF_MEMORY` where such an array cannot be.
   * @example
   * console.log(AttentionMask.causal(4).toDense());
   */
  toDense(): Uint8Array<ArrayBuffer> {
    const handle = handleOfMask(this, "AttentionMask.toDense: the mask");
    const values = byteArray("AttentionMask.toDense", this.queries * this.keys);
    native.maskToDense(handle, values);
    return values;
  }

  /** Whether `dispose` was called. */
  get disposed(): boolean {
    return this.#memory === undefined;
  }

  /** Lets the memory go, once the calls that were queued with it have run. Twice is harmless. */
  dispose(): void {
    this.#memory?.release();
    this.#memory = undefined;
  }

  /** As `dispose`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  #combined(what: string, other: AttentionMask, combine: typeof native.maskAnd): AttentionMask {
    const handle = handleOfMask(this, `${what}: the mask`);
    return new AttentionMask(combine(handle, handleOfMask(other, `${what}: other`)));
  }
}

function handleOfMask(mask: AttentionMask, what: string): MaskHandle {
  return memoryOfMask(mask, what).handle;
}

export { aliasOfMask, handleOfMask, memoryOfMask };
