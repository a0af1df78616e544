import fc from "fast-check";
import { type Rank, rankFromEnvironment } from "longseq";
import t from "tap";
import * as jobs from "../support/jobs.ts";
import * as recorded from "../support/recorded-jobs.ts";
import { refuses } from "../support/refusals.ts";

const place = (source: Rank["source"], rank: number, size: number, localRank: number, localSize: number) => ({
  rank,
  size,
  localRank,
  localSize,
  source,
});

t.test("the variables of each launcher", async (t) => {
  const cases: [env: Record<string, string>, expected: Rank][] = [
    [jobs.palsRank5, place("PALS", 5, 8, 1, 4)],
    [jobs.openMpiRank9, place("Open MPI", 9, 16, 1, 8)],
    [jobs.torchrunRank7, place("torchrun", 7, 8, 3, 4)],
    [{}, place("none", 0, 1, 0, 1)],
    [{ PMI_RANK: "0", PMI_SIZE: "1" }, place("PMI", 0, 1, 0, 1)],
    [
      { PMIX_RANK: "1", LONGSEQ_SIZE: "4", LONGSEQ_LOCAL_RANK: "1", LONGSEQ_LOCAL_SIZE: "2" },
      place("PMIx", 1, 4, 1, 2),
    ],
    [
      {
        ...jobs.palsRank5,
        LONGSEQ_RANK: "2",
        LONGSEQ_SIZE: "3",
        LONGSEQ_LOCAL_RANK: "0",
        LONGSEQ_LOCAL_SIZE: "1",
      },
      place("longseq", 2, 3, 0, 1),
    ],
  ];
  for (const [env, expected] of cases) t.strictSame(rankFromEnvironment(env), expected);
});

t.test("jobs that have run", async (t) => {
  const cases: [env: Record<string, string>, expected: Rank][] = [
    [recorded.slurmBatch, place("none", 0, 1, 0, 1)],
    [recorded.slurmShell, place("none", 0, 1, 0, 1)],
    [recorded.slurmRank6, place("Slurm", 6, 8, 2, 4)],
    [recorded.slurmOneGpuEach, place("Slurm", 6, 8, 2, 4)],
    [recorded.slurmUneven, place("Slurm", 4, 5, 1, 2)],
    [recorded.slurmCyclic, place("Slurm", 2, 3, 1, 2)],
    [recorded.pmi2Rank3, place("Slurm", 3, 4, 1, 2)],
    [recorded.pmixRank3, place("Slurm", 3, 4, 3, 4)],
    [recorded.hydraRank3, place("MPICH", 3, 4, 1, 2)],
    [recorded.pbsBatch, place("none", 0, 1, 0, 1)],
    [recorded.pbsHydraRank3, place("MPICH", 3, 4, 1, 2)],
    [recorded.openMpiRank3, place("Open MPI", 3, 4, 1, 2)],
    [recorded.torchrunRank3, place("torchrun", 3, 4, 3, 4)],
  ];
  for (const [env, expected] of cases) t.strictSame(rankFromEnvironment(env), expected);
});

t.test("what looks like a launcher's and is not", async (t) => {
  t.equal(rankFromEnvironment({ RANK: "3", WORLD_SIZE: "4" }).source, "none", "anybody's RANK");
  const exported = { RANK: "0", WORLD_SIZE: "1", LOCAL_RANK: "0" };
  t.equal(rankFromEnvironment(exported).source, "torchrun");
  t.equal(
    rankFromEnvironment({ ...jobs.palsRank5, ...exported }).source,
    "PALS",
    "a shell's, for all ranks alike",
  );
  t.equal(rankFromEnvironment({ WORLD_SIZE: "8", ...recorded.slurmRank6 }).source, "Slurm");
  for (const step of ["4294967291", "4294967290", ""]) {
    t.equal(
      rankFromEnvironment({ ...recorded.slurmBatch, SLURM_STEP_ID: step }).source,
      "none",
      "a shell of Slurm",
    );
  }
  t.equal(rankFromEnvironment({ LONGSEQ_RANK: "" }).source, "none");
  t.strictSame(
    rankFromEnvironment({ ...recorded.slurmRank6, SLURM_STEP_TASKS_PER_NODE: "5,3" }),
    place("Slurm", 6, 8, 2, 3),
    "nodes of different sizes",
  );
  t.strictSame(
    rankFromEnvironment({ ...jobs.palsRank5, LONGSEQ_SIZE: "99", LONGSEQ_LOCAL_SIZE: "99" }),
    place("PALS", 5, 8, 1, 4),
    "ours only fill in",
  );
});

t.test("what is broken is named", async (t) => {
  const broken = (env: Record<string, string>) => () => rankFromEnvironment(env);
  const { PMI_SIZE: _, ...withoutSize } = jobs.palsRank5;
  refuses(t, [
    [
      broken({ ...jobs.palsRank5, PMI_RANK: "4" }),
      "ERR_OPTION",
      /PMI_RANK is 4, expected 5 \(that of PALS_RANKID\)/,
    ],
    [
      broken({ ...recorded.slurmRank6, SLURM_PROCID: "8" }),
      "ERR_OPTION",
      /SLURM_PROCID is 8, expected less than 8/,
    ],
    [broken({ ...recorded.slurmRank6, PMIX_RANK: "1" }), "ERR_OPTION", /PMIX_RANK is 1, expected 6/],
    [broken({ ...jobs.openMpiRank9, OMPI_COMM_WORLD_SIZE: "many" }), "ERR_OPTION", /WORLD_SIZE is "many"/],
    [
      broken({ ...recorded.hydraRank3, MPI_LOCALRANKID: "2" }),
      "ERR_OPTION",
      /MPI_LOCALRANKID is 2, expected less than 2/,
    ],
    [
      broken({ ...recorded.hydraRank3, MPI_LOCALNRANKS: "5" }),
      "ERR_OPTION",
      /NRANKS is 5, expected at most 4/,
    ],
    [broken({ ...jobs.torchrunRank7, RANK: "-1" }), "ERR_OPTION", /RANK is "-1"/],
    [broken(withoutSize), "ERR_OPTION", /PMI_SIZE has no value.*LONGSEQ_SIZE/],
    [broken({ PMI_RANK: "0", PMI_SIZE: "2" }), "ERR_OPTION", /PMI_LOCAL_RANK has no value/],
    [
      broken({ LONGSEQ_RANK: "0" }),
      "ERR_OPTION",
      "LONGSEQ_SIZE has no value, expected one beside LONGSEQ_RANK",
    ],
    [() => rankFromEnvironment(null as never), "ERR_OPTION", /env is null, expected an object/],
  ]);
});

t.test("any rank of any job", async (t) => {
  const job = fc
    .integer({ min: 1, max: 64 })
    .chain((localSize) =>
      fc.record({ localSize: fc.constant(localSize), nodes: fc.integer({ min: 1, max: 99 }), at: fc.nat() }),
    );
  const holds = () =>
    fc.assert(
      fc.property(job, ({ localSize, nodes, at }) => {
        const size = localSize * nodes;
        const rank = at % size;
        const env = {
          PMI_RANK: `${rank}`,
          PMI_SIZE: `${size}`,
          MPI_LOCALRANKID: `${rank % localSize}`,
          MPI_LOCALNRANKS: `${localSize}`,
        };
        const got = rankFromEnvironment(env);
        return (
          got.rank === rank && got.size === size && got.localRank < got.localSize && got.localSize <= size
        );
      }),
    );
  t.doesNotThrow(holds);
});
