// What ranks make of each other's shares by messages is what is made of all of them at hand.
import {
  Communicator,
  Device,
  globalNorm,
  initialParameters,
  layerParameters,
  SharedParameters,
  serial,
  shareParameters,
  Tensor,
  wholeGradients,
  wholeParameters,
} from "longseq";
import t, { type Test } from "tap";
import { differing } from "../support/bits.ts";
import { lacksGpus, localRanks, ncclRanks } from "../support/ranks.ts";
import { refuses } from "../support/refusals.ts";
import { strategyOf, type Way, ways } from "../support/strategies.ts";

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
  }
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
  await t.rejects(shared.clipByGlobalNorm(tensors, 0), { code: "ERR_OPTION", message: /maxNorm is 0/ });
  await t.rejects(SharedParameters.of(table, placement, null as never), {
    code: "ERR_OPTION",
    message: "SharedParameters: communicator is null, expected a Communicator",
  });
  const ranks = Communicator.local([new Device(), new Device()]);
  const half = strategyOf("megatron", ranks[0] as Communicator, 4);
  await t.rejects(SharedParameters.of(table, half, communicator), {
    code: "ERR_OPTION",
    message: /SharedParameters: no rank of the communicator holds \[2, 4\) of axis 0 of qkv.weight/,
  });
});
