// What goes wrong with files.
import { failure, hasOwnCode, wrongKind } from "../errors.ts";

export function checkPath(operation: string, path: string): void {
  if (typeof path !== "string") throw wrongKind(`${operation}: path`, "a string", path);
}

/** Errors that already have a code of ours (out of memory, disposed) pass; the rest are the file's. */
export function asFileError(operation: string, path: string, error: unknown): Error {
  if (!(error instanceof Error)) return failure("ERR_FILE", `${operation}: ${path}: ${String(error)}`);
  if (hasOwnCode(error)) return error;
  return failure("ERR_FILE", `${operation}: ${path}: ${error.message}`, { cause: error });
}
