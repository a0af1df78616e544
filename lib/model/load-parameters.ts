// A rank's share of parameters, from a file that holds them whole.
import { checkPath } from "../data/file-errors.ts";
import type { SafetensorsFile } from "../data/safetensors.ts";
import { SafetensorsReader } from "../data/safetensors-reader.ts";
import { deviceOrDefault } from "../device.ts";
import { checkOptions } from "../errors.ts";
import { checkSameShape } from "../layout.ts";
import { inDtype } from "../ops/matmul.ts";
import { Scope } from "../scope.ts";
import type { Tensor } from "../tensor.ts";
import { type TensorOptions, tensorOptionNames } from "../tensor-options.ts";
import { checkPlacement, checkTable, type ParameterSpecification, type Placement } from "./parameters.ts";
import { checkFloat, shareOfStored } from "./shares.ts";

/**
 * What a rank holds of the parameters that a safetensors file has whole, as `SharedParameters.save` writes it, or
 * `saveSafetensors` of `wholeParameters`; at any number of ranks. One parameter after the other is read, so that no more
 * than one is in memory whole. Other tensors of the file do not matter.
 *
 * @param table of `layerParameters` or `gptParameters`.
 * @param placement of the rank: its `Strategy`.
 * @param options dtype, default: each tensor's own; device.
 * @returns tensors: new ones, by the names of the table, which belong to the caller; metadata: the file's.
 * @throws (as a rejection) `ERR_FILE` where the file cannot be read, is damaged, or lacks a tensor; `ERR_SHAPE` for one of
 * another shape; `ERR_OPTION`, `ERR_DTYPE`, `ERR_DEVICE`, `ERR_OUT_OF_MEMORY`.
 * @example
 * const [table, strategy] = [layerParameters({ hidden: 64, heads: 4 }), serial(128)];
 * const ranks = [{ placement: strategy, tensors: initialParameters(table, strategy) }];
 * await saveSafetensors("layer.safetensors", wholeParameters(table, ranks), { step: "7" });
 * const { tensors, metadata } = await loadParameters("layer.safetensors", table, strategy, { dtype: "bfloat16" });
 * tensors["mlp_up.weight"]?.shape; // [256, 64]
 * metadata.step; // "7"
 */
export async function loadParameters(
  path: string,
  table: readonly ParameterSpecification[],
  placement: Placement,
  options: TensorOptions = {},
): Promise<SafetensorsFile> {
  checkPath("loadParameters", path);
  checkTable("loadParameters", table);
  checkPlacement("loadParameters: placement", placement);
  checkOptions("loadParameters", options, tensorOptionNames);
  checkFloat("loadParameters", options.dtype);
  const device = deviceOrDefault("loadParameters", options.device);
  return SafetensorsReader.reading("loadParameters", path, async (reader) => {
    for (const { stored, shape } of table) {
      for (const { name, rows } of stored)
        checkSameShape(`loadParameters: ${name}`, reader.entry(name).shape, shape.with(0, rows));
    }
    const shareOf = async (parameter: ParameterSpecification) => {
      const stored: Record<string, Tensor> = {};
      for (const { name } of parameter.stored) stored[name] = await reader.tensor(name, device);
      const share = shareOfStored("loadParameters", parameter, stored, placement);
      return inDtype(share, options.dtype ?? share.dtype);
    };
    return Scope.run(async () => {
      const tensors: Record<string, Tensor> = {};
      for (const parameter of table) tensors[parameter.name] = await Scope.run(() => shareOf(parameter));
      return { tensors, metadata: reader.metadata };
    });
  });
}
