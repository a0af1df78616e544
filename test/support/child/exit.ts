// Leaves the process, in one of several ways, while devices work.
import { attention, Device, Tensor } from "longseq";

const ways: Record<string, (reads: Promise<unknown>[]) => unknown> = {
  "process.exit": () => process.exit(7),
  "process.exit after an await": async ([first]) => {
    await first;
    process.exit(7);
  },
  "an uncaught error": () => {
    throw new Error("on purpose");
  },
  "nothing awaited": () => undefined,
  "all awaited": (reads) => Promise.all(reads),
};

export type Way = keyof typeof ways;

const devices = Array.from({ length: 3 }, () => new Device());
const reads = devices.flatMap((device) => {
  const q = Tensor.normal([1, 700, 4, 64], { device });
  return Array.from({ length: 3 }, () => {
    const out = attention(q, q, q);
    return out.data().finally(() => out.dispose());
  });
});
await ways[process.argv[2] ?? ""]?.(reads);
