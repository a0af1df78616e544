// A limit on memory refuses what there is never room for at once, and else what there is none for when the queue comes to it.
import t from "tap";

process.env.LONGSEQ_MEMORY_LIMIT = "256m";
const { Device, Tensor } = await import("longseq");
const device = new Device("cpu");
const mebibytes = (count: number) => [count, 2 ** 18];

t.test("what was let go makes room, though the queue has not come to it yet", async (t) => {
  const values = [];
  for (let turn = 0; turn < 6; turn++) {
    const x = Tensor.zeros(mebibytes(150), { device });
    const part = x.slice(0, 149, 150);
    const row = part.contiguous();
    for (const tensor of [x, part]) tensor.dispose();
    values.push(row);
  }
  await device.synchronize();
  for (const row of values) {
    t.equal((await row.data())[7], 0);
    row.dispose();
  }
});

t.test("what is refused takes no room from others", async (t) => {
  for (let round = 0; round < 20; round++) {
    const small = Array.from({ length: 50 }, () => Tensor.zeros([16], { device }));
    t.throws(() => Tensor.empty(mebibytes(300), { device }), { code: "ERR_OUT_OF_MEMORY" });
    await Promise.all(small.map((tensor) => tensor.data()));
    for (const tensor of small) tensor.dispose();
  }
});
