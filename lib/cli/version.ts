import { readFileSync } from "node:fs";

/** From the package's own file: the native addon, which knows it too, may not load. */
export function packageVersion(): string {
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}
