// Trains a small GPT on the lambda phage's genome, base by base, over ranks that share each sequence: queues of this
// process, or under a launcher a process for each GPU. With a warm-up, clipping by the norm of the whole model's
// gradients, a loss on bases that it does not see, and a checkpoint from which training goes on with the same numbers,
// at any number of ranks.
//
//   npm run example:training [FOLDER]                                            # FOLDER: for the checkpoint
//   npx longseq launch --ranks 4 -- node build/examples/genome-training.js FOLDER # a process for each of four GPUs
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import {
  AdamW,
  Communicator,
  Device,
  GPT,
  type GptOptions,
  gptParameters,
  loadParameters,
  rankFromEnvironment,
  readFasta,
  Scope,
  SharedParameters,
  Tape,
  Tensor,
  type Tensors,
  zigzag,
} from "longseq";

export interface Settings {
  /** A FASTA file; its first record is used. */
  genome: string;
  model: GptOptions;
  /** Bases of a sequence. */
  length: number;
  /** To be taken in all, those before a checkpoint too. */
  steps: number;
  learningRate: number;
  /** A folder: read where it holds a checkpoint, and written at the end. */
  checkpoint?: string;
}

/** One that shares the sequences with the others. */
interface Rank {
  communicator: Communicator;
  model: GPT;
  shared: SharedParameters;
  optimizer: AdamW<Tensors>;
}

const alphabet = "ACGTN";
const one = (device: Device) => Tensor.from([1], [], { device });

/** Trains, and gives the loss of each step, and at the end that on the last tenth of the genome. */
export async function train(
  communicators: readonly Communicator[],
  { genome, model, length, steps, learningRate, checkpoint }: Settings,
): Promise<{ losses: number[]; heldOut: number }> {
  const [record] = await readFasta(genome);
  if (!record) throw new Error(`${genome}: no record`);
  const bases = record.sequence.map((base) => Math.max(0, alphabet.indexOf(String.fromCharCode(base))));
  const seen = bases.subarray(0, Math.floor(0.9 * bases.length));
  const unseen = bases.subarray(seen.length);

  const ranks = await Promise.all(
    communicators.map((communicator) => openRank(communicator, model, length, checkpoint)),
  );
  const losses: number[] = [];
  for (let step = ranks[0]?.optimizer.steps ?? 0; step < steps; step++) {
    const start = (step * 7919 * length) % (seen.length - length - 1);
    const rate = learningRate * Math.min(1, (step + 1) / 10); // warm-up
    losses.push(await trainStep(ranks, seen.subarray(start, start + length + 1), rate));
  }
  const heldOut = await lossOf(ranks, unseen.subarray(0, length + 1));
  if (checkpoint !== undefined) await Promise.all(ranks.map((rank) => save(rank, checkpoint)));
  for (const { model, optimizer } of ranks) {
    optimizer.dispose();
    model.dispose();
  }
  return { losses, heldOut };
}

async function openRank(
  communicator: Communicator,
  options: GptOptions,
  length: number,
  checkpoint: string | undefined,
): Promise<Rank> {
  const { device } = communicator;
  const strategy = zigzag(communicator, length);
  const table = gptParameters(options);
  const model = new GPT(options, strategy, { seed: 1, device });
  const shared = await SharedParameters.of(table, strategy, communicator);
  const isResumed = checkpoint !== undefined && existsSync(join(checkpoint, "secondMoments.safetensors"));
  const load = async (name: string) => {
    if (!isResumed) return { tensors: {}, metadata: {} };
    return loadParameters(join(checkpoint, `${name}.safetensors`), table, strategy, { device });
  };
  const { tensors, metadata } = await load("parameters");
  writeAll(model.parameters, tensors);
  const steps = Number(metadata.step ?? 0);
  const optimizer = new AdamW(model.parameters, { betas: [0.9, 0.95], steps });
  writeAll(optimizer.firstMoments, (await load("firstMoments")).tensors);
  writeAll(optimizer.secondMoments, (await load("secondMoments")).tensors);
  return { communicator, model, shared, optimizer };
}

function writeAll(places: Tensors, loaded: Tensors): void {
  for (const [name, tensor] of Object.entries(loaded)) {
    places[name]?.write(tensor);
    tensor.dispose();
  }
}

async function save(rank: Rank, folder: string): Promise<void> {
  const { model, shared, optimizer } = rank;
  const step = { step: String(optimizer.steps) };
  if (rank.communicator.rank === 0) mkdirSync(folder, { recursive: true });
  await shared.save(join(folder, "parameters.safetensors"), model.parameters, step);
  await shared.save(join(folder, "firstMoments.safetensors"), optimizer.firstMoments);
  await shared.save(join(folder, "secondMoments.safetensors"), optimizer.secondMoments);
}

/** Each rank gets its rows of the sequence, and of the bases that follow them. */
function rowsOf({ model: { strategy }, communicator: { device } }: Rank, sequence: Uint8Array) {
  const { shard } = strategy;
  return {
    tokens: Tensor.from(shard.takeValues(sequence.subarray(0, -1)), [1, shard.size], { device }),
    targets: Tensor.from(shard.labels(sequence), [1, shard.size], { device }),
  };
}

/** The mean loss. All ranks are called before anything of one of them is awaited. */
async function trainStep(
  ranks: readonly Rank[],
  sequence: Uint8Array,
  learningRate: number,
): Promise<number> {
  const passes = ranks.map((rank) => gradientsOf(rank, sequence));
  await Promise.all(
    ranks.map(({ shared, optimizer }, i) =>
      Scope.run(async () => {
        const gradients = shared.completeGradients(passes[i]?.gradients ?? {});
        const { factor } = await shared.clipByGlobalNorm(gradients, 1);
        optimizer.step(gradients, { learningRate, gradientScale: factor });
      }),
    ),
  );
  const loss = (await passes[0]?.loss.item()) ?? Number.NaN;
  for (const { loss, gradients } of passes) {
    for (const tensor of [loss, ...Object.values(gradients)]) tensor.dispose();
  }
  return loss;
}

function gradientsOf(rank: Rank, sequence: Uint8Array): { loss: Tensor; gradients: Tensors } {
  return Scope.run(() => {
    const { model, communicator } = rank;
    const { tokens, targets } = rowsOf(rank, sequence);
    using tape = new Tape();
    tape.watch(model.parameters);
    const loss = model.loss(tokens, targets);
    return { loss, gradients: tape.backward(loss, one(communicator.device), model.parameters) };
  });
}

async function lossOf(ranks: readonly Rank[], sequence: Uint8Array): Promise<number> {
  const losses = ranks.map((rank) =>
    Scope.run(() => {
      const { tokens, targets } = rowsOf(rank, sequence);
      return rank.model.loss(tokens, targets);
    }),
  );
  const [loss = Number.NaN] = await Promise.all(losses.map((tensor) => tensor.item()));
  for (const tensor of losses) tensor.dispose();
  return loss;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const [, , checkpoint] = process.argv;
  const { size, localRank } = rankFromEnvironment();
  const communicators =
    size > 1
      ? [await Communicator.nccl({ device: new Device(`cuda:${localRank}`) })]
      : Communicator.local([new Device(), new Device()]);
  const { losses, heldOut } = await train(communicators, {
    genome: "test/data/lambda_phage_NC_001416.fa.gz",
    model: { kind: "llama", hidden: 64, heads: 4, layers: 2, vocabulary: alphabet.length },
    length: 1024,
    steps: 40,
    learningRate: 3e-3,
    ...(checkpoint !== undefined && { checkpoint }),
  });
  if (communicators[0]?.rank === 0) {
    for (const [step, loss] of losses.entries())
      if (step % 5 === 0) console.log(`${step} ${loss.toFixed(4)}`);
    console.log(`on bases that it has not seen: ${heldOut.toFixed(4)} (ln 4 is ${Math.log(4).toFixed(4)})`);
  }
  for (const communicator of communicators) communicator.dispose();
}
