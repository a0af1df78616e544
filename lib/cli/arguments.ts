// The options of a command are one table, which is parsed against, checked against and printed as its help.
import { parseArgs } from "node:util";

/** What the caller typed is wrong: printed with a pointer to the help, exit code 2. */
export class UsageError extends Error {}

export interface Option {
  /** What the help calls its value; a switch has none. */
  readonly value?: string;
  readonly help: string;
  /** May be given more than once. */
  readonly isMany?: boolean;
}

export type OptionTable = Readonly<Record<string, Option>>;

export interface Command {
  readonly usage: string;
  readonly description: string;
  readonly options: OptionTable;
  /** Resolves to the exit code. */
  run(given: Arguments): Promise<number>;
}

/** What was given on the command line, known to be in the command's table. */
export class Arguments {
  readonly positionals: readonly string[];
  /** Of the positionals, those after `--`. */
  readonly afterDashes: readonly string[];
  readonly #values: ReadonlyMap<string, readonly string[]>;

  constructor(
    values: ReadonlyMap<string, readonly string[]>,
    positionals: readonly string[],
    afterDashes: readonly string[],
  ) {
    this.#values = values;
    this.positionals = positionals;
    this.afterDashes = afterDashes;
  }

  has(name: string): boolean {
    return this.#values.has(name);
  }

  text(name: string): string | undefined {
    return this.#values.get(name)?.[0];
  }

  /** Of an option that may be given more than once. */
  texts(name: string): readonly string[] {
    return this.#values.get(name) ?? [];
  }

  choice<const T extends string>(name: string, allowed: readonly T[]): T | undefined {
    const value = this.text(name);
    if (value === undefined) return undefined;
    const match = allowed.find((one) => one === value);
    if (match === undefined) {
      throw new UsageError(
        `--${name} is "${value}", expected ${allowed.join(", ")}${suggestion(value, allowed)}`,
      );
    }
    return match;
  }

  integer(name: string, minimum: number): number | undefined {
    const value = this.text(name);
    if (value === undefined) return undefined;
    const number = Number(value);
    if (!/^\d+$/.test(value) || !Number.isSafeInteger(number) || number < minimum) {
      throw new UsageError(`--${name} is "${value}", expected a whole number of at least ${minimum}`);
    }
    return number;
  }

  /** A number of 0 or more, with a fraction or without. */
  amount(name: string): number | undefined {
    const value = this.text(name);
    if (value === undefined) return undefined;
    if (!/^\d+(\.\d+)?$/.test(value)) {
      throw new UsageError(`--${name} is "${value}", expected a number of 0 or more`);
    }
    return Number(value);
  }

  /** A switch with its `no-` form. */
  flag(name: string, fallback: boolean): boolean {
    if (this.has(name) && this.has(`no-${name}`)) {
      throw new UsageError(`--${name} and --no-${name} exclude each other`);
    }
    return this.has(name) || (fallback && !this.has(`no-${name}`));
  }
}

export function parseArguments(argv: readonly string[], table: OptionTable): Arguments {
  const options = Object.fromEntries(
    Object.entries(table).map(([name, { value }]) => [
      name,
      { type: value === undefined ? "boolean" : "string" } as const,
    ]),
  );
  // Not strict: parseArgs would throw with its own wording, and has no suggestions.
  const { tokens } = parseArgs({
    args: [...argv],
    options,
    strict: false,
    allowPositionals: true,
    tokens: true,
  });
  const values = new Map<string, string[]>();
  const positionals: string[] = [];
  let dashes: number | undefined;
  for (const token of tokens) {
    if (token.kind === "positional") positionals.push(token.value);
    if (token.kind === "option-terminator") dashes = positionals.length;
    if (token.kind !== "option") continue;
    const option = Object.hasOwn(table, token.name) ? table[token.name] : undefined;
    if (!option || !token.rawName.startsWith("--")) {
      const names = Object.keys(table).map((name) => `--${name}`);
      throw new UsageError(`unknown option ${token.rawName}${suggestion(token.rawName, names)}`);
    }
    if (values.has(token.name) && !option.isMany) throw new UsageError(`${token.rawName} is given twice`);
    const takesValue = option.value !== undefined;
    if (!takesValue && token.value !== undefined) throw new UsageError(`${token.rawName} takes no value`);
    if (takesValue && !isValue(token.value, token.inlineValue === true)) {
      throw new UsageError(`${token.rawName} needs a value: ${token.rawName} ${option.value}`);
    }
    values.set(token.name, [...(values.get(token.name) ?? []), token.value ?? ""]);
  }
  return new Arguments(values, positionals, positionals.slice(dashes ?? positionals.length));
}

/** `--batch --heads 8` has forgotten a value rather than named one; `--json -` is standard output. */
function isValue(value: string | undefined, isInline: boolean): boolean {
  return value !== undefined && value !== "" && (isInline || value === "-" || !value.startsWith("-"));
}

/**
 * "; did you mean X?" where X is near enough to be a slip of the hand, else nothing. `prefix`: what all of them begin
 * with, which says nothing of how near they are.
 */
export function suggestion(given: string, known: readonly string[], prefix = ""): string {
  const own = given.slice(prefix.length);
  const nearest = known
    .map((name) => ({ name, distance: editDistance(own, name.slice(prefix.length)) }))
    .reduce((a, b) => (b.distance < a.distance ? b : a), { name: "", distance: Number.POSITIVE_INFINITY });
  return nearest.distance <= Math.max(1, own.replaceAll("-", "").length / 3)
    ? `; did you mean ${nearest.name}?`
    : "";
}

/** Letters to insert, delete, replace or swap with their neighbour. */
function editDistance(a: string, b: string): number {
  let older: number[] = [];
  let old = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const replace = (old[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      const isSwap = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      const swap = isSwap ? (older[j - 2] ?? 0) + 1 : Number.POSITIVE_INFINITY;
      row.push(Math.min(replace, (old[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, swap));
    }
    older = old;
    old = row;
  }
  return old[b.length] ?? 0;
}

export function helpText(name: string, command: Command): string {
  const entries = Object.entries(command.options).map(([option, { value, help }]) => ({
    left: `  --${option}${value === undefined ? "" : ` ${value}`}`,
    help,
  }));
  const width = Math.max(...entries.map(({ left }) => left.length)) + 2;
  const lines = entries.flatMap(({ left, help }) =>
    wrap(help, 100 - width).map((line, i) => (i === 0 ? left : "").padEnd(width) + line),
  );
  return `Usage: longseq ${name} ${command.usage}\n\n${command.description}\n\nOptions:\n${lines.join("\n")}\n`;
}

function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= width)
      lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}
