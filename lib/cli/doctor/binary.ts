// What our own binary says, if it loads.
import type { Info, NcclLibrary } from "../../index.ts";
import { messageFrom, messageOf } from "./wrong.ts";

export interface Binary {
  readonly loads: boolean;
  readonly info?: Info;
  /** Why it does not load, or which variable it does not take. */
  readonly error?: string;
  /** Why the device that LONGSEQ_DEVICE names does not open. */
  readonly deviceError?: string | null;
  readonly nccl?: NcclLibrary;
  readonly ncclError?: string;
}

/** Imported here and not above: a binary that does not load is what doctor is for. */
export async function loadBinary(): Promise<Binary> {
  try {
    const { Device, info, ncclLibrary } = await import("../../index.ts");
    const deviceError = process.env.LONGSEQ_DEVICE ? messageFrom(() => new Device().dispose()) : null;
    return { loads: true, info: info(), deviceError, ...openNccl(ncclLibrary) };
  } catch (error) {
    const { code } = error as { code?: unknown };
    return { loads: code === "ERR_OPTION", error: messageOf(error) };
  }
}

function openNccl(open: () => NcclLibrary): Pick<Binary, "nccl" | "ncclError"> {
  try {
    return { nccl: open() };
  } catch (error) {
    return { ncclError: messageOf(error) };
  }
}
