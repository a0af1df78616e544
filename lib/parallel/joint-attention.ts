// A ring whose ranks share a GPU's memory: attention over all ranks' keys where they lie, in one call. There is nothing
// to merge, and the gradients of keys that several ranks see are added up in float32 by all of them at once.
import { native, type TensorHandle } from "../native.ts";
import { type AttentionResult, gradientsLike } from "../ops/attention.ts";
import { nativeScoring } from "../ops/attention-options.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { asContiguous, borrowed, placeOf } from "../view.ts";
import type { Communicator } from "./communicator.ts";
import type { Gradients } from "./core.ts";
import type { JointPlan } from "./joint-plan.ts";
import { ruleAt } from "./ring-meeting.ts";
import type { ShardedAttentionOptions } from "./strategy.ts";

export function jointForward(
  communicator: Communicator,
  plan: JointPlan,
  [q, k, v]: readonly [Tensor, Tensor, Tensor],
  options: ShardedAttentionOptions,
): AttentionResult {
  const { dtype, device, shape } = q;
  const [batch = 0, rows = 0, heads = 0] = shape;
  const out = Tensor.empty(shape, { dtype, device });
  const logSumExp = Tensor.empty([batch, heads, rows], { device });
  const own = [k, v].map(asContiguous);
  lent(communicator, plan, own, (others) => {
    const [keys, values] = [0, 1].map((i) => handles([own[i], own[i], ...others.map((each) => each[i])]));
    native.attentionForwardOfParts(
      handleOf(q, "attention: q"),
      keys as TensorHandle[],
      values as TensorHandle[],
      plan.parts,
      handleOf(out, "out"),
      handleOf(logSumExp, "logSumExp"),
      nativeOptionsAt(q, plan, options),
    );
  });
  return { out, logSumExp };
}

export function jointBackward(
  communicator: Communicator,
  plan: JointPlan,
  [q, k, v, out, logSumExp]: readonly [Tensor, Tensor, Tensor, Tensor, Tensor],
  dout: Tensor,
  options: ShardedAttentionOptions,
  isWide: boolean,
): Gradients {
  const gradients = gradientsLike([q, k, v], [], isWide ? "float32" : undefined);
  const [dq, ...ofKeys] = gradients;
  const sums = ofKeys.map((gradient) => sumsOf(gradient, plan));
  const own = [...[k, v].map(asContiguous), ...sums];
  lent(communicator, plan, own, (others) => {
    const [keys, values, dk, dv] = [0, 1, 2, 3].map((i) =>
      handles([i < 2 ? own[i] : ofKeys[i - 2], own[i], ...others.map((each) => each[i])]),
    );
    native.attentionBackwardOfParts(
      handleOf(q, "attention: q"),
      keys as TensorHandle[],
      values as TensorHandle[],
      plan.parts,
      handleOf(out, "attention: out"),
      handleOf(logSumExp, "attention: logSumExp"),
      handleOf(dout, "attention: dout"),
      handleOf(dq, "attention: dq"),
      dk as TensorHandle[],
      dv as TensorHandle[],
      nativeOptionsAt(q, plan, options),
    );
  });
  for (const [i, sum] of sums.entries()) {
    const gradient = ofKeys[i] as Tensor;
    if (sum === gradient) continue;
    for (const rows of plan.shared) native.copy(placeOf(sum, rows), placeOf(gradient, rows));
  }
  return gradients;
}

/** Where a gradient of shared keys is added up: zeros. In its place if that can be lent. */
function sumsOf(gradient: Tensor, { shared }: JointPlan): Tensor {
  const { dtype, shape, device, isContiguous } = gradient;
  // What is not rounded is added to, also where nobody else sees the keys.
  if (dtype === "float32") native.fill(handleOf(gradient, "a gradient"), 0);
  if (dtype === "float32" && isContiguous) return gradient;
  const sums = Tensor.empty(shape, { device });
  for (const rows of shared) native.fill(placeOf(sums, rows), 0);
  return sums;
}

/**
 * Lends this rank's tensors to those who see its keys, and calls `use` with the same ones of each rank whose keys it
 * sees: queued behind what these have queued, and ahead of what they will.
 */
function lent(
  communicator: Communicator,
  { owners, viewers }: JointPlan,
  own: readonly Tensor[],
  use: (others: readonly (readonly Tensor[])[]) => void,
): void {
  const given = viewers.flatMap((peer) => own.map((tensor) => ({ peer, tensor })));
  const taken = owners.map(({ peer, rows }) =>
    own.map((x) => ({ peer, tensor: borrowed(x.shape.with(1, rows), x) })),
  );
  communicator.lend(given, taken.flat()).wait();
  use(taken.map((parcels) => parcels.map(({ tensor }) => tensor)));
  communicator.lend(taken.flat(), given).wait();
}

function nativeOptionsAt(q: Tensor, { meeting }: JointPlan, options: ShardedAttentionOptions) {
  return [...nativeScoring(q, options), ...ruleAt(meeting, options)] as const;
}

function handles(tensors: readonly (Tensor | undefined)[]): TensorHandle[] {
  return tensors.map((tensor) => handleOf(tensor as Tensor, "keys"));
}
