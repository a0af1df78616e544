// Tensors in an array, or by name: whoever takes them so gives what it makes of them so.
import { failure, wrongKind } from "./errors.ts";
import { Tensor } from "./tensor.ts";

/** Tensors by name. */
export type Tensors = Readonly<Record<string, Tensor>>;
/** Tensors in an array, or by name, as a model's parameters are. */
export type TensorGroup = readonly Tensor[] | Tensors;
/** A tensor for each of a group: in its place, or under its name. */
export type Alike<Group extends TensorGroup> = { -readonly [Key in keyof Group]: Tensor };

/** Those of a group; what they are is for others to say. */
export function tensorsOf(what: string, group: TensorGroup): readonly Tensor[] {
  if (Array.isArray(group)) return group as readonly Tensor[];
  if (typeof group !== "object" || group === null || group instanceof Tensor)
    throw wrongKind(what, "an array of Tensors, or Tensors by name", group);
  return Object.values(group);
}

/** What stands for a tensor of the group in an error. */
export function nameIn(group: TensorGroup, at: number): string {
  return Array.isArray(group) ? `[${at}]` : `["${Object.keys(group)[at]}"]`;
}

/** What was made of a group's tensors, as the group has them. */
export function alike<Group extends TensorGroup>(group: Group, made: readonly Tensor[]): Alike<Group> {
  if (Array.isArray(group)) return [...made] as Alike<Group>;
  return Object.fromEntries(Object.keys(group).map((name, at) => [name, made[at]])) as Alike<Group>;
}

/** A tensor for each of the group's, in its order: an array has that order, and names must be the group's. */
export function matching(what: string, given: TensorGroup, group: TensorGroup): readonly Tensor[] {
  const tensors = tensorsOf(what, given);
  if (Array.isArray(given)) return tensors;
  if (Array.isArray(group)) throw wrongKind(what, "an array of Tensors", given);
  const [names, expected] = [Object.keys(given), Object.keys(group)];
  const missing = expected.find((name) => !Object.hasOwn(given, name));
  if (missing !== undefined) throw failure("ERR_OPTION", `${what} has no "${missing}"`);
  const unknown = names.find((name) => !Object.hasOwn(group, name));
  if (unknown !== undefined) throw failure("ERR_OPTION", `${what} has "${unknown}", which is no parameter`);
  return expected.map((name) => (given as Tensors)[name] as Tensor);
}
