// The table of a layer's or a model's bench: a row a length, ours first, each peer with the ratio to it.
import type { Column } from "../output.ts";
import { formatBytes, formatCount, formatFigure, formatLength, type RateUnit } from "../quantity.ts";
import type { ModelMeasurement } from "./model-sweep.ts";

export function modelColumns(unit: RateUnit, peers: readonly string[]): Column[] {
  return [
    { title: "tokens", width: 9 },
    { title: "pass", width: 8, align: "left" },
    { title: "ms", width: 9 },
    { title: unit.name, width: 8 },
    { title: "original", width: 8 },
    { title: "tokens/s", width: 10 },
    { title: "memory", width: 8 },
    { title: "waiting", width: 7 },
    ...peers.flatMap((name): Column[] => [
      { title: name, width: 9 },
      { title: "ratio", width: 6 },
      { title: "memory", width: 8 },
    ]),
  ];
}

export function modelRowCells(
  own: ModelMeasurement,
  others: readonly ModelMeasurement[],
  peers: readonly string[],
  unit: RateUnit,
): string[] {
  const rate = (teraflops = 0) => formatFigure(teraflops * unit.perTeraflop);
  const figures =
    own.tflops === undefined
      ? ["out of", "memory", "", "", "", ""]
      : [
          formatFigure(own.ms ?? 0),
          rate(own.tflops),
          rate(own.tflopsOriginal),
          formatCount(own.tokensPerSecond ?? 0),
          formatBytes(own.peakBytes ?? 0),
          own.communicationShare === undefined ? "" : `${(100 * own.communicationShare).toFixed(0)}%`,
        ];
  const against = peers.flatMap((name) => {
    const other = others.find(({ implementation }) => implementation === name);
    if (!other) return ["", "", ""];
    if (other.tflops === undefined) return ["no memory", "", ""];
    const ratio = own.tflops === undefined ? "" : `${(own.tflops / other.tflops).toFixed(2)}x`;
    return [rate(other.tflops), ratio, other.peakBytes === undefined ? "" : formatBytes(other.peakBytes)];
  });
  return [formatLength(own.seqLen), own.pass, ...figures, ...against];
}

/** By either count. */
export function largestOf(measurements: readonly ModelMeasurement[]): number {
  return Math.max(
    0,
    ...measurements.flatMap(({ tflops = 0, tflopsOriginal = 0 }) => [tflops, tflopsOriginal]),
  );
}
