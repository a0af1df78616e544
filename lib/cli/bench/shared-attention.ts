// Attention over a sequence that ranks share: one rank's part of a pass.
import { Scope, type ShardedAttentionOptions, Tape, Tensor } from "../../index.ts";
import type { Rank } from "../rank-group.ts";
import { attentionOptions, type Pass, type Problem } from "./problem.ts";
import type { RankProgram } from "./ranked-contender.ts";
import type { Settings } from "./settings.ts";

export class SharedAttention implements RankProgram {
  readonly #rank: Rank;
  readonly #pass: Pass;
  readonly #options: ShardedAttentionOptions;
  readonly #inputs: readonly [q: Tensor, k: Tensor, v: Tensor, dout: Tensor];

  constructor(problem: Problem, pass: Pass, implementation: Settings["implementation"], rank: Rank) {
    this.#rank = rank;
    this.#pass = pass;
    // Documents are those of each sequence of the batch, and not packed.
    this.#options = {
      ...attentionOptions({ ...problem, batch: 1 }),
      ...(implementation ? { implementation } : {}),
    };
    this.#inputs = Scope.run(() => inputsOf(problem, rank));
  }

  begin(): () => void {
    const [q, k, v, dout] = this.#inputs;
    const attend = () => this.#rank.strategy.attend(q, k, v, this.#options);
    if (this.#pass === "forward") return () => void attend();
    const tape = new Tape();
    tape.watch(q, k, v);
    const out = attend();
    return () => {
      tape.backward(out, dout, [q, k, v]);
      out.dispose();
    };
  }

  [Symbol.dispose](): void {
    for (const tensor of this.#inputs) tensor.dispose();
    this.#options.mask?.dispose();
  }
}

/** Of the heads and rows that the rank attends with. */
function inputsOf(
  { dtype, batch, heads, kvHeads, headDim }: Problem,
  { strategy, device }: Rank,
): [Tensor, Tensor, Tensor, Tensor] {
  const { query, keyValue } = strategy.heads(heads, kvHeads);
  const normal = ({ begin, end }: typeof query, seed: number) => {
    const shape = [batch, strategy.inner.size, end - begin, headDim];
    return Tensor.normal(shape, { dtype, device, seed: 4 * strategy.shard.rank + seed });
  };
  return [normal(query, 1), normal(keyValue, 2), normal(keyValue, 3), normal(query, 4)];
}
