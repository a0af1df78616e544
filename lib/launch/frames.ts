// Messages on a stream of bytes: u32 length of the body, u8 type, body; numbers big-endian.
import type { Socket } from "node:net";

/** In the order in which a rendezvous has them; `failed` may come in place of `values`, and `left` is of what follows. */
export const frameTypes = {
  challenge: 1,
  hello: 2,
  welcome: 3,
  value: 4,
  values: 5,
  done: 6,
  failed: 7,
  left: 8,
};
export type FrameType = keyof typeof frameTypes;

const headBytes = 5;

export interface Frame {
  readonly type: FrameType;
  readonly body: Buffer;
}

export function writeFrame(socket: Socket, type: FrameType, ...parts: readonly Uint8Array[]): void {
  const head = Buffer.alloc(headBytes);
  head.writeUInt32BE(parts.reduce((sum, part) => sum + part.length, 0));
  head[4] = frameTypes[type];
  // Together, as one packet where it is small, and without a copy of what may be large and goes to all ranks.
  socket.cork();
  for (const part of [head, ...parts]) socket.write(part);
  socket.uncork();
}

/** The last that a connection hears. */
export function sendFailure(socket: Socket, message: string): void {
  writeFrame(socket, "failed", Buffer.from(message));
  socket.end();
  // One that never closes its side must not keep this process.
  socket.unref();
}

/** Cuts what a socket receives into frames. */
export class FrameReader {
  /** Of a body; more is refused as soon as its head is there, before any of it is kept. */
  limit: number;
  readonly #chunks: Buffer[] = [];
  #bytes = 0;

  constructor(limit: number) {
    this.limit = limit;
  }

  push(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#bytes += chunk.length;
  }

  /** The next that is whole; undefined until then. Throws where this is none of our streams. */
  next(): Frame | undefined {
    if (this.#bytes < headBytes) return undefined;
    const head = this.#peek(headBytes);
    const length = head.readUInt32BE();
    const type = (Object.keys(frameTypes) as FrameType[]).find((name) => frameTypes[name] === head[4]);
    if (type === undefined || length > this.limit) throw new Error("no frame");
    if (this.#bytes < headBytes + length) return undefined;
    const whole = this.#peek(headBytes + length);
    this.#drop(headBytes + length);
    return { type, body: whole.subarray(headBytes) };
  }

  /** At least so many bytes, as one buffer at the front. */
  #peek(bytes: number): Buffer {
    const [first] = this.#chunks;
    if (first !== undefined && first.length >= bytes) return first.subarray(0, bytes);
    const joined = Buffer.concat(this.#chunks);
    this.#chunks.splice(0, this.#chunks.length, joined);
    return joined.subarray(0, bytes);
  }

  #drop(bytes: number): void {
    const rest = this.#chunks[0]?.subarray(bytes);
    if (rest === undefined || rest.length === 0) this.#chunks.shift();
    else this.#chunks[0] = rest;
    this.#bytes -= bytes;
  }
}

/** The values of all ranks as one body: u32 length and bytes of each. */
export function packValues(values: readonly Uint8Array[]): Buffer {
  const parts = values.flatMap((value) => {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(value.length);
    return [length, value];
  });
  return Buffer.concat(parts);
}

export function unpackValues(body: Buffer, count: number): Buffer[] {
  const values: Buffer[] = [];
  let at = 0;
  for (let i = 0; i < count; i++) {
    const length = body.readUInt32BE(at);
    const value = body.subarray(at + 4, at + 4 + length);
    if (value.length !== length) throw new Error("no values");
    values.push(value);
    at += 4 + length;
  }
  return values;
}
