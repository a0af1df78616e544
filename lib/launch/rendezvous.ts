// Ranks of separate processes meet over TCP to tell each other a few bytes: an id of NCCL's, a host's name. The protocol:
//   rank 0: challenge(nonce)               rank r: hello(r, size, time left, nonce', HMAC(token, nonce, those before))
//   rank 0: welcome(HMAC(token, the same)) rank r: value     rank 0: values of all, or failed(why)     rank r: done
// The token itself is never sent. Values are neither encrypted nor signed: who can change packets can change them.
import { checkOptions, failure, type OptionNames, shown, wrongKind } from "../errors.ts";
import { isLoopback, type Meeting, mostBytes, mostRanks, parseAddress } from "./meeting.ts";
import { rankFromEnvironment } from "./rank.ts";
import { meetAsMember } from "./rendezvous-member.ts";
import { meetAsRoot } from "./rendezvous-root.ts";

/** Where and how ranks meet. All of it but `rank` must be the same on all of them. */
export interface ExchangeOptions {
  /** Default, with `size`: `rankFromEnvironment()`. */
  rank?: number;
  size?: number;
  /**
   * "host:port" that rank 0 listens at. Default: `LONGSEQ_RENDEZVOUS`, which `longseq launch` sets, else `MASTER_ADDR`
   * and `MASTER_PORT`; under torchrun, whose own store has that port, the next one. A loopback address is listened at
   * alone, of all others only the port counts. Rank 0 may say port 0, for any that is free, and pass on what
   * `onListening` tells.
   */
  address?: string;
  /**
   * What all ranks know and nobody else, at least 16 bytes. Default: `LONGSEQ_TOKEN`, which `longseq launch` makes.
   * Without one only a loopback address is accepted, where any program of this machine may take part.
   */
  token?: string | Uint8Array;
  /** For all ranks to come and have all values. Default 120,000. */
  timeoutMs?: number;
  /** Gives up; this rank rejects with its reason, the others with `ERR_COMM`. */
  signal?: AbortSignal;
  /** On rank 0, once: the address with the port that it listens at. */
  onListening?: (address: string) => void;
}

export const exchangeOptionNames: OptionNames<ExchangeOptions> = {
  rank: true,
  size: true,
  address: true,
  token: true,
  timeoutMs: true,
  signal: true,
  onListening: true,
};

/**
 * Gives every rank the values of all, in the order of the ranks; a barrier too. On every rank the same calls are made in
 * the same order. Rank 0 listens, all others connect and try again until the timeout; both sides prove that they know
 * the token (HMAC-SHA256 of challenges, RFC 2104), so a stranger, a wrong rank or a second one of the same number is
 * turned away and harms nobody.
 *
 * @param value bytes or a text (JSON, say), the same kind on all ranks, of at most 1 MiB.
 * @throws `ERR_COMM`, a rejection on every rank that came: ranks that did not come within the timeout, or that left
 * before all had everything, by their numbers; a rank that gives the other kind of value. `ERR_OPTION` for arguments
 * that cannot be, an address that is missing, or no token where another host could connect.
 * @example
 * const address = await new Promise<string>((onListening) => {
 *   const token = "only for this page";
 *   exchange("zero", { rank: 0, size: 2, address: "127.0.0.1:0", token, onListening });
 * });
 * await exchange("one", { rank: 1, size: 2, address, token: "only for this page" }); // ["zero", "one"]
 */
export async function exchange<Value extends Uint8Array | string>(
  value: Value,
  options: ExchangeOptions = {},
): Promise<Value extends string ? string[] : Uint8Array[]> {
  checkOptions("exchange", options, exchangeOptionNames);
  const values = await meet("exchange", value, options);
  return values as Value extends string ? string[] : Uint8Array[];
}

/**
 * Gives every rank the value of rank 0, as an id of NCCL's. A case of `exchange`, with its options and errors.
 *
 * @param value bytes of rank 0, at most 1 MiB; the others' are not looked at.
 * @example
 * await broadcast(new Uint8Array([1, 2]), { rank: 0, size: 1 }); // [1, 2]
 */
export async function broadcast(
  value: Uint8Array | undefined,
  options: ExchangeOptions = {},
): Promise<Uint8Array> {
  checkOptions("broadcast", options, exchangeOptionNames);
  const here = place("broadcast", options);
  const own = here.rank === 0 ? value : new Uint8Array();
  const [first] = await meet("broadcast", own, { ...options, ...here });
  if (!(first instanceof Uint8Array)) throw wrongKind("broadcast: value", "bytes (Uint8Array)", first);
  return first;
}

/** As `exchange`, for an operation of another name. */
export async function meet(
  operation: string,
  value: unknown,
  options: ExchangeOptions,
): Promise<string[] | Uint8Array[]> {
  const isText = typeof value === "string";
  if (!isText && !(value instanceof Uint8Array))
    throw wrongKind(`${operation}: value`, "bytes (Uint8Array) or a string", value);
  const body = Buffer.concat([Buffer.of(isText ? 1 : 0), isText ? Buffer.from(value) : value]);
  if (body.length - 1 > mostBytes) {
    throw failure(
      "ERR_OPTION",
      `${operation}: value has ${body.length - 1} bytes, expected at most ${mostBytes}`,
    );
  }
  const values = await gather(operation, body, options);
  return isText
    ? values.map((one) => one.toString("utf8", 1))
    : values.map((one) => Uint8Array.from(one.subarray(1)));
}

async function gather(operation: string, body: Buffer, options: ExchangeOptions): Promise<Buffer[]> {
  const { rank, size } = place(operation, options);
  const { timeoutMs = 120_000, signal, onListening = () => {} } = options;
  if (typeof timeoutMs !== "number" || !(timeoutMs >= 1 && timeoutMs < 2 ** 31)) {
    throw failure(
      "ERR_OPTION",
      `${operation}: timeoutMs is ${shown(timeoutMs)}, expected a number from 1 to 2147483647`,
    );
  }
  if (signal !== undefined && !(signal instanceof AbortSignal))
    throw wrongKind(`${operation}: signal`, "an AbortSignal", signal);
  if (typeof onListening !== "function")
    throw wrongKind(`${operation}: onListening`, "a function", onListening);
  signal?.throwIfAborted();
  if (size === 1) return [body];
  const address = addressOf(operation, options, rank);
  const meeting: Meeting = {
    operation,
    rank,
    size,
    address,
    key: keyOf(operation, options, address.host),
    timeoutMs,
    deadline: performance.now() + timeoutMs,
    signal,
    onListening,
  };
  return await (rank === 0 ? meetAsRoot(body, meeting) : meetAsMember(body, meeting));
}

/** Which rank this is to be. */
export function place(operation: string, options: ExchangeOptions): { rank: number; size: number } {
  checkOptions(operation, options);
  const { rank, size } =
    options.rank === undefined && options.size === undefined ? rankFromEnvironment() : options;
  for (const [name, count, least] of [
    ["size", size, 1],
    ["rank", rank, 0],
  ] as const) {
    if (count === undefined || !Number.isInteger(count) || count < least || count > mostRanks) {
      throw failure(
        "ERR_OPTION",
        `${operation}: ${name} is ${shown(count)}, expected a whole number of at least ${least}`,
      );
    }
  }
  const [checkedRank, checkedSize] = [Number(rank), Number(size)];
  if (checkedRank >= checkedSize) {
    throw failure(
      "ERR_OPTION",
      `${operation}: rank is ${checkedRank}, expected less than ${checkedSize} (size)`,
    );
  }
  return { rank: checkedRank, size: checkedSize };
}

/** Where rank 0 listens. */
export function addressOf(operation: string, options: ExchangeOptions, rank: number) {
  const [from, text] =
    options.address !== undefined ? ["address", options.address] : environmentAddress(process.env);
  const address = typeof text === "string" ? parseAddress(text) : undefined;
  if (address === undefined || (address.port === 0 && (rank !== 0 || options.onListening === undefined))) {
    throw failure(
      "ERR_OPTION",
      text === undefined
        ? `${operation}: address has no value, expected host:port (or LONGSEQ_RENDEZVOUS, or MASTER_ADDR and MASTER_PORT)`
        : `${operation}: ${from} is "${shown(text)}", expected host:port (port 0 only on rank 0, with onListening)`,
    );
  }
  return address;
}

function environmentAddress(env: NodeJS.ProcessEnv): [from: string, address: string | undefined] {
  if (env.LONGSEQ_RENDEZVOUS) return ["LONGSEQ_RENDEZVOUS", env.LONGSEQ_RENDEZVOUS];
  const { MASTER_ADDR: host, MASTER_PORT: port } = env;
  if (!host || !port) return ["address", undefined];
  const next = env.TORCHELASTIC_USE_AGENT_STORE === "True" ? Number(port) + 1 : port;
  return ["MASTER_ADDR:MASTER_PORT", host.includes(":") ? `[${host}]:${next}` : `${host}:${next}`];
}

function keyOf(operation: string, options: ExchangeOptions, host: string): Uint8Array {
  const token = options.token ?? (process.env.LONGSEQ_TOKEN || undefined);
  if (token === undefined) {
    if (isLoopback(host)) return new Uint8Array();
    throw failure(
      "ERR_OPTION",
      `${operation}: token has no value, expected one where other hosts can connect (or LONGSEQ_TOKEN)`,
    );
  }
  const key = typeof token === "string" ? Buffer.from(token) : token;
  if (!(key instanceof Uint8Array)) throw wrongKind(`${operation}: token`, "a string or bytes", token);
  if (key.length < 16)
    throw failure("ERR_OPTION", `${operation}: token has ${key.length} bytes, expected at least 16`);
  return key;
}
