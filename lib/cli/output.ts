// Where a command writes: text for people, JSON lines for programs, progress for whoever waits at a terminal.
import { OutputFile } from "./output-file.ts";

/**
 * What has failed in another of the processes that run a command together. That one says so itself, and rank 0, whose
 * words are looked for, says it too.
 */
export class RemoteFailure extends Error {
  readonly code: string | undefined;
  readonly isSilent: boolean;

  constructor(message: string, code: string | undefined, isSilent: boolean) {
    super(message);
    this.code = code;
    this.isSilent = isSilent;
  }
}

/** JSON lines to a file, or to standard output for `-`; written as they come, so that a killed run keeps its own. */
export class JsonLines implements Disposable {
  readonly #file: OutputFile | undefined;

  /** `inputs`: files that it may not be. */
  constructor(path: string, inputs: readonly string[]) {
    if (path === "-") return;
    this.#file = new OutputFile("json", path, inputs);
    this.#file.empty();
  }

  write(line: object): void {
    const text = `${JSON.stringify(line)}\n`;
    if (this.#file === undefined) process.stdout.write(text);
    else this.#file.write(text);
  }

  [Symbol.dispose](): void {
    this.#file?.[Symbol.dispose]();
  }
}

/** Where text for people goes. */
export interface TextStream {
  readonly isTTY?: boolean;
  write(text: string): unknown;
}

/** Text for people: on standard output, unless JSON has taken it. */
function textStream(json: string | undefined): NodeJS.WriteStream {
  return json === "-" ? process.stderr : process.stdout;
}

/** One line on a terminal's standard error that replaces itself; nothing where there is no terminal. */
export class Progress {
  readonly #isWanted: boolean;
  #shown = false;

  constructor(isWanted = true) {
    this.#isWanted = isWanted;
  }

  show(text: string): void {
    if (!this.#isWanted || !process.stderr.isTTY) return;
    process.stderr.write(`\r\x1b[2K${text.slice(0, (process.stderr.columns || 80) - 1)}`);
    this.#shown = true;
  }

  clear(): void {
    if (this.#shown) process.stderr.write("\r\x1b[2K");
    this.#shown = false;
  }
}

export interface Column {
  readonly title: string;
  readonly width: number;
  readonly align?: "left" | "right";
}

/** A table that is printed row by row as its rows become known, so its widths are fixed beforehand. */
export class Table {
  readonly #columns: readonly Column[];
  readonly #stream: TextStream;

  constructor(stream: TextStream, columns: readonly Column[]) {
    this.#stream = stream;
    this.#columns = columns;
  }

  head(): void {
    const line = this.#line(this.#columns.map(({ title }) => title));
    this.#stream.write(`${bold(this.#stream, line)}\n`);
  }

  row(cells: readonly string[]): void {
    this.#stream.write(`${this.#line(cells)}\n`);
  }

  #line(cells: readonly string[]): string {
    const padded = this.#columns.map(({ title, width, align = "right" }, i) => {
      const cell = cells[i] ?? "";
      const size = Math.max(width, title.length);
      return align === "left" ? cell.padEnd(size) : cell.padStart(size);
    });
    return padded.join("  ").trimEnd();
  }
}

export function bold(stream: TextStream, text: string): string {
  return stream.isTTY && !process.env.NO_COLOR ? `\x1b[1m${text}\x1b[22m` : text;
}

/** Where one process of a command writes. */
export interface Output extends Disposable {
  readonly json: JsonLines | undefined;
  readonly report: OutputFile | undefined;
  readonly stream: TextStream;
  readonly progress: Progress;
}

/** What is written beside the text, and what is read, which that may not be. */
interface Files {
  readonly json: string | undefined;
  readonly report?: string | undefined;
  readonly inputs?: readonly string[];
}

/** Of the processes that run a command together rank 0 writes, and the others nothing. */
export function openOutput({ json, report, inputs = [] }: Files, rank: number): Output {
  const none = { json: undefined, report: undefined, [Symbol.dispose]: () => {} };
  if (rank > 0) return { ...none, stream: { write: () => true }, progress: new Progress(false) };
  // In this order: to open the report empties nothing.
  const files = {
    report: report === undefined ? undefined : new OutputFile("report", report, inputs),
    json:
      json === undefined
        ? undefined
        : new JsonLines(json, report === undefined ? inputs : [...inputs, report]),
  };
  return {
    ...files,
    stream: textStream(json),
    progress: new Progress(),
    [Symbol.dispose]: () => {
      for (const file of Object.values(files)) file?.[Symbol.dispose]();
    },
  };
}
