// Prints as JSON what a product says where cuBLASLt cannot be opened, and what another operation gives after it.
import { matmul, Tensor } from "longseq";

export interface WithoutLibrary {
  code: unknown;
  message: string;
  sum: number[];
}

const report: WithoutLibrary = { code: undefined, message: "", sum: [] };
try {
  matmul(Tensor.zeros([2, 2]), Tensor.zeros([2, 2]));
} catch (error) {
  report.code = (error as { code?: unknown }).code;
  report.message = (error as Error).message;
}
report.sum = Array.from(await Tensor.from([2, 3], [2]).contiguous().data());
console.log(JSON.stringify(report));
