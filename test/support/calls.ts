// Which functions of the addon are called.
import { createRequire } from "node:module";
import type { Native } from "../../lib/native.ts";
import { root } from "./devices.ts";

/** The calls that `work` makes of those that are named, in order. */
export function callsOf(watched: readonly (keyof Native)[], work: () => void): string[] {
  const addon = (createRequire(import.meta.url)("node-gyp-build") as (folder: string) => Native)(root);
  const real = { ...addon };
  const calls: string[] = [];
  for (const name of watched) {
    const call = real[name] as (...given: unknown[]) => unknown;
    Object.assign(addon, {
      [name]: (...given: unknown[]) => {
        calls.push(name);
        return call(...given);
      },
    });
  }
  try {
    work();
  } finally {
    Object.assign(addon, real);
  }
  return calls;
}
