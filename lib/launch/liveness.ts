// How the ranks of a job hear of each other while it runs: one connection from each to rank 0, which passes on what it
// hears. One that closes without a word is a dead process. Nothing here keeps a process alive.
//   rank r: hello(r, secret)      then either side: failed(why)   left(rank, steps)
import { randomBytes, timingSafeEqual } from "node:crypto";
import { connect, createServer, type Server, type Socket } from "node:net";
import { FrameReader, sendFailure, writeFrame } from "./frames.ts";
import { type Address, isLoopback } from "./meeting.ts";

/** What others tell. */
export interface News {
  onFailure(why: string): void;
  /** A rank comes to no further step after so many. */
  onLeft(rank: number, steps: number): void;
}

/** What this rank tells the others, once either. */
export interface Liveness {
  fail(why: string): void;
  leave(steps: number): void;
}

const mostBytes = 1 << 16;
const helloMs = 10_000;
const secretBytes = 32;

/** The side of rank 0. */
export class LivenessRoot implements Liveness {
  /** What a connection must know. It is told to the ranks where they prove themselves, in the rendezvous. */
  readonly secret = randomBytes(secretBytes);
  readonly #size: number;
  readonly #news: News;
  readonly #server: Server;
  readonly #sockets = new Map<number, Socket>();
  readonly #left = new Set<number>();
  #isOver = false;

  constructor(size: number, news: News) {
    this.#size = size;
    this.#news = news;
    this.#server = createServer((socket) => this.#greet(socket));
  }

  /** The port that it listens at. */
  listen(host: string): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(isLoopback(host) ? { host, port: 0 } : { port: 0 }, () => {
        const bound = this.#server.address();
        resolve(typeof bound === "object" && bound !== null ? bound.port : 0);
      });
      this.#server.unref();
    });
  }

  fail(why: string): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#server.close();
    for (const socket of this.#sockets.values()) sendFailure(socket, why);
  }

  leave(steps: number): void {
    this.#pass(0, steps);
  }

  #greet(socket: Socket): void {
    const patience = setTimeout(() => socket.destroy(), helloMs).unref();
    let rank: number | undefined;
    receive(socket, (type, body) => {
      if (type === "hello" && rank === undefined) {
        rank = this.#admit(socket, body);
        clearTimeout(patience);
      } else if (type === "failed" && rank !== undefined) this.#lose(body.toString());
      else if (type === "left" && rank !== undefined) this.#pass(rank, body.readDoubleBE(4));
      else throw new Error("out of turn");
    });
    socket.on("close", () => {
      clearTimeout(patience);
      if (rank !== undefined && !this.#left.has(rank)) this.#lose(gone(rank));
    });
  }

  #admit(socket: Socket, hello: Buffer): number {
    const secret = hello.subarray(4);
    if (secret.length !== secretBytes || !timingSafeEqual(secret, this.secret)) throw new Error("a stranger");
    const rank = hello.readUInt32BE();
    if (rank === 0 || rank >= this.#size || this.#sockets.has(rank)) throw new Error("no such rank");
    this.#sockets.set(rank, socket);
    if (this.#sockets.size === this.#size - 1) this.#server.close();
    return rank;
  }

  #lose(why: string): void {
    if (this.#isOver) return;
    this.fail(why);
    this.#news.onFailure(why);
  }

  #pass(rank: number, steps: number): void {
    if (this.#isOver || this.#left.has(rank)) return;
    this.#left.add(rank);
    for (const [other, socket] of this.#sockets) {
      if (other !== rank && !this.#left.has(other)) writeFrame(socket, "left", leaving(rank, steps));
    }
    if (rank !== 0) this.#news.onLeft(rank, steps);
  }
}

/** The side of all others. */
export class LivenessMember implements Liveness {
  readonly #rank: number;
  readonly #news: News;
  readonly #socket: Socket;
  #isOver = false;

  constructor(rank: number, address: Address, secret: Uint8Array, news: News) {
    this.#rank = rank;
    this.#news = news;
    this.#socket = connect(address);
    let problem = "";
    let rootHasLeft = false;
    const socket = this.#socket;
    receive(socket, (type, body) => {
      if (type === "failed") this.#lose(body.toString());
      else if (type === "left") {
        const left = body.readUInt32BE();
        rootHasLeft ||= left === 0;
        this.#news.onLeft(left, body.readDoubleBE(4));
      } else throw new Error("out of turn");
    });
    socket.on("error", (error) => {
      problem = error.message;
    });
    socket.on("close", () => rootHasLeft || this.#lose(gone(0, problem)));
    const number = Buffer.alloc(4);
    number.writeUInt32BE(rank);
    writeFrame(socket, "hello", number, secret);
  }

  fail(why: string): void {
    if (this.#isOver) return;
    this.#isOver = true;
    sendFailure(this.#socket, why);
  }

  leave(steps: number): void {
    if (this.#isOver) return;
    this.#isOver = true;
    writeFrame(this.#socket, "left", leaving(this.#rank, steps));
    this.#socket.end();
  }

  #lose(why: string): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#socket.destroy();
    this.#news.onFailure(why);
  }
}

/** Hands on every frame; a stream that is none of ours is ended. */
function receive(socket: Socket, take: (type: string, body: Buffer) => void): void {
  const reader = new FrameReader(mostBytes);
  socket.setNoDelay(true);
  socket.setKeepAlive(true, 10_000); // a host that has lost its power closes nothing
  socket.unref();
  socket.on("error", () => socket.destroy());
  socket.on("data", (chunk: Buffer) => {
    try {
      reader.push(chunk);
      for (let frame = reader.next(); frame !== undefined; frame = reader.next())
        take(frame.type, frame.body);
    } catch {
      socket.destroy();
    }
  });
}

function gone(rank: number, problem = ""): string {
  return `rank ${rank} is gone: its process has ended${problem && `, or cannot be reached (${problem})`}`;
}

function leaving(rank: number, steps: number): Buffer {
  const body = Buffer.alloc(12);
  body.writeUInt32BE(rank);
  body.writeDoubleBE(steps, 4);
  return body;
}
