// Rank 0's side of a rendezvous: it listens, believes only who knows the token, waits for a value of every rank, and
// sends all of them to all. A rank counts from its value on: whoever leaves before may come back, and whoever leaves
// after that ends the exchange for all.
import { randomBytes } from "node:crypto";
import { createServer, type Server, type Socket } from "node:net";
import { FrameReader, packValues, sendFailure, writeFrame } from "./frames.ts";
import {
  communicationFailure,
  formatAddress,
  isLoopback,
  isProof,
  listRanks,
  type Meeting,
  mostBytes,
  nonceBytes,
  proof,
  seconds,
} from "./meeting.ts";

/** A stranger may hold a connection for so long, and so many of them beside the ranks' own. */
const handshakeMs = 10_000;
const mostStrangers = 256;
const helloBytes = 12 + 2 * nonceBytes;

interface Member {
  readonly socket: Socket;
  readonly value: Buffer;
  hasAll: boolean;
}

/** The values of all ranks, in their order. */
export function meetAsRoot(value: Buffer, meeting: Meeting): Promise<Buffer[]> {
  return new Promise((resolve, reject) => {
    new Root(value, meeting, resolve, reject).listen();
  });
}

class Root {
  readonly #value: Buffer;
  readonly #meeting: Meeting;
  readonly #resolve: (values: Buffer[]) => void;
  readonly #reject: (reason: unknown) => void;
  readonly #members = new Map<number, Member>();
  readonly #strangers = new Set<Socket>();
  #server: Server | undefined;
  #refused = 0;
  /** Why nobody could come. */
  #obstacle = "";
  #isOver = false;
  #deadline: number;
  #timer: NodeJS.Timeout | undefined;

  constructor(
    value: Buffer,
    meeting: Meeting,
    resolve: (values: Buffer[]) => void,
    reject: (reason: unknown) => void,
  ) {
    this.#value = value;
    this.#meeting = meeting;
    this.#resolve = resolve;
    this.#reject = reject;
    this.#deadline = meeting.deadline;
  }

  readonly #onAbort = () => {
    this.#fail("rank 0 was interrupted", this.#meeting.signal?.reason);
  };

  listen(): void {
    const { address, signal, onListening } = this.#meeting;
    signal?.addEventListener("abort", this.#onAbort, { once: true });
    this.#waitUntil(this.#deadline);
    const server = createServer((socket) => this.#greet(socket));
    this.#server = server;
    server.on("error", (error: NodeJS.ErrnoException) => {
      // The address is often that of a meeting before this one, or of a job that is just ending.
      if (error.code === "EADDRINUSE") {
        this.#obstacle = `; rank 0 cannot listen: ${error.message}`;
        setTimeout(() => this.#isOver || server.listen(at), 100);
      } else this.#fail(`rank 0 cannot listen at ${formatAddress(address)}: ${error.message}`);
    });
    server.on("listening", () => {
      this.#obstacle = "";
      const bound = server.address();
      const port = typeof bound === "object" && bound !== null ? bound.port : address.port;
      onListening(formatAddress({ host: address.host, port }));
    });
    // A host's own name often leads to its loopback address, where no other host would find it.
    const at = isLoopback(address.host) ? address : { port: address.port };
    server.listen(at);
  }

  #waitUntil(deadline: number): void {
    if (this.#timer !== undefined && deadline >= this.#deadline) return;
    clearTimeout(this.#timer);
    this.#deadline = deadline;
    this.#timer = setTimeout(() => this.#giveUp(), Math.max(0, deadline - performance.now()));
  }

  #greet(socket: Socket): void {
    socket.setNoDelay(true);
    this.#strangers.add(socket);
    const [oldest] = this.#strangers;
    if (this.#strangers.size > mostStrangers + this.#meeting.size) oldest?.destroy();
    const nonce = randomBytes(nonceBytes);
    const reader = new FrameReader(helloBytes);
    const patience = setTimeout(() => this.#refuse(socket), handshakeMs);
    let rank: number | undefined;
    writeFrame(socket, "challenge", nonce);
    socket.on("error", () => socket.destroy());
    socket.on("close", () => {
      clearTimeout(patience);
      this.#strangers.delete(socket);
      if (rank !== undefined) this.#missed(rank, socket);
    });
    socket.on("data", (chunk: Buffer) => {
      try {
        reader.push(chunk);
        for (let frame = reader.next(); frame !== undefined; frame = reader.next()) {
          if (frame.type === "hello" && rank === undefined) {
            rank = this.#admit(socket, nonce, frame.body);
            if (rank === undefined) return;
            clearTimeout(patience);
            reader.limit = 1 + mostBytes;
          } else if (frame.type === "value" && rank !== undefined) this.#take(rank, socket, frame.body);
          else if (frame.type === "done" && rank !== undefined) this.#leave(rank, socket);
          else throw new Error(`${frame.type} out of turn`);
        }
      } catch {
        this.#refuse(socket);
      }
    });
  }

  #refuse(socket: Socket): void {
    this.#refused++;
    socket.destroy();
  }

  /** The rank that a hello proves to be of; undefined where it is turned away. */
  #admit(socket: Socket, nonce: Buffer, hello: Buffer): number | undefined {
    const { key, size } = this.#meeting;
    const [said, mac] = [hello.subarray(0, -nonceBytes), hello.subarray(-nonceBytes)];
    if (hello.length !== helloBytes || !isProof(mac, proof(key, "rank", nonce, said))) {
      this.#refuse(socket);
      return undefined;
    }
    const [rank, itsSize, leftMs] = [said.readUInt32BE(0), said.readUInt32BE(4), said.readUInt32BE(8)];
    writeFrame(socket, "welcome", proof(key, "root", nonce, said));
    if (itsSize !== size || rank === 0 || rank >= size) {
      this.#turnAway(socket, `rank ${rank} of ${itsSize} came to rank 0 of ${size}`);
      return undefined;
    }
    // Who has waited longest must still hear which ranks are missing.
    this.#waitUntil(performance.now() + Math.max(leftMs * 0.8, leftMs - 1000));
    return rank;
  }

  #turnAway(socket: Socket, why: string): void {
    this.#refused++;
    sendFailure(socket, communicationFailure(this.#meeting, why).message);
  }

  #take(rank: number, socket: Socket, body: Buffer): void {
    if (this.#members.has(rank)) {
      this.#turnAway(socket, `rank ${rank} is already here, expected one of each`);
      return;
    }
    this.#strangers.delete(socket);
    this.#members.set(rank, { socket, value: Buffer.from(body), hasAll: false });
    if (body[0] !== this.#value[0]) {
      const kind = (value: Buffer) => (value[0] === 1 ? "a text" : "bytes");
      this.#fail(`rank ${rank} gave ${kind(body)}, expected ${kind(this.#value)} (as rank 0)`);
      return;
    }
    if (this.#members.size === this.#meeting.size - 1) this.#answer();
  }

  /** All have come. From here on the address is free for the next meeting. */
  #answer(): void {
    this.#server?.close();
    for (const stranger of this.#strangers) stranger.destroy();
    const values = packValues(this.#values());
    for (const { socket } of this.#members.values()) writeFrame(socket, "values", values);
  }

  #values(): Buffer[] {
    const { size } = this.#meeting;
    return Array.from({ length: size }, (_, rank) => this.#members.get(rank)?.value ?? this.#value);
  }

  #leave(rank: number, socket: Socket): void {
    const member = this.#members.get(rank);
    if (member?.socket !== socket) return;
    member.hasAll = true;
    socket.end();
    if ([...this.#members.values()].every(({ hasAll }) => hasAll) && this.#missing().length === 0) {
      this.#end();
      this.#resolve(this.#values());
    }
  }

  #missed(rank: number, socket: Socket): void {
    const member = this.#members.get(rank);
    if (this.#isOver || member?.socket !== socket || member.hasAll) return;
    this.#fail(`rank ${rank} left before all ranks had all values`);
  }

  #missing(): number[] {
    const ranks = Array.from({ length: this.#meeting.size - 1 }, (_, i) => i + 1);
    return ranks.filter((rank) => !this.#members.has(rank));
  }

  #giveUp(): void {
    const { size, timeoutMs, deadline } = this.#meeting;
    // Less than this rank's own timeout where another's ends earlier.
    const waited = seconds(performance.now() - (deadline - timeoutMs));
    const missing = this.#missing();
    const silent = [...this.#members].filter(([, { hasAll }]) => !hasAll).map(([rank]) => rank);
    const refused = this.#refused > 0 ? `; connections refused: ${this.#refused}` : "";
    this.#fail(
      missing.length > 0
        ? `${listRanks(missing)} of ${size} did not come within ${waited}${refused}${this.#obstacle}`
        : `${listRanks(silent)} of ${size} did not take the values within ${waited}`,
    );
  }

  #fail(what: string, reason?: unknown): void {
    if (this.#isOver) return;
    this.#end();
    const error = communicationFailure(this.#meeting, what);
    for (const { socket } of this.#members.values()) sendFailure(socket, error.message);
    this.#reject(reason ?? error);
  }

  #end(): void {
    this.#isOver = true;
    clearTimeout(this.#timer);
    this.#meeting.signal?.removeEventListener("abort", this.#onAbort);
    this.#server?.close();
    for (const stranger of this.#strangers) stranger.destroy();
  }
}
