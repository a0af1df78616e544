// The bench's table on a terminal: a row a pass and length, ours first, each peer with the ratio to it.
import type { Device } from "../../index.ts";
import { type Column, Table, type TextStream } from "../output.ts";
import {
  formatBytes,
  formatCount,
  formatFigure,
  formatLength,
  type RateUnit,
  rateUnit,
} from "../quantity.ts";
import type { Measurement } from "./sweep.ts";

export class MeasurementTable {
  readonly #table: Table;
  readonly #unit: RateUnit;
  readonly #peers: readonly string[];

  /** `isShared`: ranks share the sequence. */
  constructor(stream: TextStream, device: Device, peers: readonly string[], isShared = false) {
    // Rows are printed as they are measured, so the unit is settled before the first.
    this.#unit = rateUnit(device.kind === "cuda" ? 1 : 0);
    this.#peers = peers;
    const columns: Column[] = [
      { title: "tokens", width: 9 },
      { title: "pass", width: 8, align: "left" },
      { title: "ms", width: 9 },
      { title: this.#unit.name, width: 8 },
      { title: "of peak", width: 7 },
      { title: "tokens/s", width: 10 },
      { title: "memory", width: 8 },
      ...(isShared ? [{ title: "waiting", width: 7 }] : []),
      ...peers.flatMap((name): Column[] => [
        { title: name, width: 9 },
        { title: "ratio", width: 6 },
      ]),
    ];
    this.#table = new Table(stream, columns);
  }

  head(): void {
    this.#table.head();
  }

  row(group: readonly Measurement[]): void {
    const [own] = group;
    if (!own) return;
    this.#table.row(rowCells(own, group.slice(1), this.#peers, this.#unit));
  }
}

/** Also the row of a report, whose columns are the same. */
export function rowCells(
  own: Measurement,
  others: readonly Measurement[],
  peers: readonly string[],
  unit: RateUnit,
): string[] {
  const { communicationShare = 0 } = own;
  const figures =
    own.tflops === undefined
      ? ["out of", "memory", "", "", ""]
      : [
          formatFigure(own.ms ?? 0),
          formatFigure(own.tflops * unit.perTeraflop),
          own.peakShare === undefined ? "" : `${(100 * own.peakShare).toFixed(0)}%`,
          formatCount(own.tokensPerSecond ?? 0),
          formatBytes(own.peakBytes ?? 0),
        ];
  const waiting = own.ranks === undefined ? [] : [`${(100 * communicationShare).toFixed(0)}%`];
  const against = peers.flatMap((name) => {
    const other = others.find(({ implementation }) => implementation === name);
    if (!other) return ["", ""];
    if (other.tflops === undefined) return ["no memory", ""];
    const ratio = own.tflops === undefined ? "" : `${(own.tflops / other.tflops).toFixed(2)}x`;
    return [formatFigure(other.tflops * unit.perTeraflop), ratio];
  });
  return [formatLength(own.seqLen), own.pass, ...figures, ...waiting, ...against];
}
