// Megatron's products, column- and row-parallel: parts of what `linear` gives for the whole, and so are the gradients.
import fc from "fast-check";
import { Device, linear, Tape, Tensor } from "longseq";
import t from "tap";
import { relativeError } from "../support/compare.ts";
import { localRanks } from "../support/ranks.ts";
import { strategyOf } from "../support/strategies.ts";

const cases = fc.record({
  ranks: fc.constantFrom(1, 2, 3, 4, 8),
  batch: fc.integer({ min: 1, max: 2 }),
  length: fc.integer({ min: 0, max: 20 }),
  inner: fc.integer({ min: 1, max: 20 }),
  hasBias: fc.boolean(),
  addsUp: fc.boolean(),
});
const hidden = 6;
const normal = (shape: readonly number[], seed: number, device: Device) =>
  Tensor.normal(shape, { seed, device });
const read = async (x: Tensor) => [...(await x.data())];

for (const move of ["enter", "leave"] as const) {
  t.test(move, async (t) => {
    await fc.assert(
      fc.asyncProperty(cases, async ({ ranks: size, batch, length, inner, hasBias, addsUp }) => {
        const isEnter = move === "enter";
        const [inputs, outputs] = isEnter ? [hidden, inner] : [inner, hidden];
        const make = (device: Device) => ({
          x: normal([batch, length, inputs], 1, device),
          weight: normal([outputs, inputs], 2, device),
          bias: normal([outputs], 3, device),
          dy: normal([batch, length, outputs], 4, device),
        });
        const found = localRanks(size, { timeoutMs: 20_000 }).map((communicator) => {
          const { device } = communicator;
          const strategy = strategyOf("megatron", communicator, length);
          const { begin, end } = strategy.columns(inner);
          const { x, weight, bias, dy } = make(device);
          const rows = (whole: Tensor) => strategy.shard.take(whole).contiguous();
          const columns = (whole: Tensor) => whole.slice(-1 + whole.shape.length, begin, end).contiguous();
          const own = isEnter
            ? {
                x: rows(x),
                weight: weight.slice(0, begin, end),
                bias: bias.slice(0, begin, end),
                dy: columns(dy),
              }
            : { x: columns(x), weight: columns(weight), bias, dy: rows(dy) };
          const sums = {
            dweight: Tensor.zeros(own.weight.shape, { device }),
            dbias: Tensor.zeros(own.bias.shape, { device }),
          };
          using tape = new Tape();
          tape.watch(own.x, own.weight, own.bias);
          const options = addsUp ? (hasBias ? sums : { dweight: sums.dweight }) : {};
          const y = strategy[move](own.x, own.weight, hasBias ? own.bias : undefined, options);
          const [dx, dweight, dbias] = tape.backward(y, own.dy, [own.x, own.weight, own.bias]) as [
            Tensor,
            Tensor,
            Tensor,
          ];
          return { strategy, begin, end, y, dx, ...(addsUp ? sums : { dweight, dbias }) };
        });
        using tape = new Tape();
        const { x, weight, bias, dy } = make(new Device());
        tape.watch(x, weight, bias);
        const y = linear(x, weight, hasBias ? bias : undefined);
        const [dx, dweight, dbias] = tape.backward(y, dy, [x, weight, bias]) as [Tensor, Tensor, Tensor];
        const [inside, outside] = isEnter ? (["y", "dx"] as const) : (["dx", "y"] as const);
        const whole = { y, dx };
        const check = async (name: string, values: readonly number[], expected: Tensor) => {
          const error = relativeError(values, await read(expected));
          t.ok(error < 1e-5, `${name}: ${error}`);
        };
        // Rows of the shards, one behind the other in each batch; then columns of the shares.
        const rows = await Promise.all(
          found.map(async (part) => ({ values: await read(part[outside]), size: part.strategy.shard.size })),
        );
        const joined = Array.from({ length: batch }, (_, b) =>
          rows.flatMap(({ values, size }) => values.slice(b * size * hidden, (b + 1) * size * hidden)),
        ).flat();
        await check(outside, joined, whole[outside]);
        for (const part of found) {
          const { begin, end } = part;
          await check(inside, await read(part[inside]), whole[inside].slice(2, begin, end).contiguous());
          const axis = isEnter ? 0 : 1;
          await check("dweight", await read(part.dweight), dweight.slice(axis, begin, end).contiguous());
          if (isEnter) await check("dbias", await read(part.dbias), dbias.slice(0, begin, end));
        }
        if (!isEnter) {
          const parts = await Promise.all(found.map(({ dbias }) => read(dbias)));
          const sums = (await read(dbias)).map((_, i) =>
            parts.reduce((sum, part) => sum + (part[i] ?? 0), 0),
          );
          await check("dbias", sums, dbias);
        }
      }),
      { numRuns: 40 },
    );
  });
}
