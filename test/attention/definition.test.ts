// Random shapes and mixes of all options against the plain definition, both directions, by the device's own and by `reference`.
import fc from "fast-check";
import { Scope } from "longseq";
import t from "tap";
import { bounds, distance, norm, unitRoundoff } from "../support/compare.ts";
import { attend } from "../support/definition.ts";
import { implementations } from "../support/devices.ts";
import { describe, inputsOf, type Problem, problems, solve, tensorsOf } from "../support/problems.ts";

/**
 * Beside the relative bound some roundings of the terms are granted: a gradient may be a small difference of large ones.
 */
const roundings = 4;

async function check(problem: Problem): Promise<void> {
  const tensors = tensorsOf(problem);
  const expected = attend(problem.shape, problem.rule, await inputsOf(tensors));
  for (const implementation of implementations) {
    const results = solve({ ...tensors, options: { ...tensors.options, implementation } });
    for (const name of ["out", "logSumExp", "dq", "dk", "dv"] as const) {
      const { values, sizes } = expected[name];
      const bound = bounds[problem.dtype][name.startsWith("d") ? "gradient" : "result"];
      const allowed =
        bound * norm(values.filter(Number.isFinite)) + roundings * unitRoundoff[problem.dtype] * norm(sizes);
      const error = distance(await results[name].data(), values);
      if (!(error <= allowed)) {
        throw new Error(
          `${implementation}: ${name} is off by ${error}, allowed ${allowed}: ${describe(problem)}`,
        );
      }
    }
  }
}

t.test("any problem", async (t) => {
  const property = fc.asyncProperty(problems, (problem) => Scope.run(() => check(problem)));
  await t.resolves(fc.assert(property, { numRuns: Number(process.env.RUNS ?? 100) }));
});
