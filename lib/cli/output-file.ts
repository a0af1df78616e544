// A file that an option names for results.
import { closeSync, fstatSync, ftruncateSync, openSync, statSync, writeFileSync, writeSync } from "node:fs";
import { resolve } from "node:path";
import { failure } from "../errors.ts";
import { UsageError } from "./arguments.ts";

/** Opened before the work begins: that it cannot be written is heard of then, and not once hours of it are lost. */
export class OutputFile implements Disposable {
  /** The option and its value. */
  readonly #name: string;
  readonly #file: number;

  /** What it holds stays until something is written. `others`: files that it may not be. */
  constructor(option: string, path: string, others: readonly string[]) {
    this.#name = `--${option} ${path}`;
    const other = others.find((one) => isSameFile(one, path));
    if (other !== undefined)
      throw new UsageError(`${this.#name} is the same file as ${other}, expected another`);
    try {
      this.#file = openSync(path, "a");
      // A device that takes nothing says so to no bytes too.
      writeSync(this.#file, "");
    } catch (error) {
      throw failure("ERR_FILE", this.#complaint(error), { cause: error });
    }
  }

  /** Forgets what it held. */
  empty(): void {
    if (fstatSync(this.#file).isFile()) ftruncateSync(this.#file);
  }

  write(text: string): void {
    try {
      writeFileSync(this.#file, text);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      throw Object.assign(new Error(this.#complaint(error), { cause: error }), { code });
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.#file);
  }

  #complaint(error: unknown): string {
    return `${this.#name} cannot be written: ${(error as Error).message}`;
  }
}

/** By whatever names and links. */
function isSameFile(a: string, b: string): boolean {
  if (resolve(a) === resolve(b)) return true;
  const [one, other] = [a, b].map((path) => {
    try {
      return statSync(path, { bigint: true });
    } catch {
      // Nothing that could be lost.
      return undefined;
    }
  });
  return one?.isFile() === true && one.dev === other?.dev && one.ino === other.ino;
}
