// Runs a file of test/support/child in a process or a worker of its own: for what the addon reads once (its environment),
// and for what might end the process. They are JavaScript by then: a compiler in each would take most of its time.
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { Worker } from "node:worker_threads";

export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export interface ChildOptions {
  environment?: NodeJS.ProcessEnv;
  /** For Node itself. */
  flags?: readonly string[];
  args?: readonly string[];
}

const sources = import.meta.dirname;
let built: string | undefined;

/** A file of this folder as JavaScript, beside all others. It lies in the package, so that it can import `longseq`. */
export function compiled(file: string): string {
  const name = file.replace(/\.ts$/, ".js");
  // Where the tests were compiled beforehand, so were these.
  if (import.meta.filename.endsWith(".js")) return join(sources, "child", name);
  if (built === undefined) {
    const ts = createRequire(import.meta.url)("typescript") as typeof import("typescript");
    const parent = join(sources, "../../.tap");
    mkdirSync(parent, { recursive: true });
    const folder = mkdtempSync(join(parent, "support-"));
    process.once("exit", () => rmSync(folder, { recursive: true }));
    const names = readdirSync(sources, { recursive: true, encoding: "utf8" });
    for (const name of names.filter((name) => name.endsWith(".ts"))) {
      const compilerOptions = {
        module: ts.ModuleKind.ESNext,
        target: ts.ScriptTarget.ES2022,
        rewriteRelativeImportExtensions: true,
      };
      const { outputText } = ts.transpileModule(readFileSync(join(sources, name), "utf8"), {
        compilerOptions,
      });
      const out = join(folder, name.replace(/\.ts$/, ".js"));
      mkdirSync(dirname(out), { recursive: true });
      writeFileSync(out, outputText);
    }
    built = folder;
  }
  return join(built, "child", name);
}

/** Runs test/support/child/`file`. */
export function run(
  file: string,
  { environment = {}, flags = [], args = [] }: ChildOptions = {},
): Promise<Ended> {
  return node([...flags, compiled(file), ...args], environment);
}

/** Node with these arguments, to its end. */
export function node(args: readonly string[], environment: NodeJS.ProcessEnv): Promise<Ended> {
  // Without tap's own loaders, which a child would inherit by NODE_OPTIONS.
  const env = { ...process.env, NODE_OPTIONS: "", ...environment };
  const child = spawn(process.execPath, args, { env, stdio: ["ignore", "pipe", "pipe"] });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (chunk: Buffer) => {
    stdout += chunk;
  });
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += chunk;
  });
  return new Promise((done) => child.once("close", (code, signal) => done({ code, signal, stdout, stderr })));
}

/** What a file that ended well printed as JSON. */
export async function answer<T>(file: string, options?: ChildOptions): Promise<T> {
  const { code, signal, stdout, stderr } = await run(file, options);
  if (code !== 0) throw new Error(`${file} ended with ${signal ?? code}: ${stderr}`);
  return JSON.parse(stdout) as T;
}

/** test/support/child/`file` in a worker thread. */
export function work(file: string, workerData: unknown): Worker {
  return new Worker(compiled(file), { workerData, execArgv: [], env: { ...process.env, NODE_OPTIONS: "" } });
}
