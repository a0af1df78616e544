// A ring whose ranks share a GPU's memory, in one call each way. Forward a rank's queries see all keys where they lie;
// backward its keys are seen by all queries, and dq is added up where those lie. There is nothing to merge, and dk and dv
// are made by one rank.
import { native, type TensorHandle } from "../native.ts";
import { type AttentionResult, gradientsLike } from "../ops/attention.ts";
import { nativeRule, nativeScoring } from "../ops/attention-options.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { asContiguous, borrowed } from "../view.ts";
import type { Communicator } from "./communicator.ts";
import type { Gradients } from "./core.ts";
import type { JointMeeting, JointPlan } from "./joint-plan.ts";
import { ruleAt } from "./ring-meeting.ts";
import type { ShardedAttentionOptions } from "./strategy.ts";

export function jointPasses(communicator: Communicator, plan: JointPlan) {
  return {
    forward: forward.bind(null, communicator, plan),
    backward: backward.bind(null, communicator, plan),
  };
}

function forward(
  communicator: Communicator,
  plan: JointPlan,
  [q, k, v]: readonly [Tensor, Tensor, Tensor],
  options: ShardedAttentionOptions,
): AttentionResult {
  const { dtype, device, shape } = q;
  const [batch = 0, rows = 0, heads = 0] = shape;
  const out = Tensor.empty(shape, { dtype, device });
  const logSumExp = Tensor.empty([batch, heads, rows], { device });
  lent(communicator, [k, v].map(asContiguous), plan.backward, plan.forward, ([keys = [], values = []]) => {
    native.attentionForwardOfParts(
      handleOf(q, "attention: q"),
      keys,
      values,
      plan.forward.parts,
      handleOf(out, "out"),
      handleOf(logSumExp, "logSumExp"),
      nativeOptionsAt(q, plan.forward, options),
    );
  });
  return { out, logSumExp };
}

function backward(
  communicator: Communicator,
  plan: JointPlan,
  [q, k, v, out, logSumExp]: readonly [Tensor, Tensor, Tensor, Tensor, Tensor],
  dout: Tensor,
  options: ShardedAttentionOptions,
  isWide: boolean,
): Gradients {
  const [batch = 0, rows = 0, heads = 0, headDim = 0] = q.shape;
  const { device } = q;
  const gradients = gradientsLike([q, k, v], [], isWide ? "float32" : undefined);
  const [dq, dk, dv] = gradients.map((gradient) => handleOf(gradient, "a gradient")) as [
    TensorHandle,
    TensorHandle,
    TensorHandle,
  ];
  const statistics = Tensor.empty([batch, heads, rows, 2], { device });
  const sums = Tensor.empty([batch, heads, rows, native.querySumColumns(headDim)], { device });
  const scoring = [...nativeScoring(q, options), ...nativeRule({})] as const;
  native.querySumsBegin(
    handleOf(q, "attention: q"),
    handleOf(out, "attention: out"),
    handleOf(logSumExp, "attention: logSumExp"),
    handleOf(dout, "attention: dout"),
    handleOf(statistics, "statistics"),
    handleOf(sums, "sums"),
    scoring,
  );
  const own = [...[q, dout].map(asContiguous), statistics, sums];
  const given = nativeOptionsAt(q, plan.backward, options);
  const keys = [handleOf(k, "attention: k"), handleOf(v, "attention: v")] as const;
  lent(communicator, own, plan.forward, plan.backward, ([q = [], dout = [], statistics = [], sums = []]) => {
    native.attentionBackwardOfParts(q, dout, statistics, sums, plan.backward.parts, ...keys, dk, dv, given);
  });
  native.querySumsFinish(handleOf(sums, "sums"), dq, scoring);
  return gradients;
}

function nativeOptionsAt(q: Tensor, { meeting }: JointMeeting, options: ShardedAttentionOptions) {
  return [...nativeScoring(q, options), ...ruleAt(meeting, options)] as const;
}

/**
 * Lends this rank's tensors to the ranks of one meeting, and calls `use` with each tensor as all ranks of another have
 * it, its own first: behind what these have queued, and ahead of what they will queue.
 */
function lent(
  communicator: Communicator,
  own: readonly Tensor[],
  { peers: users }: JointMeeting,
  { peers: owners }: JointMeeting,
  use: (all: readonly TensorHandle[][]) => void,
): void {
  const given = users.slice(1).flatMap((peer) => own.map((tensor) => ({ peer, tensor })));
  const taken = owners.slice(1).map((peer) => own.map((x) => ({ peer, tensor: borrowed(x.shape, x) })));
  communicator.lend(given, taken.flat()).wait();
  use(
    own.map((x, i) =>
      [x, ...taken.map((parcels) => parcels[i]?.tensor as Tensor)].map((x) => handleOf(x, "parts")),
    ),
  );
  communicator.lend(taken.flat(), given).wait();
}
