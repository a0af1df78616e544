// What the two sides of a rendezvous agree on: where, how long, and how each proves that it knows the token.
import { createHmac, timingSafeEqual } from "node:crypto";
import type { ErrorCode } from "../errors.ts";
import { failure } from "../errors.ts";

/** Of one rank's value. */
export const mostBytes = 1 << 20;
export const mostRanks = 2 ** 24 - 1;
export const nonceBytes = 32;

export interface Address {
  readonly host: string;
  readonly port: number;
}

export interface Meeting {
  /** For messages: "exchange" or "broadcast". */
  readonly operation: string;
  readonly rank: number;
  readonly size: number;
  readonly address: Address;
  readonly key: Uint8Array;
  readonly timeoutMs: number;
  /** By performance.now(). */
  readonly deadline: number;
  readonly signal: AbortSignal | undefined;
  onListening(address: string): void;
}

/** "host:port" or "[::1]:port". */
export function parseAddress(text: string): Address | undefined {
  const [, six, name, digits = ""] = /^(?:\[([\da-fA-F:.]+)\]|([\w.-]+)):(\d{1,5})$/.exec(text) ?? [];
  const host = six ?? name;
  return host === undefined || Number(digits) > 65535 ? undefined : { host, port: Number(digits) };
}

export const formatAddress = ({ host, port }: Address): string =>
  host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;

export const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);

/** What a side proves itself by. Its name is part of it, so that one side's proof is no use to whom plays the other. */
export function proof(key: Uint8Array, side: "rank" | "root", ...parts: readonly Uint8Array[]): Buffer {
  const mac = createHmac("sha256", key).update(`longseq rendezvous 1 ${side}`);
  for (const part of parts) mac.update(part);
  return mac.digest();
}

export function isProof(got: Uint8Array, expected: Uint8Array): boolean {
  return got.length === expected.length && timingSafeEqual(got, expected);
}

export function communicationFailure(
  { operation }: Pick<Meeting, "operation">,
  what: string,
  cause?: unknown,
): Error & { code: ErrorCode } {
  return failure("ERR_COMM", `${operation}: ${what}`, cause === undefined ? undefined : { cause });
}

export const seconds = (milliseconds: number): string => `${Math.round(milliseconds / 100) / 10} s`;

/** "rank 2", "ranks 2, 3 and 7"; of many the first sixteen. */
export function listRanks(ranks: readonly number[]): string {
  const shown = ranks.slice(0, 16);
  const more = ranks.length - shown.length;
  const last = more > 0 ? `${more} more` : String(shown.pop());
  const text = shown.length > 0 ? `${shown.join(", ")} and ${last}` : last;
  return `${ranks.length === 1 ? "rank" : "ranks"} ${text}`;
}
