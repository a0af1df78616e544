#!/usr/bin/env node
// The command line: finds the command, and turns what it throws into a message and an exit code.
// 0: done; 1: it could not be done, or a check failed; 2: it was asked wrongly, or given a bad file; 130: interrupted.
import { type Command, helpText, parseArguments, suggestion, UsageError } from "./arguments.ts";
import { RemoteFailure } from "./output.ts";
import { packageVersion } from "./version.ts";

interface Row {
  readonly summary: string;
  load(): Promise<Command>;
}

// Loaded only when asked for: help and doctor must work where the native addon does not load.
const commands: Readonly<Record<string, Row>> = {
  bench: {
    summary: "measure throughput by sequence length",
    load: async () => (await import("./bench.ts")).bench,
  },
  verify: {
    summary: "check results against reference vectors",
    load: async () => (await import("./verify.ts")).verify,
  },
  doctor: {
    summary: "show what this machine has, what will be used and what is missing",
    load: async () => (await import("./doctor.ts")).doctor,
  },
  launch: {
    summary: "start a command once a GPU, over the hosts of a job or on this machine",
    load: async () => (await import("./launch.ts")).launch,
  },
};

const later = ["plan", "train"];

function overview(): string {
  const rows = Object.entries(commands).map(([name, { summary }]) => `  ${name.padEnd(8)} ${summary}`);
  return `Usage: longseq <command> [options]

Attention over long sequences. Commands:
${rows.join("\n")}

longseq <command> --help explains each; longseq --version prints the version.
`;
}

async function main(argv: readonly string[]): Promise<number> {
  const [name, ...rest] = argv;
  if (name === undefined) {
    process.stderr.write(overview());
    return 2;
  }
  if (name === "--help" || name === "-h" || name === "help") {
    process.stdout.write(overview());
    return 0;
  }
  if (name === "--version" || name === "-v") {
    process.stdout.write(`${packageVersion()}\n`);
    return 0;
  }
  const row = Object.hasOwn(commands, name) ? commands[name] : undefined;
  try {
    if (!row) {
      if (later.includes(name)) throw new UsageError(`${name} comes in a later version`);
      throw new UsageError(`unknown command "${name}"${suggestion(name, Object.keys(commands))}`);
    }
    const command = await row.load();
    // After `--` it is another command's.
    const own = rest.slice(0, rest.includes("--") ? rest.indexOf("--") : undefined);
    if (own.includes("--help") || own.includes("-h")) {
      process.stdout.write(helpText(name, command));
      return 0;
    }
    return await command.run(parseArguments(rest, command.options));
  } catch (error) {
    return report(row ? name : undefined, error);
  }
}

function report(command: string | undefined, error: unknown): number {
  const prefix = command ? `longseq ${command}` : "longseq";
  if (error instanceof UsageError) {
    process.stderr.write(`${prefix}: ${error.message}\nSee ${prefix} --help\n`);
    return 2;
  }
  const isRemote = error instanceof RemoteFailure;
  if (isRemote && error.isSilent) return 1;
  const { code } = error as { code?: unknown };
  const isExpected = error instanceof Error && (isRemote || typeof code === "string");
  // An error without a code is a fault of ours: its stack says where.
  process.stderr.write(
    `${prefix}: ${isExpected ? error.message : error instanceof Error ? error.stack : error}\n`,
  );
  return code === "ERR_FILE" ? 2 : 1;
}

// A reader that has seen enough (`longseq bench | head`) is no error.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0);
  process.stderr.write(`longseq: standard output cannot be written: ${error.message}\n`);
  process.exit(1);
});
// There is nobody left to tell, and what is written elsewhere may still be wanted.
process.stderr.on("error", () => {});

process.exitCode = await main(process.argv.slice(2));
