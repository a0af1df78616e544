// The calls that are made of the addon.
import { createRequire } from "node:module";
import type { Native, TensorHandle } from "../../lib/native.ts";
import { dtypes, itemBytes } from "../../lib/values.ts";
import { root } from "./devices.ts";

/** The calls that `work` makes of those that are named, in order. */
export function callsOf(watched: readonly (keyof Native)[], work: () => void): string[] {
  const calls: string[] = [];
  const noting = (real: Native) =>
    watched.map((name) => {
      const call = real[name] as (...given: unknown[]) => unknown;
      const noted = (...given: unknown[]) => {
        calls.push(name);
        return call(...given);
      };
      return [name, noted];
    });
  instead((real) => Object.fromEntries(noting(real)) as Partial<Native>, work);
  return calls;
}

/**
 * The most bytes of tensors made in `work` that are there at a time, by the calls alone: without scratch, and however far
 * the device's queue is behind.
 */
export function mostHeld(work: () => void): number {
  const held = new Map<TensorHandle, { bytes: number; views: number }>();
  let [now, most] = [0, 0];
  const counting = (real: Native): Partial<Native> => ({
    tensorEmpty: (device, dtype, shape) => {
      const made = real.tensorEmpty(device, dtype, shape);
      const bytes = shape.reduce((a, b) => a * b, itemBytes[dtypes[dtype] ?? "float32"]);
      held.set(made, { bytes, views: 1 });
      now += bytes;
      most = Math.max(most, now);
      return made;
    },
    tensorView: (tensor, ...where) => {
      const view = real.tensorView(tensor, ...where);
      const memory = held.get(tensor);
      if (memory) {
        memory.views++;
        held.set(view, memory);
      }
      return view;
    },
    tensorDispose: (tensor) => {
      real.tensorDispose(tensor);
      const memory = held.get(tensor);
      held.delete(tensor);
      if (memory && --memory.views === 0) now -= memory.bytes;
    },
  });
  instead(counting, work);
  return most;
}

/** Runs `work` with other functions in the addon's place. */
function instead(others: (real: Native) => Partial<Native>, work: () => void): void {
  const addon = (createRequire(import.meta.url)("node-gyp-build") as (folder: string) => Native)(root);
  const real = { ...addon };
  Object.assign(addon, others(real));
  try {
    work();
  } finally {
    Object.assign(addon, real);
  }
}
