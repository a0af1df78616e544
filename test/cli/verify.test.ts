import { cp, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { loadSafetensors, saveSafetensors, type Tensor } from "longseq";
import t from "tap";
import { relativeError } from "../../lib/cli/verify/operation.ts";
import { jsonLines, longseq } from "../support/command-line.ts";
import { floatTypes } from "../support/compare.ts";
import { implementationsOf } from "../support/devices.ts";

interface Check {
  case: string;
  op: string;
  tensor: string | null;
  error: number | null;
  bound: number | null;
  ok: boolean;
  reason?: string;
}

const vectors = "test/vectors";
const plain = join(vectors, "attention_plain_d64.safetensors");
const folder = t.testdir({});
/** How many results a file of each operation holds. */
const resultsOf: Readonly<Record<string, number>> = {
  attention: 5,
  rope: 2,
  bias_gelu_tanh: 3,
  bias_gelu_erf: 3,
  swiglu: 3,
  adamw: 3,
  layernorm: 4,
  rmsnorm: 3,
  cross_entropy: 2,
};
/** Of a layer or model, as many as its shape has weights. */
const ofWeights = /^(y|dx|logits|loss|d\..+)$/;

/** A copy of the plain case with its tensors and metadata changed. */
async function changed(
  name: string,
  change: (tensors: Record<string, Tensor>, metadata: Record<string, string>) => void,
): Promise<string> {
  const { tensors, metadata } = await loadSafetensors(plain);
  change(tensors, metadata);
  const path = join(folder, `${name}.safetensors`);
  await saveSafetensors(path, tensors, metadata);
  return path;
}

for (const dtype of floatTypes) {
  for (const implementation of implementationsOf(dtype)) {
    t.test(`all vectors hold: ${dtype}, ${implementation}`, async (t) => {
      const args = ["verify", vectors, "--dtype", dtype, "--implementation", implementation, "--json", "-"];
      const { code, stdout, stderr } = await longseq(args);
      const checks = jsonLines<Check>(stdout);
      t.same(
        checks.filter(({ ok }) => !ok),
        [],
        stderr,
      );
      t.equal(code, 0);
      const files = (await readdir(vectors)).filter((name) => name.endsWith(".safetensors"));
      for (const name of files) {
        const { tensors, metadata } = await loadSafetensors(join(vectors, name));
        const found = checks.filter((check) => `${check.case}.safetensors` === name);
        const results = Object.keys(tensors).filter((tensor) => ofWeights.test(tensor)).length;
        t.equal(found.length, resultsOf[metadata.op ?? ""] ?? results, name);
        t.ok(found.length > 0, name);
      }
      for (const { error, bound, tensor } of checks) {
        t.ok(
          error !== null && bound !== null && error >= 0 && error < bound,
          `${tensor}: ${error} < ${bound}`,
        );
      }
    });
  }
}

for (const [type, dtype, ranks] of [
  ["megatron", "float32", 3],
  ["ulysses", "bfloat16", 8],
  ["ring", "float16", 2],
  ["zigzag", "float32", 3],
  ["hybrid", "bfloat16", 8],
] as const) {
  t.test(`layers and models hold over ranks: ${type}, ${dtype}`, async (t) => {
    const files = ["layer_gpt", "layer_llama_gqa", "gpt_tiny", "gpt_tiny_llama"];
    const paths = files.map((name) => join(vectors, `${name}.safetensors`));
    const parallel = ["--ranks", String(ranks), "--sequence-parallel", type];
    const { code, stdout, stderr } = await longseq([
      "verify",
      ...paths,
      "--dtype",
      dtype,
      ...parallel,
      "--json",
      "-",
    ]);
    const checks = jsonLines<Check>(stdout);
    t.same(
      checks.filter(({ ok }) => !ok),
      [],
      stderr,
    );
    t.equal(code, 0);
    t.equal(checks.length, 71, `${ranks} ranks`);
  });
}

for (const set of ["base", "avx2", "avx512"]) {
  t.test(`the pointwise vectors hold on ${set}`, async (t) => {
    const files = (await readdir(vectors)).filter((name) => /^(rope|bias_gelu|swiglu|adamw)/.test(name));
    for (const dtype of ["float32", "bfloat16", "float16"]) {
      const args = [
        "verify",
        ...files.map((name) => join(vectors, name)),
        "--dtype",
        dtype,
        "--device",
        "cpu",
      ];
      const { code, stdout, stderr } = await longseq(args, { LONGSEQ_ISA: set });
      t.equal(code, 0, `${dtype} ${stdout} ${stderr}`);
    }
  });
}

t.test("only what a file holds is checked", async (t) => {
  const path = await changed("forward", (tensors) => {
    for (const name of ["dout", "dq", "dk", "dv"]) delete tensors[name];
  });
  const { code, stdout } = await longseq(["verify", path, "--json", "-"]);
  t.equal(code, 0);
  t.same(
    jsonLines<Check>(stdout)
      .map(({ tensor }) => tensor)
      .sort(),
    ["lse", "out"],
  );
});

t.test("a result that does not hold is exit code 1", async (t) => {
  const path = await changed("wrong", (_tensors, metadata) => {
    metadata.scale = "0.126";
  });
  const { code, stdout } = await longseq(["verify", path, plain]);
  t.equal(code, 1);
  t.match(stdout, /wrong +out +\d\.\d+e-\d +1e-5 +FAILED/);
  t.match(stdout, /attention_plain_d64 +out .* ok/);
  t.match(stdout, /of 10 hold/);
});

t.test("what it does not know fails, and is no skip", async (t) => {
  const paths = [
    await changed("op", (_tensors, metadata) => {
      metadata.op = "convolution";
    }),
    await changed("option", (_tensors, metadata) => {
      metadata.dilation = "2";
    }),
    await changed("tensor", (tensors) => {
      tensors.bias = tensors.q as Tensor;
    }),
    await changed("prototype", (_tensors, metadata) => {
      metadata.op = "constructor";
    }),
    await changed("unfit", (_tensors, metadata) => {
      metadata.window = "[-7, 0]";
    }),
  ];
  const { code, stdout } = await longseq(["verify", ...paths, "--json", "-"]);
  t.equal(code, 1);
  t.match(
    jsonLines<Check>(stdout),
    [
      "unknown op convolution",
      "unknown option dilation",
      "unknown tensor bias",
      "unknown op constructor",
      /window/,
    ].map((reason) => ({ ok: false, tensor: null, reason })),
  );
});

t.test("a file that is not what it should be is exit code 2, and the others are still run", async (t) => {
  const truncated = join(folder, "truncated.safetensors");
  await writeFile(truncated, (await readFile(plain)).subarray(0, -1));
  const wrong: [string, RegExp][] = [
    [truncated, /truncated.safetensors: tensor .* the file has/],
    [await changed("no-op", (_tensors, metadata) => delete metadata.op), /names no op/],
    [await changed("no-k", (tensors) => delete tensors.k), /there is no tensor "k"/],
    [await changed("no-dout", (tensors) => delete tensors.dout), /there is no tensor "dout"/],
    [
      await changed("no-json", (_tensors, metadata) => (metadata.causal = "yes")),
      /option causal is no JSON text/,
    ],
    [
      await changed("kind", (_tensors, metadata) => (metadata.causal = "1")),
      /option causal is 1, expected true or false/,
    ],
    [await changed("shape", (tensors) => (tensors.out = tensors.lse as Tensor)), /tensor "out" has shape/],
    [
      await changed("mask", (tensors) => (tensors.mask = tensors.lse as Tensor)),
      /option random_mask is not true/,
    ],
    [
      await changed("empty", (tensors) => {
        for (const name of ["out", "lse", "dout", "dq", "dk", "dv"]) delete tensors[name];
      }),
      /there is no result to check/,
    ],
  ];
  const { code, stdout, stderr } = await longseq([
    "verify",
    ...wrong.map(([path]) => path),
    plain,
    "--json",
    "-",
  ]);
  t.equal(code, 2);
  for (const [, message] of wrong) t.match(stderr, message);
  t.equal(jsonLines(stdout).length, 5, "those of the file that is right");
});

t.test("a layer or model that is not what it should be", async (t) => {
  const of = async (
    original: string,
    name: string,
    change: (tensors: Record<string, Tensor>, metadata: Record<string, string>) => void,
  ) => {
    const { tensors, metadata } = await loadSafetensors(join(vectors, `${original}.safetensors`));
    change(tensors, metadata);
    const path = join(folder, `${name}.safetensors`);
    await saveSafetensors(path, tensors, metadata);
    return path;
  };
  const wrong: [string, RegExp][] = [
    [
      await of("layer_gpt", "no-up", (tensors) => delete tensors["mlp_up.weight"]),
      /no tensor "mlp_up.weight"/,
    ],
    [
      await of("layer_gpt", "norm", (_, metadata) => (metadata.norm = "batchnorm")),
      /option norm is "batchnorm"/,
    ],
    [await of("layer_gpt", "no-eps", (_, metadata) => delete metadata.eps), /there is no option eps/],
    [
      await of("layer_llama_gqa", "ffn", (_, metadata) => (metadata.ffn = "64")),
      /"mlp_gate.weight" has shape/,
    ],
    [await of("gpt_tiny", "vocab", (_, metadata) => (metadata.vocab = "60")), /"embedding.weight" has shape/],
    [await of("gpt_tiny", "no-tokens", (tensors) => delete tensors.tokens), /no tensor "tokens"/],
  ];
  const refused = await longseq(["verify", ...wrong.map(([path]) => path)]);
  t.equal(refused.code, 2);
  for (const [, message] of wrong) t.match(refused.stderr, message);
  const failing = [
    await of("layer_gpt", "heads", (_, metadata) => (metadata.heads = "3")),
    await of("gpt_tiny_llama", "eps", (_, metadata) => (metadata.eps = "0.1")),
    await of("gpt_tiny", "unknown", (tensors) => (tensors["layers.0.gate.weight"] = tensors.loss as Tensor)),
  ];
  const { code, stdout } = await longseq(["verify", ...failing, "--json", "-"]);
  t.equal(code, 1);
  const reasons = jsonLines<Check>(stdout).filter(({ ok }) => !ok);
  t.equal(new Set(reasons.map((check) => check.case)).size, 3);
});

t.test("only the forward pass of a layer", async (t) => {
  const { tensors, metadata } = await loadSafetensors(join(vectors, "layer_llama_gqa.safetensors"));
  for (const name of Object.keys(tensors)) if (/^d/.test(name)) delete tensors[name];
  const path = join(folder, "layer-forward.safetensors");
  await saveSafetensors(path, tensors, metadata);
  const { code, stdout } = await longseq(["verify", path, "--json", "-"]);
  t.equal(code, 0);
  t.same(
    jsonLines<Check>(stdout).map(({ tensor }) => tensor),
    ["y"],
  );
});

t.test("paths that lead nowhere, and a folder", async (t) => {
  const empty = join(folder, "empty-folder");
  await mkdir(empty);
  for (const path of [join(folder, "absent"), empty]) {
    const { code, stderr } = await longseq(["verify", path]);
    t.equal(code, 2);
    t.match(stderr, path);
  }
  await cp(plain, join(empty, "one.safetensors"));
  await writeFile(join(empty, "README.md"), "not a vector");
  t.equal((await longseq(["verify", empty])).code, 0);
});

t.test("the error", async (t) => {
  const infinity = Number.POSITIVE_INFINITY;
  t.equal(relativeError([3, 4], [3, 4]), 0);
  t.equal(relativeError([3, 5], [3, 4]), 0.2);
  t.equal(relativeError([0, 0], [0, 0]), 0);
  t.equal(relativeError([-infinity, 1], [-infinity, 1]), 0);
  for (const [values, reference] of [
    [[Number.NaN], [1]],
    [[1], [-infinity]],
    [[-infinity], [1]],
    [[infinity], [-infinity]],
    [[1], [1, 2]],
  ]) {
    t.ok(Number.isNaN(relativeError(values ?? [], reference ?? [])), `${values} against ${reference}`);
  }
});
