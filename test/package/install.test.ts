// The packed tarball, installed for real: with a prebuilt that fits, with none, and where nothing can be compiled.
import { existsSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { root, skipFileOnGpu } from "../support/devices.ts";
import { hasCuda, install, pack, pathWithoutCompilers, quickly, run } from "./npm.ts";

skipFileOnGpu("it needs npm and compilers");

// The source build compiles every file, while another test may have the second core.
t.setTimeout(600_000);

const folder = t.testdir();
const withoutCompilers = { PATH: pathWithoutCompilers(folder) };
const withPrebuilt = pack(folder, { prebuilt: true });
const sourceOnly = pack(folder, { prebuilt: false });

// Zero scores weigh both keys alike, so that the output is the mean of the two values.
const program = `
import { attention, Tensor } from "longseq";
const q = Tensor.zeros([1, 1, 1, 8]);
const k = Tensor.zeros([1, 2, 1, 8]);
const v = Tensor.from([...Array(8).fill(1), ...Array(8).fill(4)], [1, 2, 1, 8]);
console.log((await attention(q, k, v).data()).join(" "));
`;
const printed = `${Array(8).fill(2.5).join(" ")}\n`;

/** What the program above prints in a project, or why it does not. */
function compute(project: string): string {
  writeFileSync(join(project, "program.js"), program);
  const { stdout, stderr } = run(project, "node", ["program.js"], withoutCompilers);
  return stdout || stderr;
}

const addon = (project: string, path: string): string => join(project, "node_modules/longseq", path);

t.test("where the prebuilt fits, nothing is compiled", async (t) => {
  const project = join(folder, "prebuilt");
  const { status, stderr } = install(project, withPrebuilt, withoutCompilers);
  t.equal(status, 0, stderr);
  t.notOk(existsSync(addon(project, "build")), "there is no build folder");
  t.equal(compute(project), printed);
});

t.test("the prebuilt needs no install script", async (t) => {
  const project = join(folder, "no-scripts");
  const { status, stderr } = install(project, withPrebuilt, withoutCompilers, "--ignore-scripts");
  t.equal(status, 0, stderr);
  t.equal(compute(project), printed);

  const cli = run(project, "node_modules/.bin/longseq", ["doctor"], withoutCompilers);
  t.equal(cli.status, 0, cli.stderr);

  const compilerOptions = {
    strict: true,
    noEmit: true,
    skipLibCheck: false,
    module: "nodenext",
    target: "es2022",
    lib: ["es2023", "esnext.disposable"],
    types: ["node"],
    typeRoots: [join(root, "node_modules/@types")],
  };
  writeFileSync(join(project, "tsconfig.json"), JSON.stringify({ compilerOptions, files: ["typed.ts"] }));
  writeFileSync(
    join(project, "typed.ts"),
    'import { type DType, Tensor } from "longseq";\nexport const dtype: DType = Tensor.zeros([2]).dtype;\n',
  );
  const types = run(project, join(root, "node_modules/.bin/tsc"), ["-p", "."]);
  t.equal(types.status, 0, types.stdout);
});

t.test(
  "the prebuilt's CPU part is under 4 MB",
  { skip: hasCuda() && "this build has CUDA kernels" },
  async (t) => {
    const prebuilt = addon(join(folder, "prebuilt"), `prebuilds/linux-${process.arch}/longseq.glibc.node`);
    t.ok(statSync(prebuilt).size < 4e6, `${statSync(prebuilt).size} bytes`);
  },
);

t.test("where no prebuilt fits, it is compiled", async (t) => {
  const project = join(folder, "source");
  const { status, stdout, stderr } = install(project, sourceOnly, {
    LONGSEQ_CUDA: "0",
    CMAKE_CXX_COMPILER_LAUNCHER: quickly(folder),
  });
  t.equal(status, 0, stderr);
  t.match(stdout, "longseq: CUDA kernels: NO (LONGSEQ_CUDA=0), CPU-only build");
  t.ok(existsSync(addon(project, "build/Release/longseq.node")));
  t.equal(compute(project), printed);
});

t.test("where nothing can be compiled, the install says what to install", async (t) => {
  const { status, stderr } = install(join(folder, "no-tools"), sourceOnly, withoutCompilers);
  t.not(status, 0);
  for (const word of ["cmake", "C++20 compiler", "ninja or make", "apt-get install", "dnf install"]) {
    t.match(stderr, word);
  }
});

t.test("where there is no binary, the import says how to get one", async (t) => {
  const project = join(folder, "no-binary");
  const { status, stderr } = install(project, sourceOnly, withoutCompilers, "--ignore-scripts");
  t.equal(status, 0, stderr);
  const message = compute(project);
  t.match(message, "ERR_NO_BINARY");
  t.match(message, "npm rebuild longseq");
});
