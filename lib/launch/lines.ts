// Output of many processes onto one stream, whole lines at a time.
import type { Readable, Writable } from "node:stream";

const newline = 10;

/** A line that is longer is passed on in parts: a process may write megabytes without an end of line. */
const longest = 1 << 16;

/** What becomes of a line, without its end; null drops it. */
export type Rewrite = (line: Buffer) => Uint8Array | string | null;

/** A stream that many write to, each waiting where it is full. */
export class Sink {
  readonly #stream: Writable;
  #drained: Promise<void> | undefined;

  constructor(stream: Writable) {
    this.#stream = stream;
  }

  /** What nobody reads any more is dropped: whoever writes goes on. */
  async write(lines: Uint8Array): Promise<void> {
    if (this.#stream.destroyed || this.#stream.write(lines)) return;
    this.#drained ??= new Promise((resolve) => {
      const events = ["drain", "error", "close"];
      const end = () => {
        for (const event of events) this.#stream.off(event, end);
        this.#drained = undefined;
        resolve();
      };
      for (const event of events) this.#stream.on(event, end);
    });
    await this.#drained;
  }
}

/** Passes lines on as they become whole, and the rest at the end, until the source is closed. */
export async function copyLines(source: Readable, sink: Sink, rewrite: Rewrite): Promise<void> {
  let rest: Buffer[] = [];
  let restBytes = 0;
  const take = (line: Buffer): Uint8Array[] => {
    const rewritten = rewrite(line);
    return rewritten === null ? [] : [Buffer.from(rewritten), Buffer.of(newline)];
  };
  try {
    for await (const chunk of source as AsyncIterable<Buffer>) {
      const lines: Uint8Array[] = [];
      let at = 0;
      for (let end = chunk.indexOf(newline); end >= 0; end = chunk.indexOf(newline, at)) {
        lines.push(...take(Buffer.concat([...rest, chunk.subarray(at, end)])));
        rest = [];
        restBytes = 0;
        at = end + 1;
      }
      if (at < chunk.length) {
        rest.push(chunk.subarray(at));
        restBytes += chunk.length - at;
      }
      if (restBytes >= longest) {
        lines.push(...take(Buffer.concat(rest)));
        rest = [];
        restBytes = 0;
      }
      if (lines.length > 0) await sink.write(Buffer.concat(lines));
    }
  } catch (error) {
    // Given up on, because something that left the rank's process group holds it open.
    if ((error as NodeJS.ErrnoException).code !== "ERR_STREAM_PREMATURE_CLOSE") throw error;
  }
  if (rest.length > 0) await sink.write(Buffer.concat(take(Buffer.concat(rest))));
}
