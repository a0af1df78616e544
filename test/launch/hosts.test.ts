import { chmodSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import t from "tap";
import { findHosts, isThisMachine } from "../../lib/launch/hosts.ts";
import { expandNodeList, slurmCounts } from "../../lib/launch/slurm.ts";
import { arrange, type Capacity, gpusPerHost, type Wanted } from "../../lib/launch/topology.ts";
import { nodeFiles } from "../support/jobs.ts";
import { pbsBatch, pbsNodes, slurmBatch, slurmShell } from "../support/recorded-jobs.ts";
import { refuses } from "../support/refusals.ts";

t.test("Slurm's lists of hosts", async (t) => {
  const cases: [list: string, hosts: string[] | undefined][] = [
    ["nid001140", ["nid001140"]],
    ["node[001-003,007]", ["node001", "node002", "node003", "node007"]],
    [
      "node[009-011],gpu[1-2]-ib[0-1]",
      ["node009", "node010", "node011", "gpu1-ib0", "gpu1-ib1", "gpu2-ib0", "gpu2-ib1"],
    ],
    ["a,b.example,c-3", ["a", "b.example", "c-3"]],
    ["r[1,3][5-6]n", ["r15n", "r16n", "r35n", "r36n"]],
    ["", undefined],
    ["a[1", undefined],
    ["a[1-]", undefined],
    ["a[3-1]", undefined],
    ["a[0-999999999]", undefined],
    ["a[0-999][0-999]", undefined],
    ["a b", undefined],
    ["a,,b", undefined],
    ["a;reboot", undefined],
  ];
  for (const [list, hosts] of cases) t.strictSame(expandNodeList(list), hosts, list);
  t.strictSame(slurmCounts("4(x2),3"), [4, 4, 3]);
  for (const bad of ["", "x", "4(x", "4(x999999),1(x999999)"]) t.equal(slurmCounts(bad), undefined, bad);
});

t.test("any range of hosts", async (t) => {
  const range = fc.record({
    from: fc.nat(9000),
    count: fc.integer({ min: 1, max: 40 }),
    width: fc.integer({ min: 1, max: 6 }),
  });
  const holds = () =>
    fc.assert(
      fc.property(range, ({ from, count, width }) => {
        const number = (i: number) => String(from + i).padStart(width, "0");
        const got = expandNodeList(`n[${number(0)}-${number(count - 1)}]x`);
        const expected = Array.from({ length: count }, (_, i) => `n${number(i)}x`);
        return JSON.stringify(got) === JSON.stringify(expected);
      }),
    );
  t.doesNotThrow(holds);
});

t.test("where hosts are found", async (t) => {
  const folder = t.testdir({
    plain: "# two\nalpha\n\nbeta # the second\n",
    openmpi: "alpha slots=4 max_slots=8\nbeta slots = 2\n",
    mpich: "alpha:4\nbeta:4\n",
    repeated: "alpha\nbeta\nalpha\nbeta\nalpha\n",
    mixed: "alpha slots=2\nbeta:2\n",
    empty: "# nothing\n",
    broken: "alpha\nbeta:2 slots=2\n",
    zero: "alpha:0\n",
    shell: "alpha;ls\n",
    recorded: pbsNodes, // a line a rank
  });
  const { pbs, cobalt } = nodeFiles(join(folder, "nodes"));
  const names = (env: Record<string, string>) => findHosts(env).hosts.map(({ name }) => name);
  t.strictSame(names(pbs), [
    "x3006c0s13b0n0.hsn.cm.polaris.alcf.anl.gov",
    "x3006c0s13b1n0.hsn.cm.polaris.alcf.anl.gov",
  ]);
  t.strictSame(names(cobalt), ["thetagpu06", "thetagpu17"]);
  const { hosts: ofPbs, source } = findHosts({ ...pbsBatch, PBS_NODEFILE: join(folder, "recorded") });
  t.strictSame([ofPbs, source], [[{ name: "x3006c0s13b0n0" }, { name: "x3006c0s13b1n0" }], "PBS"]);
  for (const job of [slurmBatch, slurmShell]) t.strictSame(names(job), ["nid001140", "nid001141"]);
  t.strictSame(findHosts({}), { hosts: [{ name: hostname() }], source: "this machine" });
  t.ok(isThisMachine(hostname()) && isThisMachine("localhost") && !isThisMachine("elsewhere.example"));

  const read = (name: string) => {
    const { hosts, file } = findHosts(pbs, join(folder, name));
    return [
      file?.format,
      ...hosts.map(({ name, slots }) => (slots === undefined ? name : `${name} ${slots}`)),
    ];
  };
  t.strictSame(read("plain"), ["plain", "alpha", "beta"]);
  t.strictSame(read("openmpi"), ["Open MPI", "alpha 4", "beta 2"]);
  t.strictSame(read("mpich"), ["MPICH", "alpha 4", "beta 4"]);
  t.strictSame(read("repeated"), ["plain", "alpha 3", "beta 2"]);
  t.strictSame(read("mixed"), ["mixed", "alpha 2", "beta 2"]);
  refuses(t, [
    [() => read("empty"), "ERR_FILE", /empty has no hosts, expected one a line/],
    [
      () => read("broken"),
      "ERR_FILE",
      /broken, line 2 is "beta:2 slots=2", expected host, host slots=N or host:N/,
    ],
    [() => read("zero"), "ERR_FILE", /line 1/],
    [() => read("shell"), "ERR_FILE", /line 1/],
    [() => read("absent"), "ERR_FILE", /absent cannot be read: ENOENT/],
    [() => findHosts({ PBS_NODEFILE: "/absent" }), "ERR_FILE", /PBS_NODEFILE \/absent cannot be read/],
    [() => findHosts({ SLURM_JOB_NODELIST: "n[1" }), "ERR_OPTION", /SLURM_JOB_NODELIST is "n\[1"/],
  ]);
});

const hosts = (count: number, slots?: number[]) =>
  Array.from({ length: count }, (_, i) => ({ name: `n${i}`, ...(slots?.[i] && { slots: slots[i] }) }));
const gpus = (count: number): Capacity => ({ count, from: "nvidia-smi -L" });

t.test("how many GPUs a host has", async (t) => {
  const lines = [0, 1, 2, 3].map(
    (i) => `GPU ${i}: NVIDIA A100-SXM4-40GB (UUID: GPU-${i})\n  MIG 1g.5gb Device 0:`,
  );
  const folder = t.testdir({ "nvidia-smi": `#!/bin/sh\n[ "$1" = -L ] && echo '${lines.join("\n")}'\n` });
  chmodSync(join(folder, "nvidia-smi"), 0o755);
  const PATH = `${folder}:/usr/bin:/bin`;
  t.strictSame(gpusPerHost({ PATH }, "PBS"), { count: 4, from: "nvidia-smi -L" });
  t.strictSame(gpusPerHost({ PATH, CUDA_VISIBLE_DEVICES: "0,2" }, "PBS"), {
    count: 2,
    from: "CUDA_VISIBLE_DEVICES",
  });
  t.equal(gpusPerHost({ PATH, CUDA_VISIBLE_DEVICES: "" }, "this machine"), undefined);
  t.equal(gpusPerHost({ PATH: "/absent" }, "this machine"), undefined);
  t.strictSame(gpusPerHost({ PATH, SLURM_GPUS_ON_NODE: "8" }, "Slurm"), {
    count: 8,
    from: "SLURM_GPUS_ON_NODE",
  });
  t.strictSame(gpusPerHost(slurmBatch, "Slurm"), { count: 4, from: "SLURM_GPUS_ON_NODE" });
  t.strictSame(gpusPerHost(slurmShell, "Slurm"), { count: 4, from: "SLURM_GPUS_PER_NODE" });
  t.strictSame(gpusPerHost({ PATH, SLURM_GPUS_PER_NODE: "a100:2" }, "Slurm"), {
    count: 2,
    from: "SLURM_GPUS_PER_NODE",
  });
});

t.test("how many ranks on which hosts", async (t) => {
  type Case = [
    hosts: ReturnType<typeof hosts>,
    gpus: number,
    wanted: Wanted,
    got: [number, number, number | undefined],
  ];
  const cases: Case[] = [
    [hosts(2), 4, {}, [8, 2, 4]],
    [hosts(1), 0, {}, [1, 1, 1]],
    [hosts(1), 0, { ranks: 4 }, [4, 1, 4]],
    [hosts(2), 4, { ranks: 4 }, [4, 1, 4]],
    [hosts(2), 4, { ranks: 6 }, [6, 2, 3]],
    [hosts(4), 4, { nodes: 2 }, [8, 2, 4]],
    [hosts(2), 4, { ranksPerNode: 3 }, [6, 2, 3]],
    [hosts(2), 4, { ranks: 3, ranksPerNode: 3 }, [3, 1, 3]],
    [hosts(2), 4, { ranks: 4, nodes: 2, ranksPerNode: 2 }, [4, 2, 2]],
    [hosts(3), 0, { ranks: 6 }, [6, 3, 2]],
    [hosts(2), 4, { ranksPerNode: 8 }, [16, 2, 8]],
    [hosts(2, [4, 2]), 0, {}, [6, 2, undefined]],
    [hosts(2, [4, 4]), 0, {}, [8, 2, 4]],
    [hosts(2, [4, 2]), 0, { nodes: 2 }, [4, 2, 2]],
  ];
  for (const [all, count, wanted, [ranks, nodes, each]] of cases) {
    const got = arrange(all, wanted, count === 0 ? undefined : gpus(count));
    t.strictSame(
      [got.ranks, got.hosts.length, got.ranksPerNode],
      [ranks, nodes, each],
      JSON.stringify(wanted),
    );
  }
  refuses(t, [
    [
      () => arrange(hosts(2), { nodes: 3 }, gpus(4)),
      "ERR_OPTION",
      "launch: --nodes is 3, expected at most 2 (the hosts there are)",
    ],
    [
      () => arrange(hosts(2), { ranks: 12, ranksPerNode: 4 }, gpus(4)),
      "ERR_OPTION",
      /12 ranks need 3 hosts, expected at most 2/,
    ],
    [
      () => arrange(hosts(2), { ranks: 5 }, gpus(4)),
      "ERR_OPTION",
      "launch: --ranks is 5, expected a multiple of 2 (the hosts)",
    ],
    [
      () => arrange(hosts(2), { ranks: 5, ranksPerNode: 2 }, gpus(4)),
      "ERR_OPTION",
      /expected a multiple of 2 \(--ranks-per-node\)/,
    ],
    [
      () => arrange(hosts(2), { ranks: 16 }, gpus(4)),
      "ERR_OPTION",
      /--ranks is 16, expected at most 8 \(4 a host by nvidia-smi -L\)/,
    ],
    [
      () => arrange(hosts(4), { ranks: 8, nodes: 2, ranksPerNode: 2 }, gpus(4)),
      "ERR_OPTION",
      /--ranks is 8, expected 4 \(2 hosts with 2 each\)/,
    ],
    [
      () => arrange(hosts(1), { ranks: Number.MAX_SAFE_INTEGER }, undefined),
      "ERR_OPTION",
      "launch: 9007199254740991 ranks on a host, expected at most 32768",
    ],
    [() => arrange(hosts(2), { ranksPerNode: 32_769 }, gpus(4)), "ERR_OPTION", /^launch: 32769 ranks on a/],
    [() => arrange(hosts(2, [999_999, 2]), {}, undefined), "ERR_OPTION", /^launch: 999999 ranks on a host/],
    [
      () => arrange(hosts(512), { ranksPerNode: 32_768 }, undefined),
      "ERR_OPTION",
      "launch: 16777216 ranks in all, expected at most 16777215",
    ],
  ]);
});

t.test("whatever is asked, the numbers agree or are refused", async (t) => {
  const some = fc.option(fc.integer({ min: 1, max: 12 }), { nil: undefined });
  const asked = fc.record({ ranks: some, nodes: some, ranksPerNode: some });
  const holds = () =>
    fc.assert(
      fc.property(asked, fc.integer({ min: 1, max: 6 }), some, (wanted, count, each) => {
        try {
          const got = arrange(hosts(count), wanted, each === undefined ? undefined : gpus(each));
          return (
            got.ranks === got.hosts.length * (got.ranksPerNode ?? 0) &&
            got.hosts.length <= count &&
            (wanted.ranks ?? got.ranks) === got.ranks &&
            (wanted.nodes ?? got.hosts.length) === got.hosts.length &&
            (wanted.ranksPerNode ?? got.ranksPerNode) === got.ranksPerNode
          );
        } catch (error) {
          return (error as { code?: string }).code === "ERR_OPTION";
        }
      }),
    );
  t.doesNotThrow(holds);
});
