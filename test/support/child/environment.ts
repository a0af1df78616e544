// Prints as JSON what the variables of this process give, or the errors of those that ask.
import { Device, info } from "longseq";

export interface Environment {
  memoryLimit?: number;
  threads?: number;
  instructionSet?: string;
  /** Of a device that is opened, and of `info`. */
  errors: { code: unknown; message: string }[];
}

const report: Environment = { errors: [] };
for (const ask of [
  () => new Device("cpu").dispose(),
  () => {
    const { memoryLimit, threads, instructionSet } = info().cpu;
    Object.assign(report, { memoryLimit, threads, instructionSet });
  },
]) {
  try {
    ask();
  } catch (error) {
    const { code, message } = error as Error & { code?: unknown };
    report.errors.push({ code, message });
  }
}
console.log(JSON.stringify(report));
