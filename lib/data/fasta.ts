// FASTA: `>name description` lines, each followed by lines of bases. Read as a stream, compressed or not.
import { type FileHandle, open } from "node:fs/promises";
import { pipeline } from "node:stream/promises";
import { createGunzip } from "node:zlib";
import { asFileError, checkPath } from "./file-errors.ts";

/** One sequence of a FASTA file. */
export interface FastaRecord {
  /** The first word of the record's title. */
  name: string;
  /** The rest of the title; empty where there is none. */
  description: string;
  /** The bases, as ASCII capitals. */
  sequence: Uint8Array;
}

const newline = 0x0a;
const carriageReturn = 0x0d;
const space = 0x20;
const tab = 0x09;
const title = 0x3e; // ">"
const comment = 0x3b; // ";"
/** What some editors put before a UTF-8 text (its byte order mark). */
const mark = [0xef, 0xbb, 0xbf];
/** Of a title, in bytes: what has more is no FASTA, and no string could hold what a file may have. */
const longestTitle = 1 << 20;

/** The byte to keep for each byte read; 0 where it is no part of a sequence. Letters, `-` (gap) and `*` (stop) are. */
const kept = Uint8Array.from({ length: 256 }, (_, byte) => {
  const text = String.fromCharCode(byte);
  return /[A-Za-z*-]/.test(text) ? text.toUpperCase().charCodeAt(0) : 0;
});

/**
 * Reads the records of a FASTA file (Pearson and Lipman, 1988). Gzip is recognised by its first bytes, line ends may be
 * of any kind, lower case (which marks repeats) becomes upper case, and lines that begin with `;` are comments.
 * Sequences hold letters, `-` and `*`; spaces between them do not matter.
 *
 * @throws (as a rejection) `ERR_FILE` where the file cannot be read, or is no FASTA: with the line.
 * @example
 * import { writeFile } from "node:fs/promises";
 * await writeFile("short.fa", ">one of two\nACG\nta\n>two\nNN\n");
 * const [one] = await readFasta("short.fa");
 * one?.description; // "of two"
 * one?.sequence; // [65, 67, 71, 84, 65]
 */
export async function readFasta(path: string): Promise<FastaRecord[]> {
  checkPath("readFasta", path);
  const parser = new FastaParser();
  let file: FileHandle | undefined;
  let fault: unknown;
  try {
    file = await open(path, "r");
    const { buffer, bytesRead } = await file.read(new Uint8Array(2), 0, 2, 0);
    const isGzip = bytesRead === 2 && buffer[0] === 0x1f && buffer[1] === 0x8b;
    const bytes = file.createReadStream({ start: 0, autoClose: false });
    const parse = async (chunks: AsyncIterable<Uint8Array>) => {
      try {
        for await (const chunk of chunks) parser.feed(chunk);
      } catch (error) {
        fault = error; // the pipeline may tell of a stream that it aborted for this
        throw error;
      }
    };
    if (isGzip) await pipeline(bytes, createGunzip(), parse);
    else await pipeline(bytes, parse);
    return parser.end();
  } catch (error) {
    throw asFileError("readFasta", path, fault ?? error);
  } finally {
    await file?.close();
  }
}

/** Takes a file in pieces of any size, and holds its sequences alone. Errors name the line. */
class FastaParser {
  #records: FastaRecord[] = [];
  #title: number[] | undefined;
  #bases = new Uint8Array(1 << 16);
  #count = 0;
  #line = 1;
  #state: "line start" | "title" | "comment" | "bases" = "line start";
  /** Bytes of the mark that have come; all, where there is none. */
  #marked = 0;

  feed(chunk: Uint8Array): void {
    let first = 0;
    while (first < chunk.length && this.#marked < mark.length) {
      if (chunk[first] === mark[this.#marked]) {
        this.#marked++;
        first++;
      } else {
        this.#read(mark.slice(0, this.#marked));
        this.#marked = mark.length;
      }
    }
    this.#read(chunk.subarray(first));
  }

  #read(bytes: Iterable<number>): void {
    for (const byte of bytes) {
      if (byte === newline || byte === carriageReturn) {
        this.#state = "line start";
        if (byte === newline) this.#line++;
      } else if (this.#state === "title") {
        if (this.#title?.push(byte) === longestTitle) {
          throw new Error(`line ${this.#line}: a title of ${longestTitle} bytes or more`);
        }
      } else if (this.#state === "comment" || (byte === comment && this.#state === "line start")) {
        this.#state = "comment";
      } else if (byte === title && this.#state === "line start") {
        this.#finish();
        this.#title = [];
        this.#state = "title";
      } else {
        this.#state = "bases";
        if (byte !== space && byte !== tab) this.#append(byte);
      }
    }
  }

  end(): FastaRecord[] {
    this.#finish();
    if (this.#records.length === 0) throw new Error("it holds no record: expected a line that begins with >");
    return this.#records;
  }

  #append(byte: number) {
    if (!this.#title) throw new Error(`line ${this.#line}: expected a title, a line that begins with >`);
    const base = kept[byte];
    if (!base) {
      const shown = byte > 0x20 && byte < 0x7f ? `"${String.fromCharCode(byte)}"` : `byte ${byte}`;
      throw new Error(`line ${this.#line}: ${shown} is no part of a sequence`);
    }
    if (this.#count === this.#bases.length) {
      const larger = new Uint8Array(2 * this.#bases.length);
      larger.set(this.#bases);
      this.#bases = larger;
    }
    this.#bases[this.#count++] = base;
  }

  #finish() {
    if (!this.#title) return;
    const text = new TextDecoder().decode(Uint8Array.from(this.#title)).trim();
    const [name = "", ...rest] = text.split(/\s+/);
    if (this.#count === 0)
      throw new Error(`line ${this.#line}: record "${name}" has no bases before this line`);
    this.#records.push({ name, description: rest.join(" "), sequence: this.#bases.slice(0, this.#count) });
    this.#count = 0;
  }
}
