import t from "tap";
import {
  helpText,
  type OptionTable,
  parseArguments,
  suggestion,
  UsageError,
} from "../../lib/cli/arguments.ts";

const table: OptionTable = {
  heads: { value: "N", help: "how many heads" },
  json: { value: "FILE", help: "where to" },
  causal: { help: "no later key" },
  "no-causal": { help: "every key" },
  dtype: { value: "T", help: "which" },
  env: { value: "NAME", help: "each", isMany: true },
};

const refuses = (
  argv: string[],
  message: RegExp,
  use: (given: ReturnType<typeof parseArguments>) => void = () => {},
) => t.throws(() => use(parseArguments(argv, table)), { message, constructor: UsageError }, argv.join(" "));

t.test("values, switches and positionals", async (t) => {
  const given = parseArguments(["a", "--heads", "8", "--json=-", "--causal", "b", "--", "--c"], table);
  t.equal(given.integer("heads", 1), 8);
  t.equal(given.text("json"), "-");
  t.equal(given.flag("causal", false), true);
  t.same(given.positionals, ["a", "b", "--c"]);
  t.same(given.afterDashes, ["--c"]);
  t.same(parseArguments(["a"], table).afterDashes, []);
  t.same(parseArguments(["--", "a", "--heads", "--", "b"], table).afterDashes, ["a", "--heads", "--", "b"]);
  t.same(parseArguments(["--env", "A", "--heads", "1", "--env=B=2"], table).texts("env"), ["A", "B=2"]);
  t.same(parseArguments([], table).texts("env"), []);
  t.equal(given.text("dtype"), undefined);
  t.equal(given.integer("dtype", 0), undefined);
  t.equal(parseArguments(["--json", "-"], table).text("json"), "-");
  t.equal(parseArguments(["--no-causal"], table).flag("causal", true), false);
  t.equal(parseArguments([], table).flag("causal", true), true);
});

t.test("what is wrong is said, with what was meant", async () => {
  refuses(["--haeds", "8"], /unknown option --haeds; did you mean --heads\?/);
  refuses(["--completely-else"], /^unknown option --completely-else$/);
  refuses(["-j"], /unknown option -j/);
  refuses(["--heads"], /--heads needs a value: --heads N/);
  refuses(["--heads", "--json", "x"], /--heads needs a value/);
  refuses(["--json="], /--json needs a value/);
  refuses(["--causal=yes"], /--causal takes no value/);
  refuses(["--heads", "1", "--heads", "2"], /--heads is given twice/);
  refuses(["--heads", "0"], /--heads is "0", expected a whole number of at least 1/, (g) =>
    g.integer("heads", 1),
  );
  refuses(["--heads", "1e3"], /expected a whole number/, (g) => g.integer("heads", 1));
  refuses(["--heads", "99999999999999999999"], /expected a whole number/, (g) => g.integer("heads", 1));
  refuses(["--causal", "--no-causal"], /exclude each other/, (g) => g.flag("causal", true));
  refuses(["--dtype", "bfloat"], /expected float32, bfloat16; did you mean bfloat16\?/, (g) =>
    g.choice("dtype", ["float32", "bfloat16"]),
  );
});

t.test("prototype names are no options", async () => {
  refuses(["--constructor"], /unknown option --constructor/);
  refuses(["--__proto__", "x"], /unknown option --__proto__/);
});

t.test("suggestions only where near", async (t) => {
  t.equal(suggestion("verfy", ["bench", "verify"]), "; did you mean verify?");
  t.equal(suggestion("zzz", ["bench", "verify"]), "");
  t.equal(suggestion("x", []), "");
  t.equal(suggestion("A_LONG_NAXY", ["A_LONG_NAME"]), "; did you mean A_LONG_NAME?");
  t.equal(suggestion("A_LONG_NAXY", ["A_LONG_NAME"], "A_LONG_"), "");
});

t.test("help lists every option and stays within 100 columns", async (t) => {
  const text = helpText("bench", {
    usage: "[options]",
    description: "Measures.",
    options: { ...table, long: { value: "LIST", help: "word ".repeat(60).trim() } },
    run: async () => 0,
  });
  for (const name of Object.keys(table)) t.match(text, `--${name}`);
  t.ok(text.split("\n").every((line) => line.length <= 100));
});
