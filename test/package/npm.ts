// Packs the package as a release does, and installs the tarball as a user does: in an empty folder, with npm.
import { execFileSync, type SpawnSyncReturns, spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { root } from "../support/devices.ts";

export type Environment = Readonly<Record<string, string | undefined>>;

// What npm and tap tell their children about this checkout is not the user's environment.
const userEnvironment: Environment = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => !/^(npm_|tap|node_options|init_cwd)/i.test(name)),
);

/** Packs this checkout and its built addon, stripped into a prebuilt unless told otherwise; returns the tarball's path. */
export function pack(folder: string, { prebuilt }: { prebuilt: boolean }): string {
  const stage = join(folder, prebuilt ? "stage" : "stage-source");
  const { files } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { files: string[] };
  mkdirSync(stage, { recursive: true });
  for (const name of ["package.json", "README.md", "LICENSE", ...files]) {
    if (existsSync(join(root, name))) cpSync(join(root, name), join(stage, name), { recursive: true });
  }
  if (prebuilt) {
    cpSync(join(root, "build/Release"), join(stage, "build/Release"), { recursive: true });
    // `true` in node-gyp's place: what would be built is already there.
    const options = ["--cwd", stage, "--strip", "--tag-libc", "--node-gyp", "true"];
    execFileSync(join(root, "node_modules/.bin/prebuildify"), options, { cwd: root });
  }
  const output = execFileSync("npm", ["pack", "--ignore-scripts", "--json"], {
    cwd: stage,
    env: userEnvironment,
  });
  const [{ filename }] = JSON.parse(output.toString()) as [{ filename: string }];
  return join(stage, filename);
}

/** Runs a program in `folder` to its end. */
export function run(
  folder: string,
  command: string,
  args: string[],
  env: Environment = {},
): SpawnSyncReturns<string> {
  return spawnSync(command, args, { cwd: folder, env: { ...userEnvironment, ...env }, encoding: "utf8" });
}

/** Makes a new project in `folder` and installs the tarball in it. */
export function install(
  folder: string,
  tarball: string,
  env: Environment = {},
  ...options: string[]
): SpawnSyncReturns<string> {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  writeFileSync(
    join(folder, "package.json"),
    JSON.stringify({ name: "user", private: true, type: "module" }),
  );
  const fixed = ["install", "--prefer-offline", "--no-audit", "--no-fund", "--foreground-scripts"];
  return run(folder, "npm", [...fixed, ...options, tarball], env);
}

/**
 * What CMake starts its compiler with, for it is the build that is tested, and the optimiser takes minutes: where this
 * checkout has an object of the very same source, that is taken, but for those of the addon itself; others are compiled with
 * the optimiser at rest.
 */
export function quickly(folder: string): string {
  const path = join(folder, "quickly");
  // Objects that know CUDA do not fit a build without.
  const objects = hasCuda() ? "" : join(root, "build/cmake");
  writeFileSync(
    path,
    `#!/bin/bash
for ((i = 1; i < $#; i++)); do
  next=$((i + 1))
  case "\${!i}" in -o) object="\${!next}" ;; -MF) rules="\${!next}" ;; -c) source="\${!next}" ;; esac
done
made="${objects}/$object"
if [[ "$object" != */cuda/addon/* && -f "$made" ]] && cmp -s "$source" "${root}/cuda/\${source##*/cuda/}"; then
  [[ -z "$rules" ]] || echo "$object:" > "$rules"
  exec cp "$made" "$object"
fi
exec "\${@/#-O3/-O0}"
`,
    { mode: 0o755 },
  );
  return path;
}

/** Whether this checkout's addon was built with kernels for a GPU. */
export function hasCuda(): boolean {
  return existsSync(join(root, "build/cmake/CMakeFiles/gpu_cuda.dir"));
}

/** A PATH on which there is what npm needs and nothing that compiles. */
export function pathWithoutCompilers(folder: string): string {
  const path = join(folder, "bin");
  mkdirSync(path, { recursive: true });
  for (const program of ["node", "npm", "sh"]) {
    symlinkSync(execFileSync("which", [program], { encoding: "utf8" }).trim(), join(path, program));
  }
  return path;
}
