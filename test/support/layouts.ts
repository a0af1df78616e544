// The same values at other places in memory: what attention must not notice.
import { Tensor } from "longseq";

async function filled(view: Tensor, like: Tensor): Promise<Tensor> {
  const bits = await like.bits();
  view.write(bits instanceof Uint32Array ? new Float32Array(bits.buffer) : bits);
  return view;
}

/** As a model keeps heads: [B, H, S, D] in memory, seen as [B, S, H, D]. */
export function headsFirst(tensor: Tensor): Promise<Tensor> {
  const [B = 0, S = 0, H = 0, D = 0] = tensor.shape;
  const { dtype } = tensor;
  return filled(Tensor.empty([B, H, S, D], { dtype }).permute(0, 2, 1, 3), tensor);
}

/** Within a larger tensor, with something before and behind on every axis. */
export function inside(tensor: Tensor): Promise<Tensor> {
  const larger = Tensor.empty(
    tensor.shape.map((size) => size + 4),
    { dtype: tensor.dtype },
  );
  const view = tensor.shape.reduce((part, size, axis) => part.slice(axis, 3, 3 + size), larger);
  return filled(view, tensor);
}

/** Slices of one tensor [B, S, Hq + 2 Hkv, D], as one projection makes them. */
export async function packed(tensors: readonly Tensor[]): Promise<Tensor[]> {
  const heads = tensors.map((tensor) => tensor.shape[2] ?? 0);
  const [B = 0, S = 0, , D = 0] = tensors[0]?.shape ?? [];
  const together = Tensor.empty([B, S, heads.reduce((a, b) => a + b, 0), D], {
    dtype: tensors[0]?.dtype ?? "float32",
  });
  let end = 0;
  const views = heads.map((count) => {
    end += count;
    return together.slice(2, end - count, end);
  });
  return Promise.all(views.map((view, i) => filled(view, tensors[i] as Tensor)));
}
