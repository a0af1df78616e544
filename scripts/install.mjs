// npm's install step. A prebuilt binary that loads here is enough, and nothing is done; otherwise the addon is compiled.
import { createRequire } from "node:module";
import { build, howToGetTools, missingTools, root } from "./build.mjs";

/** Why no binary in the package can be used here; undefined where one can. */
function whyCompile() {
  if (process.env.npm_config_build_from_source) return "npm was told to build from source";
  try {
    createRequire(import.meta.url)("node-gyp-build")(root);
    return undefined;
  } catch (error) {
    return error.message.trim().split("\n")[0];
  }
}

const why = whyCompile();
if (why !== undefined) {
  console.log(`longseq: compiling the addon (${why})`);
  const missing = missingTools();
  if (missing.length > 0) {
    console.error(`longseq: cannot compile: missing here: ${missing.join(", ")}.
${howToGetTools}
Then run again: npm install longseq`);
    process.exit(1);
  }
  if (!build()) {
    console.error(`longseq: the addon did not compile: the first error above says why.\n${howToGetTools}`);
    process.exit(1);
  }
}
