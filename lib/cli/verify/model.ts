// Reference vectors of a whole model: its scores, its loss, and the gradients of all weights.
import { GPT, type GptOptions, gptParameters, Scope, Tape, Tensor } from "../../index.ts";
import { layerOptionNames, layerOptions, layerTensorNames, required } from "./layer.ts";
import type { Operation, Run } from "./operation.ts";
import { gradientsOf, joined, resultsOf, rowsOf, weightsOf } from "./ranks.ts";
import { isBoolean, isNumber, type VectorFile, VectorFileError } from "./vector-file.ts";

const mostLayers = 100;
const weightNames = [
  ...["embedding.weight", "position.weight", "head.weight", "final_norm.weight", "final_norm.bias"],
  ...Array.from({ length: mostLayers }, (_, layer) =>
    layerTensorNames.map((name) => `layers.${layer}.${name}`),
  ).flat(),
];

export const gptOperation: Operation = {
  options: [...layerOptionNames, "layers", "vocab", "max_positions", "tied_embeddings"],
  tensors: ["tokens", "logits", "loss", ...weightNames, ...weightNames.map((name) => `d.${name}`)],
  run: async (file, run) => Scope.run(() => results(file, run)),
};

function results(file: VectorFile, run: Run) {
  const tokens = file.tensor("tokens", [undefined, undefined]);
  const [, count = 0] = tokens.shape;
  if (count < 2) throw new VectorFileError(`${file.path}: tensor "tokens" has no next token`);
  const options = gptOptions(file);
  const table = gptParameters(options);
  const ranks = run.ranks(count - 1);
  const wantsGradients = Object.keys(file.tensors).some((name) => name.startsWith("d."));
  const attention = run.implementation ? { implementation: run.implementation } : {};
  const made = ranks.map((rank) => {
    const parameters = weightsOf(file, table, rank, run.dtype);
    const model = new GPT(options, rank.strategy, { parameters });
    const given = rowsOf(rank, tokens.slice(1, 0, count - 1));
    const logits = model.logits(given, attention);
    using tape = new Tape();
    if (wantsGradients) tape.watch(parameters);
    const loss = model.loss(given, rowsOf(rank, tokens.slice(1, 1, count)), attention);
    if (!wantsGradients) return { logits, loss, gradients: {} };
    const one = Tensor.from([1], [], { device: rank.device });
    return { logits, loss, gradients: tape.backward(loss, one, parameters) };
  });
  const logits = made.map(({ logits }) => logits);
  const computed = {
    logits: joined(ranks, logits),
    // All ranks have the same.
    ...(made[0] && { loss: made[0].loss.reshape([1]) }),
    ...(wantsGradients &&
      gradientsOf(
        table,
        ranks,
        made.map(({ gradients }) => gradients),
      )),
  };
  return resultsOf(file, computed, () => "model");
}

function gptOptions(file: VectorFile): GptOptions {
  const [, hidden = 0] = file.tensor("embedding.weight", [undefined, undefined]).shape;
  return {
    ...layerOptions(file, hidden),
    layers: required(file, "layers", "a number", isNumber),
    vocabulary: required(file, "vocab", "a number", isNumber),
    maxPositions: required(file, "max_positions", "a number", isNumber),
    tiedEmbeddings: file.option("tied_embeddings", "true or false", isBoolean) ?? false,
  };
}
