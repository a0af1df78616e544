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
  // An instruction for pairs of products does twice the work of one in float32, but some processors begin two of
  // those in a cycle and one of these, at fewer of them in flight: twice as fast to half as fast, and noise.
  if (instructionSet === "avx512bf16") t.ok(bfloat16 > 0.25 * float32, `${bfloat16} TFLOP/s in bfloat16`);
  else t.ok(bfloat16 < 2 * float32, "bfloat16 is multiplied as float32");
});

const gpuless = info().cuda.gpus.length === 0 && "there is no GPU";
t.test("a GPU's, with Ampere's instructions", { skip: gpuless }, async (t) => {
  using device = new Device("cuda");
  const float32 = await measurePeak(device, "float32");
  const bfloat16 = await measurePeak(device, "bfloat16");
  const float16 = await measurePeak(device, "float16");
  // The slowest GPU that is supported has 5 and 20, an H100 67 and 660.
  t.ok(float32 > 3 && float32 < 200, `${float32} TFLOP/s in float32`);
  t.ok(bfloat16 > 1.5 * float32 && bfloat16 < 5000, `${bfloat16} TFLOP/s in bfloat16`);
  t.ok(float16 > 0.8 * bfloat16, `${float16} TFLOP/s in float16`);
});
