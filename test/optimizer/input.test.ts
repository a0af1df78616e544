// What the optimiser and the global norm refuse, at the call and before anything is queued.
import { AdamW, type AdamWOptions, clipByGlobalNorm, globalNorm, Tensor } from "longseq";
import t from "tap";
import { refuses } from "../support/refusals.ts";

const parameter = Tensor.zeros([4, 3]);
const gone = Tensor.zeros([4]);
gone.dispose();
const withOptions = (options: object) => () => new AdamW([parameter], options as AdamWOptions);
const optimizer = new AdamW([parameter]);
const step = (gradients: unknown, options?: object) => () =>
  optimizer.step(gradients as Tensor[], options as { learningRate?: number });
const gradients = [Tensor.zeros([4, 3])];

t.test("making an optimiser", async (t) => {
  refuses(t, [
    [
      () => new AdamW(parameter as never),
      "ERR_OPTION",
      "adamW: parameters is object, expected an array of Tensors, or Tensors by name",
    ],
    [() => new AdamW([1] as never), "ERR_OPTION", "adamW: a parameter is number, expected a Tensor"],
    [() => new AdamW([gone]), "ERR_DISPOSED", "adamW: a parameter was disposed"],
    [
      () => new AdamW([Tensor.zeros([4], { dtype: "int32" })]),
      "ERR_DTYPE",
      "adamW: a parameter is int32, expected float32, bfloat16 or float16",
    ],
    [() => new AdamW([parameter.permute(1, 0)]), "ERR_SHAPE", "adamW: a parameter is not contiguous"],
    [
      () => new AdamW([parameter, Tensor.zeros([1]), parameter]),
      "ERR_OPTION",
      "adamW: parameters[2] is parameters[0] again, expected each once",
    ],
    [() => new AdamW([parameter], 1 as never), "ERR_OPTION", "adamW: options is number, expected an object"],
    [
      withOptions({ learningRate: -1 }),
      "ERR_OPTION",
      /learningRate is -1, expected a finite number of 0 or more/,
    ],
    [withOptions({ learningRate: "1" }), "ERR_OPTION", "adamW: learningRate is string, expected a number"],
    [withOptions({ betas: 0.9 }), "ERR_OPTION", "adamW: betas is number, expected [first, second]"],
    [withOptions({ betas: [1, 0.9] }), "ERR_OPTION", /beta1 is 1, expected 0 or more and less than 1/],
    [withOptions({ betas: [0.9, Number.NaN] }), "ERR_OPTION", /beta2 is /],
    [withOptions({ betas: [0.9, null] }), "ERR_OPTION", "adamW: betas[1] is null, expected a number"],
    [withOptions({ epsilon: -1e-8 }), "ERR_OPTION", /epsilon is /],
    [withOptions({ weightDecay: Number.POSITIVE_INFINITY }), "ERR_OPTION", /weightDecay is inf/],
    [withOptions({ steps: 1.5 }), "ERR_OPTION", "adamW: steps is 1.5, expected an integer of 0 or more"],
  ]);
});

t.test("a step", async (t) => {
  refuses(t, [
    [step(1), "ERR_OPTION", "adamW: gradients is number, expected an array of Tensors, or Tensors by name"],
    [
      step({ weight: gradients[0] }),
      "ERR_OPTION",
      "adamW: gradients is object, expected an array of Tensors",
    ],
    [step([]), "ERR_SHAPE", "adamW: there are 0 gradients, expected 1 (one a parameter)"],
    [step([gone]), "ERR_DISPOSED", "adamW: a gradient was disposed"],
    [
      step([Tensor.zeros([12])]),
      "ERR_SHAPE",
      "adamW: a gradient has the shape [12], expected [4, 3] (its parameter's)",
    ],
    [step([Tensor.zeros([3, 4]).permute(1, 0)]), "ERR_SHAPE", "adamW: a gradient is not contiguous"],
    [step([Tensor.zeros([4, 3], { dtype: "uint8" })]), "ERR_DTYPE", /a gradient is uint8, expected float32/],
    [step(gradients, { learningRate: Number.NaN }), "ERR_OPTION", /learningRate is /],
    [
      step(gradients, { gradientScale: 1 }),
      "ERR_OPTION",
      "adamW: gradientScale is number, expected a Tensor",
    ],
    [
      step(gradients, { gradientScale: Tensor.zeros([2]) }),
      "ERR_SHAPE",
      "adamW: gradientScale has the shape [2], expected one element",
    ],
    [
      step(gradients, { gradientScale: Tensor.zeros([], { dtype: "float16" }) }),
      "ERR_DTYPE",
      "adamW: gradientScale is float16, expected float32",
    ],
  ]);
  t.equal(optimizer.steps, 0);
  using byName = new AdamW({ weight: Tensor.zeros([4]), bias: Tensor.zeros([2]) });
  const [weight, bias] = [Tensor.zeros([4]), Tensor.zeros([2])];
  refuses(t, [
    [() => byName.step({ weight }), "ERR_OPTION", 'adamW: gradients has no "bias"'],
    [
      () => byName.step({ weight, bias, gain: bias }),
      "ERR_OPTION",
      'adamW: gradients has "gain", which is no parameter',
    ],
    [
      () => new AdamW({ weight, head: weight }),
      "ERR_OPTION",
      'adamW: parameters["head"] is parameters["weight"] again, expected each once',
    ],
  ]);
});

t.test("norms", async (t) => {
  refuses(t, [
    [
      () => globalNorm(parameter as never),
      "ERR_OPTION",
      "globalNorm: tensors is object, expected an array of Tensors, or Tensors by name",
    ],
    [() => globalNorm([gone]), "ERR_DISPOSED", "globalNorm: a tensor was disposed"],
    [
      () => globalNorm([Tensor.zeros([2], { dtype: "int32" })]),
      "ERR_DTYPE",
      /a tensor is int32, expected float32/,
    ],
    [() => globalNorm([parameter.permute(1, 0)]), "ERR_SHAPE", "globalNorm: a tensor is not contiguous"],
    [
      () => clipByGlobalNorm(gradients, 0),
      "ERR_OPTION",
      "clipByGlobalNorm: maxNorm is 0, expected a number above 0",
    ],
    [() => clipByGlobalNorm(gradients, Number.NaN), "ERR_OPTION", /maxNorm is NaN/],
    [() => clipByGlobalNorm(gradients, "1" as never), "ERR_OPTION", /maxNorm is string, expected a number/],
    [() => clipByGlobalNorm(1 as never, 1), "ERR_OPTION", /tensors is number, expected an array of Tensors/],
  ]);
});
