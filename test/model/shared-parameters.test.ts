// What ranks make of each other's shares by messages is what is made of all of them at hand.
import { join } from "node:path";
import {
  Communicator,
  Device,
  globalNorm,
  initialParameters,
  layerParameters,
  loadParameters,
  loadSafetensors,
  SharedParameters,
  serial,
  shareParameters,
  Tensor,
  wholeGradients,
  wholeParameters,
  zigzag,
} from "longseq";
import t, { type Test } from "tap";
import { differing } from "../support/bits.ts";
import { lacksGpus, localRanks, ncclRanks } from "../support/ranks.ts";
import { refuses } from "../support/refusals.ts";
import { strategyOf, type Way, ways } from "../support/strategies.ts";

const folder = t.testdir({});
const length = 16;
const shapes = {
  "gpt's kind": { hidden: 8, heads: 4, feedForward: 20 },
  // Fewer key heads than ranks: some ranks hold the same, others do not.
  "one key head for all": { kind: "llama" as const, hidden: 8, heads: 4, keyValueHeads: 1 },
  "two key heads": { hidden: 8, heads: 4, keyValueHeads: 2, bias: false },
};

async function sharesAreRight(t: Test, way: Way, communicators: readonly Communicator[]): Promise<void> {
  for (const [kind, shape] of Object.entries(shapes)) {
    const table = layerParameters(shape);
    const ranks = communicators.map((communicator) => {
      const placement = strategyOf(way, communicator, length);
      const { device, rank } = communicator;
      // What a rank has of a gradient is that of its own rows, another one on each.
      const gradients = initialParameters(table, placement, { device, seed: rank + 1 });
      return { communicator, placement, tensors: gradients };
    });
    const shared = await Promise.all(
      ranks.map(({ placement, communicator }) => SharedParameters.of(table, placement, communicator)),
    );
    const sums = wholeGradients(table, ranks);
    const complete = ranks.map(({ tensors }, i) => shared[i]?.completeGradients(tensors) ?? {});
    for (const [i, { placement, communicator }] of ranks.entries()) {
      const { device } = communicator;
      const expected = shareParameters(table, sums, placement, { device });
      const wrong = await differing(complete[i] ?? {}, expected);
      t.strictSame(wrong, [], `${kind}: gradients of rank ${i}`);
    }

    const [norm = 0] = await globalNorm(Object.values(sums)).data();
    const clipped = await Promise.all(
      shared.map((group, i) => group.clipByGlobalNorm(complete[i] ?? {}, norm / 4)),
    );
    for (const { norm: own, factor } of clipped) {
      const [[found = 0], [scale = 0]] = [await own.data(), await factor.data()];
      t.ok(Math.abs(found / norm - 1) < 1e-6, `${kind}: norm ${found}, expected ${norm}`);
      t.ok(Math.abs(4 * scale - 1) < 1e-6, `${kind}: factor ${scale}`);
    }

    const whole = shareParameters(table, wholeParameters(table, ranks), serial(length));
    const shares = ranks.map(({ placement, communicator: { device } }) => {
      const file = wholeParameters(table, [{ placement: serial(length), tensors: whole }]);
      return shareParameters(table, file, placement, { device });
    });
    const joined = shared.map((group, i) => group.whole(shares[i] ?? {}));
    const file = wholeParameters(table, [{ placement: serial(length), tensors: whole }]);
    for (const tensors of joined) t.strictSame(await differing(tensors, file), [], `${kind}: wholes`);

    const path = join(
      folder,
      `${way}-${communicators.length}-${Object.keys(shapes).indexOf(kind)}.safetensors`,
    );
    // Of two dtypes: wider ones come first in the file.
    const mixed = shares.map((tensors) => ({ ...tensors, ...inBfloat16(tensors) }));
    await Promise.all(shared.map((group, i) => group.save(path, mixed[i] ?? {}, { step: "7" })));
    const { tensors: saved, metadata } = await loadSafetensors(path);
    t.strictSame(metadata, { step: "7" });
    const expected = { ...file, ...inBfloat16(file) };
    t.strictSame(await differing(saved, expected), [], `${kind}: the file`);
    for (const [i, { placement, communicator }] of ranks.entries()) {
      const { device } = communicator;
      const { tensors: loaded } = await loadParameters(path, table, placement, { device });
      t.strictSame(await differing(loaded, mixed[i] ?? {}), [], `${kind}: what rank ${i} loads`);
    }
  }
}

/** Some of them. */
function inBfloat16(tensors: Readonly<Record<string, Tensor>>): Record<string, Tensor> {
  const chosen = Object.entries(tensors).filter(([name]) => /proj|mlp_norm/.test(name));
  return Object.fromEntries(chosen.map(([name, tensor]) => [name, tensor.to("bfloat16")]));
}

for (const way of ways) {
  for (const size of [1, 2, 3, 4]) {
    t.test(`${way}, ${size} ranks`, (t) => sharesAreRight(t, way, localRanks(size)));
  }
}

for (const size of [2, 4]) {
  t.test(`${size} ranks over NCCL`, { skip: lacksGpus(size) }, async (t) => {
    const communicators = await ncclRanks(size);
    for (const way of ways) await sharesAreRight(t, way, communicators);
  });
}

t.test("a gradient that is not finite", async (t) => {
  const [communicator] = Communicator.local([new Device()]) as [Communicator];
  const [table, placement] = [layerParameters({ hidden: 4, heads: 1 }), serial(4)];
  const shared = await SharedParameters.of(table, placement, communicator);
  const gradients = initialParameters(table, placement, { device: communicator.device });
  gradients["proj.bias"]?.write([1, 2, Number.NaN, 4]);
  const { norm, factor } = await shared.clipByGlobalNorm(gradients, 1);
  t.strictSame([(await norm.data())[0], (await factor.data())[0]], [Number.NaN, Number.NaN]);
});

t.test("a file that cannot be written fails on all ranks, which can go on", async (t) => {
  const communicators = localRanks(3);
  const table = layerParameters(shapes["gpt's kind"]);
  const ranks = await Promise.all(
    communicators.map(async (communicator) => {
      const placement = strategyOf("megatron", communicator, length);
      const tensors = initialParameters(table, placement, { device: communicator.device });
      return { tensors, shared: await SharedParameters.of(table, placement, communicator) };
    }),
  );
  const absent = join(folder, "absent", "file.safetensors");
  const failed = await Promise.allSettled(ranks.map(({ shared, tensors }) => shared.save(absent, tensors)));
  const messages = failed.map((outcome) => outcome.status === "rejected" && outcome.reason.message);
  t.match(messages[0], /^save: .*absent\/file.safetensors: ENOENT/);
  t.strictSame(messages.slice(1), Array(2).fill(`save: ${absent}: rank 0 could not write it`));
  t.ok(failed.every((outcome) => outcome.status === "rejected" && outcome.reason.code === "ERR_FILE"));
  const path = join(folder, "there.safetensors");
  const paths = ranks.map((_, rank) => (rank === 0 ? path : (undefined as unknown as string))); // rank 0's counts
  await Promise.all(ranks.map(({ shared, tensors }, rank) => shared.save(paths[rank] ?? "", tensors)));
  await t.resolves(loadParameters(path, table, serial(length)));
  const llama = layerParameters({ ...shapes["gpt's kind"], kind: "llama" });
  await t.rejects(loadParameters(path, llama, serial(length)), {
    code: "ERR_FILE",
    message: `loadParameters: ${path}: there is no tensor "mlp_gate.weight"`,
  });
  await t.rejects(loadParameters(path, layerParameters({ hidden: 16, heads: 4 }), serial(length)), {
    code: "ERR_SHAPE",
    message: "loadParameters: input_norm.weight has the shape [8], expected [16]",
  });
});

t.test("what cannot be", async (t) => {
  const [communicator] = Communicator.local([new Device()]) as [Communicator];
  const [table, placement] = [layerParameters({ hidden: 4, heads: 2 }), serial(4)];
  const { device } = communicator;
  const shared = await SharedParameters.of(table, placement, communicator);
  const tensors = initialParameters(table, placement, { device });
  refuses(t, [
    [
      () => shared.completeGradients({}),
      "ERR_OPTION",
      "completeGradients: there is no tensor input_norm.weight",
    ],
    [
      () => shared.whole(null as never),
      "ERR_OPTION",
      "whole: tensors is null, expected an object of Tensors",
    ],
    [
      () => shared.whole({ ...tensors, "proj.bias": Tensor.zeros([3], { device }) }),
      "ERR_SHAPE",
      "whole: proj.bias has the shape [3], expected [4]",
    ],
  ]);
  await t.rejects(shared.save(1 as never, tensors), { code: "ERR_OPTION", message: /save: path is number/ });
  for (const call of [
    loadParameters("absent", table, placement, { dtype: "int32" }),
    (async () => shareParameters(table, tensors, placement, { dtype: "uint8" }))(),
  ]) {
    await t.rejects<unknown>(call, {
      code: "ERR_DTYPE",
      message: /Parameters: dtype is .*, expected float32/,
    });
  }
  await t.rejects(shared.save(join(folder, "none"), {}), {
    code: "ERR_OPTION",
    message: /save: there is no/,
  });
  const numbers = { step: 7 } as never;
  await t.rejects(shared.save(join(folder, "none"), tensors, numbers), {
    code: "ERR_OPTION",
    message: 'save: metadata "step" is number, expected a string',
  });
  await t.rejects(loadParameters(1 as never, table, placement), {
    code: "ERR_OPTION",
    message: /path is num/,
  });
  await t.rejects(shared.clipByGlobalNorm(tensors, 0), { code: "ERR_OPTION", message: /maxNorm is 0/ });
  await t.rejects(SharedParameters.of(table, placement, null as never), {
    code: "ERR_OPTION",
    message: "SharedParameters: communicator is null, expected a Communicator",
  });
  const ranks = Communicator.local([new Device(), new Device()]);
  const tables = ranks.map((_, rank) =>
    layerParameters({ hidden: 8, heads: 2, feedForward: 16 + 16 * rank }),
  );
  const of = ranks.map((all, rank) => SharedParameters.of(tables[rank] ?? [], zigzag(all, 4), all));
  t.strictSame(
    (await Promise.allSettled(of)).map((one) => one.status === "rejected" && one.reason.message),
    [0, 1].map((rank) => `SharedParameters: rank ${1 - rank} has another table than rank ${rank}`),
  );
  const half = strategyOf("megatron", ranks[0] as Communicator, 4);
  await t.rejects(SharedParameters.of(table, half, communicator), {
    code: "ERR_OPTION",
    message: /SharedParameters: no rank of the communicator holds \[2, 4\) of axis 0 of qkv.weight/,
  });
});
