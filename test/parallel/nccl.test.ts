// Ranks over NCCL: how the library is found, what is refused, and, on a GPU, groups of one and of two.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { Communicator, Device, info, Tensor } from "longseq";
import t from "tap";
import type { Opened } from "../support/child/nccl-version.ts";
import { answer } from "../support/child.ts";
import { lacksGpus, ncclRanks } from "../support/ranks.ts";

/** NCCL by name: a version, which tells of NCCL_NVLS_ENABLE in its last digit, and no more functions than asked for. */
const source = `
#include <stdlib.h>
int ncclGetVersion(int* version) {
  const char* nvls = getenv("NCCL_NVLS_ENABLE");
  *version = VERSION + (nvls ? atoi(nvls) : 9);
  return 0;
}
#ifdef COMPLETE
#define FUNCTION(name) int name(void) { return 1; }
FUNCTION(ncclGetUniqueId) FUNCTION(ncclGetErrorString) FUNCTION(ncclGetLastError)
FUNCTION(ncclCommInitRankConfig) FUNCTION(ncclCommGetAsyncError) FUNCTION(ncclCommDestroy) FUNCTION(ncclCommAbort)
FUNCTION(ncclGroupStart) FUNCTION(ncclGroupEnd) FUNCTION(ncclSend) FUNCTION(ncclRecv) FUNCTION(ncclAllReduce)
#endif
`;
const compiler = process.env.CC || "gcc";
const hasCompiler = spawnSync(compiler, ["--version"]).status === 0;

t.test(
  "the library is opened where it is named",
  { skip: !hasCompiler && `there is no ${compiler}` },
  async (t) => {
    const folder = t.testdir({ "nccl.c": source, complete: {}, old: {}, part: {} });
    const make = (name: string, ...flags: string[]) => {
      const path = join(folder, name, "libnccl.so.2");
      const made = spawnSync(compiler, ["-shared", "-fPIC", ...flags, "-o", path, join(folder, "nccl.c")]);
      t.equal(made.status, 0, String(made.stderr));
      return path;
    };
    const complete = make("complete", "-DVERSION=22700", "-DCOMPLETE");
    make("old", "-DVERSION=2804", "-DCOMPLETE");
    make("part", "-DVERSION=22700");
    const opened = (environment: NodeJS.ProcessEnv) => answer<Opened>("nccl-version.ts", { environment });
    const at = (name: string) => opened({ LONGSEQ_NCCL: join(folder, name) });
    t.strictSame(await at("complete"), { version: "2.27.0", path: complete }, "NCCL_NVLS_ENABLE is 0 then");
    t.strictSame(
      await opened({ LONGSEQ_NCCL: complete, NCCL_NVLS_ENABLE: "1" }),
      { version: "2.27.1", path: complete },
      "a file, and what the user has set",
    );
    t.match(await at("old"), {
      code: "ERR_NO_NCCL",
      message: /has version 2\.8\.4, expected 2\.14 or later$/,
    });
    t.match(await at("part"), {
      code: "ERR_NO_NCCL",
      message: /version 2\.14 or later is needed; the one that was found has no function ncclGetUniqueId/,
    });
    t.match(await at("absent"), {
      code: "ERR_NO_NCCL",
      message: /Install libnccl2, .*LONGSEQ_NCCL .* Tried: .*absent/,
    });
  },
);

t.test("what cannot be", async (t) => {
  const refused = (options: object, code: string, message: RegExp) =>
    t.rejects(Communicator.nccl(options), { code, message }, String(message));
  const device = new Device("cpu");
  await refused(
    { device, rank: 0, size: 1 },
    info().cuda.compiled ? "ERR_DEVICE" : "ERR_NO_CUDA",
    /^Communicator\.nccl: device is cpu, expected a GPU/,
  );
  await refused({ device: "cpu" }, "ERR_OPTION", /^Communicator\.nccl: device is string, expected a Device$/);
  await refused(
    { device, rank: 2, size: 2 },
    "ERR_OPTION",
    /^Communicator\.nccl: rank is 2, expected less than 2/,
  );
  await refused(
    { device, rank: 0, size: 2, address: "here" },
    "ERR_OPTION",
    /^Communicator\.nccl: address is "here"/,
  );
  await refused(
    { device, rank: 0, size: 1, multicast: 1 },
    "ERR_OPTION",
    /multicast is number, expected a boolean$/,
  );
  await t.rejects(Communicator.nccl(null as never), {
    code: "ERR_OPTION",
    message: /^Communicator\.nccl: options is null/,
  });
});

const read = async (x: Tensor) => [...(await x.data())];

t.test("a group of one rank does all that larger ones do", { skip: lacksGpus(1) }, async (t) => {
  using device = new Device("cuda");
  using all = await Communicator.nccl({ device, rank: 0, size: 1, timeoutMs: 30_000 });
  t.strictSame([all.rank, all.size, all.device], [0, 1, device]);
  const x = Tensor.from([1, 2, 3, 4], [2, 2], { device });
  for (const group of [all, all.group([0])]) {
    t.strictSame(await read(group.allGather(x).wait()), [1, 2, 3, 4]);
    t.strictSame(await read(group.reduceScatter(x).wait()), [1, 2, 3, 4]);
    t.strictSame(await read(group.allReduce(x).wait()), [1, 2, 3, 4]);
    t.strictSame(await read(group.allToAll(x, [2]).wait()), [1, 2, 3, 4]);
    group.broadcast(x, 0).wait();
    const y = Tensor.zeros([2, 2], { device });
    group.exchange([{ peer: 0, tensor: x }], [{ peer: 0, tensor: y }]).wait();
    group.barrier().wait();
    t.strictSame(await read(y), [1, 2, 3, 4]);
    t.throws(() => group.group([1]), { code: "ERR_OPTION" });
  }
  const two = Tensor.zeros([2], { device });
  all.exchange([{ peer: 0, tensor: x }], [{ peer: 0, tensor: two }]).wait();
  await t.rejects(two.data(), { code: "ERR_COMM", message: /rank 0 sends to itself something else/ });
  await t.rejects(all.barrier().wait() ?? device.synchronize(), { code: "ERR_COMM" }, "from then on");
});

t.test("a rank that nobody joins says who did not come", { skip: lacksGpus(1) }, async (t) => {
  const meeting = { address: "127.0.0.1:0", token: "a token of these tests", onListening: () => {} };
  await t.rejects(
    Communicator.nccl({ device: new Device("cuda"), rank: 0, size: 2, timeoutMs: 300, ...meeting }),
    { code: "ERR_COMM", message: /rank 1 of 2 did not come within 0\.3 s/ },
  );
});

t.test("two ranks: one leaves, one does not come", { skip: lacksGpus(2) }, async (t) => {
  const pair = async (timeoutMs: number) => (await ncclRanks(2, timeoutMs)) as [Communicator, Communicator];
  const one = ({ device, rank }: Communicator) => Tensor.from([rank + 1], [1], { device });
  {
    const ranks = await pair(60_000);
    const sums = ranks.map((all) => all.allReduce(one(all)).wait());
    t.strictSame(await Promise.all(sums.map(read)), [[3], [3]]);
    const turned = ranks.map((all) => all.group([1, 0]).allGather(one(all)).wait());
    t.strictSame(await Promise.all(turned.map(read)), [
      [2, 1],
      [2, 1],
    ]);
    ranks[1].dispose();
    await t.rejects(ranks[0].allReduce(one(ranks[0])).wait().data(), {
      code: "ERR_COMM",
      message: /rank 1 has left/,
    });
  }
  {
    const [first, second] = await pair(500);
    await t.rejects(first.allReduce(one(first)).wait().data(), {
      code: "ERR_COMM",
      message: /step 1 with rank 1/,
    });
    second.barrier().wait();
    await t.rejects(second.device.synchronize(), { code: "ERR_COMM" }, "the other is told");
  }
});
