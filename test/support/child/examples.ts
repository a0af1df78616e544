// Runs the examples of documentation.test.ts, one module after the other, in a folder that they may write to. Prints each
// module's outcome as a line of JSON as soon as it has ended, so that the one that ends the process is known.
import { argv, chdir } from "node:process";
import { pathToFileURL } from "node:url";
import { Device } from "longseq";

/** The error, or null. */
export type Outcome = string | null;

const [folder = "", ...modules] = argv.slice(2);
chdir(folder);
console.log = () => {};
for (const path of modules) {
  let error: Outcome = null;
  try {
    await import(pathToFileURL(path).href);
    await Device.default.synchronize();
  } catch (thrown) {
    error = thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown);
  }
  process.stdout.write(`${JSON.stringify(error)}\n`);
}
