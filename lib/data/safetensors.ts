// Safetensors in and out (the format of huggingface/safetensors).
import { type Device, deviceOrDefault } from "../device.ts";
import { checkOptions, wrongKind } from "../errors.ts";
import { Scope } from "../scope.ts";
import { handleOf, type Tensor } from "../tensor.ts";
import { checkPath } from "./file-errors.ts";
import { quote } from "./safetensors-header.ts";
import { SafetensorsReader } from "./safetensors-reader.ts";
import { byWidth, writeSafetensors } from "./safetensors-writer.ts";

/** What a safetensors file holds: its tensors by name, and the strings of its header. */
export interface SafetensorsFile {
  /** To be disposed by whoever loads them. */
  tensors: Record<string, Tensor>;
  /** Empty where the header has none. */
  metadata: Record<string, string>;
}

/**
 * Reads the tensors of a safetensors file (the format of huggingface/safetensors) onto a device (default:
 * `Device.default`). F32, BF16, F16, I32 and U8 keep their type, BOOL becomes uint8, and I64 becomes int32 where every
 * value fits. It takes the tensors' memory and 16 MiB.
 *
 * @param options names: of the tensors that are wanted; default: all. Of others nothing is read but the header.
 * @throws (as a rejection) `ERR_FILE`, with the path, where the file cannot be read, is damaged, or lacks a tensor, or
 * one that is wanted is of another type; `ERR_SHAPE` for more than 6 axes; `ERR_OPTION`, `ERR_OUT_OF_MEMORY`.
 * @example
 * await saveSafetensors("model.safetensors", { weight: Tensor.normal([4, 8]) }, { step: "100" });
 * const { tensors, metadata } = await loadSafetensors("model.safetensors");
 * tensors.weight?.shape; // [4, 8]
 * metadata.step; // "100"
 * await loadSafetensors("model.safetensors", { names: ["weight"] });
 */
export async function loadSafetensors(
  path: string,
  options: { device?: Device; names?: readonly string[] } = {},
): Promise<SafetensorsFile> {
  checkPath("loadSafetensors", path);
  checkOptions("loadSafetensors", options, { device: true, names: true });
  const { names } = options;
  if (names !== undefined && !(Array.isArray(names) && names.every((name) => typeof name === "string")))
    throw wrongKind("loadSafetensors: names", "an array of strings", names);
  const device = deviceOrDefault("loadSafetensors", options.device);
  return SafetensorsReader.reading("loadSafetensors", path, (reader) =>
    Scope.run(async () => {
      const tensors = new Map<string, Tensor>();
      const wanted = new Set(names ?? reader.names);
      for (const name of wanted) reader.entry(name); // before any is read
      for (const name of wanted) tensors.set(name, await reader.tensor(name, device));
      return { tensors: Object.fromEntries(tensors), metadata: reader.metadata };
    }),
  );
}

/**
 * Writes tensors, of any dtype and strides, to a safetensors file, with string `metadata` in its header. The file
 * appears whole or not at all. The tensors must stay as they are until the promise settles.
 *
 * @throws (as a rejection) `ERR_OPTION` for a tensor that is none or is named `__metadata__`, or metadata that is no string;
 * `ERR_FILE` where the file cannot be written; `ERR_DISPOSED`.
 * @example
 * using weight = Tensor.normal([512, 64], { dtype: "bfloat16" });
 * await saveSafetensors("weights.safetensors", { weight }, { step: "100" });
 */
export async function saveSafetensors(
  path: string,
  tensors: Readonly<Record<string, Tensor>>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  checkPath("saveSafetensors", path);
  if (typeof tensors !== "object" || tensors === null || Array.isArray(tensors))
    throw wrongKind("saveSafetensors: tensors", "an object of Tensors", tensors);
  const named = Object.entries(tensors);
  for (const [name, tensor] of named) handleOf(tensor, `saveSafetensors: ${quote(name)}`);
  const sorted = named.sort(([nameA, a], [nameB, b]) => byWidth(a, b) || (nameA < nameB ? -1 : 1));
  const described = sorted.map(([name, { dtype, shape }]) => ({ name, dtype, shape }));
  await writeSafetensors(
    "saveSafetensors",
    path,
    described,
    metadata,
    sorted.map(([, tensor]) => tensor),
  );
}
