import t from "tap";
import { Device } from "../lib/device.ts";
import { info } from "../lib/info.ts";
import { measurePeak } from "../lib/peak.ts";

t.test("the peak is a rate that this processor could have", async (t) => {
  using device = new Device("cpu");
  const { threads, instructionSet } = info().cpu;
  const [float32, bfloat16] = [await measurePeak(device, "float32"), await measurePeak(device, "bfloat16")];
  // 1 GFLOP/s a thread is an emulator's; 64 operations at 8 GHz a cycle more than any core's.
  t.ok(float32 > 0.001 && float32 < 0.512 * threads, `${float32} TFLOP/s in float32`);
  if (instructionSet === "avx512bf16") t.ok(bfloat16 > 1.2 * float32, `${bfloat16} TFLOP/s in bfloat16`);
  else t.ok(bfloat16 < 2 * float32, "bfloat16 is multiplied as float32");
});
