// Lengths, bytes, times and rates: how the command line reads them and how it writes them.
import { UsageError } from "./arguments.ts";

const suffixes = { k: 1024, m: 1024 ** 2 } as const;
/** Positions are int32 in the kernels. */
const longest = 2 ** 31 - 1;

/** `1024`, `1k` (1,024), `1m` (1,048,576). */
export function parseLength(text: string): number {
  const [, digits, suffix] = /^(\d+)([km]?)$/i.exec(text.trim()) ?? [];
  const scale = suffix ? suffixes[suffix.toLowerCase() as keyof typeof suffixes] : 1;
  const length = Number(digits) * scale;
  if (!Number.isSafeInteger(length) || length < 1 || length > longest) {
    throw new UsageError(
      `sequence length "${text}", expected one from 1 to ${longest} such as 1024, 128k, 1m or 128000`,
    );
  }
  return length;
}

/** A list with commas, sorted and without repeats: the order of a sweep. */
export function parseLengths(text: string): number[] {
  return [...new Set(text.split(",").map(parseLength))].sort((a, b) => a - b);
}

/** "1 rank", "4 ranks" */
export const counted = (count: number, noun: string) => `${count} ${noun}${count === 1 ? "" : "s"}`;

export function formatLength(length: number): string {
  // 128,000 is 125k too, but nobody means that.
  if (length % 1000 === 0) return formatCount(length);
  if (length % suffixes.m === 0) return `${length / suffixes.m}m`;
  if (length % suffixes.k === 0) return `${length / suffixes.k}k`;
  return formatCount(length);
}

export function formatCount(count: number): string {
  return Math.round(count).toLocaleString("en-US");
}

/** Three figures, and no exponent: 0.123, 1.23, 12.3, 123, 1,234. */
export function formatFigure(value: number): string {
  const digits = value >= 100 || value === 0 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : 3;
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  return power === 0 ? `${bytes} B` : `${formatFigure(bytes / 1024 ** power)} ${units[power]}`;
}

export interface RateUnit {
  readonly name: "TFLOP/s" | "GFLOP/s";
  readonly perTeraflop: number;
}

/** One unit for a whole table or chart: the larger one once its largest value reaches it. */
export function rateUnit(largestTeraflops: number): RateUnit {
  return largestTeraflops >= 1 ? { name: "TFLOP/s", perTeraflop: 1 } : { name: "GFLOP/s", perTeraflop: 1000 };
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}
