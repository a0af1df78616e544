"""PyTorch's attention, one run at a time, for `longseq bench --peer torch`.

Reads one JSON request a line on standard input and answers each with one JSON line on standard output:
  {"op": "hello", "threads": N, "device": "cpu" | "cuda:N", "masked": bool}
      -> {"torch": version, "device": name, "implementations": [...]}
  {"op": "prepare", "implementation", "pass", "dtype", "batch", "heads", "kvHeads", "headDim", "seqLen",
   "causal", "maskFile": path of S*S bytes or null}   -> {}
  {"op": "run"} -> {"ms": milliseconds}     {"op": "resetPeak"} -> {}     {"op": "peak"} -> {"bytes": N or null}
  {"op": "dispose"} -> {}
A request that fails is answered {"error": text}, with "oom": true where memory ran out. Ends with its input.
"""

import json
import signal
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = {
    "torch-cpu": [SDPBackend.FLASH_ATTENTION],
    "torch-flash": [SDPBackend.FLASH_ATTENTION],
    "torch-cudnn": [SDPBackend.CUDNN_ATTENTION],
    "torch-efficient": [SDPBackend.EFFICIENT_ATTENTION],
}


def resident_bytes(field):
    """A size of /proc/self/status: VmRSS now, VmHWM the most since it was reset. None where there is no /proc."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))
    except (OSError, StopIteration):
        return None


class Peer:
    def hello(self, request):
        torch.set_num_threads(request["threads"])
        self.device = torch.device(request["device"])
        self.is_cuda = self.device.type == "cuda"
        # The allocator of the CPU keeps no count: what the process grows by from here on stands for it.
        self.base_bytes = resident_bytes("VmRSS")
        if not self.is_cuda:
            return {"torch": torch.__version__, "device": "cpu", "implementations": ["torch-cpu"]}
        # Neither flash nor cuDNN takes a mask of one's own.
        names = ["torch-efficient"] if request["masked"] else ["torch-flash", "torch-cudnn"]
        name = torch.cuda.get_device_name(self.device)
        return {"torch": torch.__version__, "device": name, "implementations": names}

    def prepare(self, request):
        batch, length, dim = request["batch"], request["seqLen"], request["headDim"]
        dtype = getattr(torch, request["dtype"])

        def normal(heads):
            generator = torch.Generator(self.device).manual_seed(heads)
            shape = (batch, heads, length, dim)
            return torch.randn(shape, dtype=dtype, device=self.device, generator=generator)

        heads, groups = request["heads"], request["heads"] // request["kvHeads"]
        self.is_backward = request["pass"] == "backward"
        q, k, v = (normal(n) for n in (heads, request["kvHeads"], request["kvHeads"]))
        if groups > 1:
            # Not every kernel takes grouped heads: repeated before the clock starts, which favours PyTorch.
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        self.inputs = [x.requires_grad_(self.is_backward) for x in (q, k, v)]
        self.options = {"is_causal": request["causal"]}
        if request["maskFile"]:
            size = length * length
            flat = torch.from_file(request["maskFile"], shared=False, size=size, dtype=torch.uint8)
            self.options = {"attn_mask": flat.view(1, 1, length, length).bool().to(self.device)}
        self.backends = BACKENDS[request["implementation"]]
        if self.is_backward:
            self.dout = normal(heads)
            self.out = self.forward()
        self.synchronize()
        return {}

    def forward(self):
        with sdpa_kernel(self.backends):
            return scaled_dot_product_attention(*self.inputs, **self.options)

    def run(self, request):
        self.synchronize()
        start = time.perf_counter()
        if self.is_backward:
            torch.autograd.grad(self.out, self.inputs, self.dout, retain_graph=True)
        else:
            with torch.no_grad():
                self.forward()
        self.synchronize()
        return {"ms": 1000 * (time.perf_counter() - start)}

    def resetPeak(self, request):
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            try:
                with open("/proc/self/clear_refs", "w") as control:
                    control.write("5")
            except OSError:
                self.base_bytes = None
        return {}

    def peak(self, request):
        if self.is_cuda:
            return {"bytes": torch.cuda.max_memory_allocated(self.device)}
        most = resident_bytes("VmHWM")
        return {"bytes": None if most is None or self.base_bytes is None else most - self.base_bytes}

    def dispose(self, request):
        self.inputs = self.options = self.out = self.dout = None
        if self.is_cuda:
            torch.cuda.empty_cache()
        return {}

    def synchronize(self):
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


def is_out_of_memory(error):
    # The CPU's allocator raises a plain RuntimeError.
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "allocate memory" in str(error)


def main():
    # Ctrl-C reaches the whole process group; the bench decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(peer, request["op"])(request)
        except Exception as error:  # noqa: BLE001 - any failure of PyTorch's is the answer
            answer = {"error": f"{type(error).__name__}: {error}", "oom": is_out_of_memory(error)}
        print(json.dumps(answer), flush=True)


main()
