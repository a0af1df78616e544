import t from "tap";
import { longseq } from "../support/command-line.ts";

t.test("help, version and what is not there", async (t) => {
  const cases: [args: string[], code: number, stdout: RegExp, stderr: RegExp][] = [
    [["--help"], 0, /bench .*\n.*verify .*\n.*doctor/, /^$/],
    [["--version"], 0, /^\d+\.\d+\.\d+\n$/, /^$/],
    [[], 2, /^$/, /Usage: longseq/],
    [["bench", "--help"], 0, /--seq-len LIST/, /^$/],
    [["verify", "--help"], 0, /Usage: longseq verify PATH/, /^$/],
    [["doctor", "-h"], 0, /Usage: longseq doctor/, /^$/],
    [["benhc"], 2, /^$/, /unknown command "benhc"; did you mean bench\?/],
    [["constructor"], 2, /^$/, /unknown command "constructor"/],
    [["train"], 2, /^$/, /train comes in a later version/],
    [["launch", "--help"], 0, /Usage: longseq launch \[options\] -- command/, /^$/],
    [["bench", "--sequence-len", "1k"], 2, /^$/, /unknown option --sequence-len/],
    [["bench", "1k"], 2, /^$/, /unexpected "1k"/],
    [["verify"], 2, /^$/, /no PATH given/],
    [["doctor", "--json"], 2, /^$/, /--json needs a value/],
  ];
  const outcomes = await Promise.all(cases.map(([args]) => longseq(args)));
  for (const [i, [args, code, stdout, stderr]] of cases.entries()) {
    const outcome = outcomes[i];
    t.equal(outcome?.code, code, args.join(" "));
    t.match(outcome?.stdout, stdout);
    t.match(outcome?.stderr, stderr);
  }
  t.notMatch((await longseq(["--help"])).stdout, /train|plan/);
});
