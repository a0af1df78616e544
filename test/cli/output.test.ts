// What becomes of output that cannot be written: heard of before the work where that can be, and always in one line.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { entry, jsonLines, longseq } from "../support/command-line.ts";

const folder = t.testdir({});
const environment = { ...process.env, NODE_OPTIONS: "" };
const bench = ["bench", "--heads", "2", "--head-dim", "16", "--seconds", "0", "--seq-len", "64"];
const vector = "test/vectors/rope_half.safetensors";

/** The command line, run by a line of a shell's in which "$@" stands for it. */
function inShell(line: string, args: readonly string[]) {
  // Without tap's loaders, which write files of their own.
  const words = ["-c", `unset NODE_OPTIONS; ${line}`, "sh", process.execPath, entry, ...args];
  return spawnSync("sh", words, { env: environment, encoding: "utf8" });
}

t.test("files that cannot be written are refused before the work", async (t) => {
  const full = join(folder, "full.svg");
  symlinkSync("/dev/full", full);
  const cases: [args: string[], stderr: RegExp][] = [
    [["--json", folder], /^longseq bench: --json \S+ cannot be written: EISDIR.*\n$/],
    [["--json", "no/such/folder/x"], /^longseq bench: --json no\S+ cannot be written: ENOENT.*\n$/],
    [["--json", "/dev/full"], /^longseq bench: --json \/dev\/full cannot be written: ENOSPC.*\n$/],
    [["--report", "no/such/x.svg"], /^longseq bench: --report no\S+ cannot be written: ENOENT.*\n$/],
    [["--report", full], /^longseq bench: --report \S+full.svg cannot be written: ENOSPC.*\n$/],
  ];
  for (const [args, stderr] of cases) {
    for (const more of [[], ["--what", "layer"]]) {
      const outcome = await longseq([...bench, ...more, ...args]);
      t.match(outcome, { code: 2, stdout: "", stderr }, args.join(" "));
    }
  }
  for (const args of [["verify", vector], ["doctor"]]) {
    const outcome = await longseq([...args, "--json", folder]);
    t.match(outcome, { code: 2, stdout: "", stderr: /: --json \S+ cannot be written: EISDIR.*\n$/ });
  }
});

t.test("files that take nothing more are one line", async (t) => {
  const [json, report] = [join(folder, "late.jsonl"), join(folder, "late.md")];
  writeFileSync(report, "of another day");
  for (const [args, name] of [
    [["--json", json, "--report", report], "--json"],
    [["--report", report], "--report"],
  ] as const) {
    const { status, stderr } = inShell('ulimit -f 0; exec "$@"', [...bench, ...args]);
    t.equal(status, 1);
    t.match(stderr, new RegExp(`^longseq bench: ${name} \\S+ cannot be written: EFBIG.*\\n$`));
    if (name === "--json") t.equal(readFileSync(report, "utf8"), "of another day");
  }
});

t.test("two outputs are two files", async (t) => {
  const path = join(folder, "both.md");
  const { code, stderr } = await longseq([...bench, "--json", path, "--report", path]);
  t.equal(code, 2);
  t.match(stderr, `longseq bench: --json ${path} is the same file as ${path}, expected another\n`);
});

t.test("what is written again is what is there then", async (t) => {
  const [json, report] = [join(folder, "again.jsonl"), join(folder, "again.md")];
  for (const path of [json, report]) writeFileSync(path, "x".repeat(100_000));
  const { code, stderr } = await longseq([...bench, "--json", json, "--report", report]);
  t.equal(code, 0, stderr);
  t.equal(jsonLines(readFileSync(json, "utf8")).length, 2);
  t.notMatch(readFileSync(report, "utf8"), "xxx");
});

t.test("standard output that takes nothing", async (t) => {
  const full = /^longseq: standard output cannot be written: ENOSPC.*\n$/;
  for (const args of [["--help"], ["doctor"], ["doctor", "--json", "-"], bench, ["launch", "--", "echo"]]) {
    const { status, stderr } = inShell('exec "$@" > /dev/full', args);
    t.equal(status, 1, args.join(" "));
    t.match(args.includes("-") ? stderr.slice(stderr.indexOf("longseq: ")) : stderr, full, args.join(" "));
    t.notMatch(stderr, /\n {4}at /);
  }
  const { status, stdout } = inShell('exec "$@" 2> /dev/full', ["bench", "--haeds", "1"]);
  t.match({ status, stdout }, { status: 2, stdout: "" }, "there is nobody to tell");
});

t.test("a reader that has seen enough", async (t) => {
  const child = spawn(process.execPath, [entry, "doctor"], {
    env: environment,
    stdio: ["ignore", "pipe", "pipe"],
  });
  child.stdout.destroy();
  let stderr = "";
  child.stderr.on("data", (chunk) => {
    stderr += chunk;
  });
  t.strictSame(await once(child, "close"), [0, null]);
  t.equal(stderr, "");
});

t.test("an input is no output, by whatever name", async (t) => {
  const [path, link] = [join(folder, "x.safetensors"), join(folder, "link.json")];
  const bytes = readFileSync(vector);
  writeFileSync(path, bytes);
  symlinkSync(path, link);
  for (const [input, output] of [
    [path, path],
    [path, link],
    [folder, path],
    [`${folder}/./x.safetensors`, path],
  ] as const) {
    const { code, stdout, stderr } = await longseq(["verify", vector, input, "--json", output]);
    t.match({ code, stdout }, { code: 2, stdout: "" }, `${input}, ${output}`);
    t.match(stderr, `longseq verify: --json ${output} is the same file as `);
  }
  t.ok(readFileSync(path).equals(bytes));
  const absent = join(folder, "absent");
  t.match(await longseq(["verify", absent, "--json", absent]), { code: 2, stderr: /is the same file/ });
  t.notOk(existsSync(absent));
});
