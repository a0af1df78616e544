// What a mask and its aliases hold together.
import type { AttentionMask } from "./mask.ts";
import { type MaskHandle, native } from "./native.ts";

/** Let go when the last that holds it does; by the garbage collector where none of them says so. */
export class MaskMemory {
  readonly handle: MaskHandle;
  /** Rows and columns of it, by where these are: made once, since all layers and both passes ask for the same. */
  readonly parts = new Map<string, AttentionMask>();
  #holders = 0;

  constructor(handle: MaskHandle) {
    this.handle = handle;
  }

  hold(): this {
    this.#holders++;
    return this;
  }

  release(): void {
    if (--this.#holders > 0) return;
    native.maskDispose(this.handle);
    for (const part of this.parts.values()) part.dispose();
    this.parts.clear();
  }
}
