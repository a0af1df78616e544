"""PyTorch's attention, a layer and other operations, one run at a time, for `longseq bench --peer torch`.

Several implementations are ready at once, so that their runs alternate: every request but the first names one.

Reads one JSON request a line on standard input and answers each with one JSON line on standard output:
  {"op": "hello", "threads": N, "device": "cpu" | "cuda:N", "what": "attention" | ..., "dtype", "masked": bool}
      -> {"torch": version, "device": name, "implementations": [...]}
  {"op": "prepare", "implementation", "pass", "dtype", "batch", "heads", "kvHeads", "headDim", "seqLen", "causal",
   "window": N or absent, "deterministic": bool, "mask", "boundaries": of documents or null,
   "maskFile": path of S*S bytes or null}   -> {}
  {"op": "prepare", "implementation", "what", "pass": "forward" | "backward" | "both", "dtype",
   "rows", "width", "headDim", "vocabulary": N or absent}   -> {}
  {"op": "prepare", "implementation", "what": "layer", "pass": "forward" | "backward" | "both", "dtype", "batch",
   "seqLen", "hidden", "heads", "kvHeads", "headDim", "feedForward", "bias": bool, "causal",
   "recompute": "none" | "full"}   -> {}
  {"op": "run", "implementation"} -> {"ms": milliseconds by the host's clock, waiting included}
  {"op": "runMany", "implementation", "count": N} -> {"ms": [by the GPU's clock, each with its inputs out of the cache]}
  {"op": "resetPeak", "implementation"} -> {}     {"op": "peak", "implementation"} -> {"bytes": N or null}
  {"op": "dispose", "implementation"} -> {}
Under `longseq launch` each rank has a peer of its own, and all of them are one layer's ranks. After hello:
  {"op": "listen", "host"} -> {"port": N}, of rank 0, where the others will find it
  {"op": "join", "rank", "size", "host", "port"} -> {}, once all have met
From then on all are asked the same in the same order, and seqLen stays that of the whole sequence.
A request that fails is answered {"error": text}, with "oom": true where memory ran out, "unsupported": true where this
implementation has no kernel for it. Ends with its input.

On a GPU tensors are [B, S, H, D] in memory, as a projection makes them and as ours are, seen as [B, H, S, D].
"""

import datetime
import json
import os
import signal
import sys
import time

import torch
import torch._functorch.config
import torch.distributed as dist
import torch.nn.functional as F
import torch.utils.checkpoint
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "torch-cpu": "FLASH_ATTENTION",
    "torch-flash": "FLASH_ATTENTION",
    "torch-cudnn": "CUDNN_ATTENTION",
    "torch-efficient": "EFFICIENT_ATTENTION",
}

# What is written before each run on a GPU, so that its inputs are not in the cache: as in ours.
COLD_BYTES = 2**28
# From this length on a block mask is made without the dense one.
LONG = 2**15
# For a rank that does not come, or a collective that does not end: far longer than any run.
TIMEOUT = datetime.timedelta(minutes=5)


class Unsupported(Exception):
    """This implementation has no kernel for the problem."""


def rotate(x, cosine, sine):
    """Rotary embedding by halves, in float32, with its angles' cosines and sines made beforehand."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1).to(x.dtype)


def angles(rows, half):
    return torch.outer(torch.arange(rows), 10000 ** (-torch.arange(half) / half)).view(1, rows, 1, half)


def linear_cross_entropy(x, head, tokens):
    return F.cross_entropy(F.linear(x, head), tokens)


def of_rows(size, options):
    return torch.randn(size["rows"], size["width"], **options)


def below(most, size, options):
    return torch.randint(most, (size["rows"],), device=options["device"])


# An operation's inputs, of [rows, width] where INPUTS says nothing else, and what it computes of them.
OPERATIONS = {
    "copy": (["x"], lambda x: x.clone()),
    "cast": (["x"], lambda x: x.to(torch.float32 if x.dtype != torch.float32 else torch.bfloat16)),
    "add": (["x", "y"], lambda x, y: x + y),
    "layerNorm": (["x", "weight", "bias"], lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias)),
    "rmsNorm": (["x", "weight"], lambda x, weight: F.rms_norm(x, weight.shape, weight)),
    "gelu": (["x", "bias"], lambda x, bias: F.gelu(x + bias, approximate="tanh")),
    "swiglu": (["gate", "up"], lambda gate, up: F.silu(gate) * up),
    "softmax": (["x"], lambda x: F.softmax(x, dim=-1)),
    "crossEntropy": (["x", "targets"], lambda x, targets: F.cross_entropy(x, targets)),
    "embedding": (["matrix", "targets"], lambda matrix, targets: F.embedding(targets, matrix)),
    "rotaryEmbedding": (["heads", "cosine", "sine"], rotate),
    "adamW": (["x", "gradient"], None),
    "globalNorm": (["x"], lambda x: torch.linalg.vector_norm(x, dtype=torch.float32)),
    "matmul": (["x", "matrix"], lambda x, matrix: x @ matrix),
    "linear": (["x", "matrix"], lambda x, matrix: F.linear(x, matrix)),
    "linearCrossEntropy": (["x", "head", "tokens"], linear_cross_entropy),
}
INPUTS = {
    "weight": lambda size, options: torch.randn(size["width"], **options),
    "bias": lambda size, options: torch.randn(size["width"], **options),
    "matrix": lambda size, options: torch.randn(size["width"], size["width"], **options),
    "head": lambda size, options: torch.randn(size["vocabulary"], size["width"], **options),
    "targets": lambda size, options: below(size["width"], size, options),
    "tokens": lambda size, options: below(size["vocabulary"], size, options),
    "heads": lambda size, options: of_rows(size, options).view(1, size["rows"], -1, size["headDim"]),
    "cosine": lambda size, options: angles(size["rows"], size["headDim"] // 2).cos().to(options["device"]),
    "sine": lambda size, options: angles(size["rows"], size["headDim"] // 2).sin().to(options["device"]),
}


def resident_bytes(field):
    """A size of /proc/self/status: VmRSS now, VmHWM the most since it was reset. None where there is no /proc."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))
    except (OSError, StopIteration):
        return None


def backend_of(request):
    name = BACKENDS[request["implementation"]]
    backend = getattr(SDPBackend, name, None)
    if backend is None:
        raise Unsupported(f"this PyTorch has no {name}")
    return backend


def flex_attention_call(request, inputs, device):
    """FlexAttention, compiled, with the mask as a rule that it makes blocks of."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    length, window, causal = request["seqLen"], request.get("window"), request["causal"]
    if request["mask"] == "blocks":
        raise Unsupported("FlexAttention has no rule for this mask here")
    document = None
    if request["boundaries"]:
        ends = torch.tensor(request["boundaries"][1:], device=device)
        document = torch.bucketize(torch.arange(length, device=device), ends, right=True)

    def sees(b, h, q, k):
        visible = (q >= k) if causal else (q >= 0)
        if window is not None:
            visible = visible & (q - k <= window) & (k - q <= window)
        if document is not None:
            visible = visible & (document[q] == document[k])
        return visible

    mask = create_block_mask(sees, None, None, length, length, device=device, _compile=length > LONG)
    compiled = torch.compile(flex_attention)
    return lambda: compiled(*inputs, block_mask=mask)


def adamw_step(parameter, gradient):
    """The fused optimiser on a float32 copy, as mixed precision has it."""
    master = parameter.float().clone().requires_grad_()
    master.grad = torch.empty_like(master)
    optimizer = torch.optim.AdamW([master], lr=1e-3, fused=True)

    def step(parameter, gradient):
        master.grad.copy_(gradient)
        optimizer.step()
        with torch.no_grad():
            return parameter.copy_(master)

    return step


def start_gathering(x):
    """The shards of all ranks, and the work that brings them."""
    whole = x.new_empty((dist.get_world_size() * x.shape[0], *x.shape[1:]))
    return whole, dist.all_gather_into_tensor(whole, x.contiguous(), async_op=True)


def start_scattering(x):
    """This rank's shard of the sum of all ranks' terms, and the work that makes it."""
    shard = x.new_empty((x.shape[0] // dist.get_world_size(), *x.shape[1:]))
    return shard, dist.reduce_scatter_tensor(shard, x.contiguous(), async_op=True)


def finished(started):
    result, work = started
    work.wait()
    return result


class GatherThenMultiply(torch.autograd.Function):
    """
    As Megatron-LM has it: only the shard is kept, and gathered again backward beside the product that gives the
    gradient of x, which is scattered beside the one that gives the weight's.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return F.linear(finished(start_gathering(x)), weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gathering = start_gathering(x)
        scattering = start_scattering(gradient @ weight)
        rows = gradient.flatten(0, 1)
        weight_gradient = rows.t() @ finished(gathering).flatten(0, 1)
        bias_gradient = rows.sum(0) if ctx.has_bias else None
        return finished(scattering), weight_gradient, bias_gradient


class ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return finished(start_scattering(x))

    @staticmethod
    def backward(ctx, gradient):
        return finished(start_gathering(gradient))


class ColumnParallelLinear(torch.nn.Linear):
    def forward(self, x):
        return GatherThenMultiply.apply(x, self.weight, self.bias)


class RowParallelLinear(torch.nn.Linear):
    def forward(self, x):
        y = ReduceScatter.apply(F.linear(x, self.weight))
        return y if self.bias is None else y + self.bias


class Layer(torch.nn.Module):
    """GPT's, with the norms before the branches, as one writes it in PyTorch; ours is lib/model/layer.ts."""

    column_linear = row_linear = torch.nn.Linear
    # From [B, S, H, D] to attention's [B, H, S, D], and back.
    to_attention = from_attention = (0, 2, 1, 3)

    def __init__(self, request, backend, ranks=1):
        super().__init__()
        hidden, bias = request["hidden"], request["bias"]
        feed_forward = request["feedForward"] // ranks
        self.dim, self.is_causal, self.backend = request["headDim"], request["causal"], backend
        self.heads = [request[name] // ranks for name in ("heads", "kvHeads", "kvHeads")]
        self.input_norm = torch.nn.LayerNorm(hidden)
        self.qkv = self.column_linear(hidden, sum(self.heads) * self.dim, bias=bias)
        self.proj = self.row_linear(self.heads[0] * self.dim, hidden, bias=bias)
        self.mlp_norm = torch.nn.LayerNorm(hidden)
        self.mlp_up = self.column_linear(hidden, feed_forward, bias=bias)
        self.mlp_down = self.row_linear(feed_forward, hidden, bias=bias)

    def forward(self, x):
        packed = self.qkv(self.input_norm(x))
        packed = packed.view(*packed.shape[:2], sum(self.heads), self.dim)
        q, k, v = (heads.permute(self.to_attention) for heads in packed.split(self.heads, dim=2))
        groups = self.heads[0] // self.heads[1]
        if groups > 1:
            # Not every kernel takes grouped heads.
            k, v = (heads.repeat_interleave(groups, dim=1) for heads in (k, v))
        with sdpa_kernel([self.backend]):
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        x = x + self.proj(attended.permute(self.from_attention).flatten(2))
        return x + self.mlp_down(F.gelu(self.mlp_up(self.mlp_norm(x)), approximate="tanh"))


class ParallelLayer(Layer):
    """
    A rank's part of it, as Megatron-LM divides it (tensor and sequence parallelism): some heads and columns of all
    rows, and between them all columns of some rows. The sequence comes first, [S / ranks, B, h], so that shards lie
    one behind the other. Gradients of the norms and of the biases behind a sum are this rank's terms: Megatron-LM
    sums them once a step, outside its layers.
    """

    column_linear, row_linear = ColumnParallelLinear, RowParallelLinear
    to_attention, from_attention = (1, 2, 0, 3), (2, 0, 1, 3)

    def __init__(self, request, backend, ranks):
        for name in ("seqLen", "heads", "kvHeads", "feedForward"):
            if request[name] % ranks != 0:
                raise Unsupported(f"{name} is {request[name]}, expected a multiple of {ranks} (the ranks)")
        super().__init__(request, backend, ranks)


class Prepared:
    """One implementation of one pass of one problem, with its inputs, on a device."""

    def __init__(self, request, device, ranks):
        self.device, self.ranks = device, ranks
        self.is_cuda = device.type == "cuda"
        self.is_backward = request["pass"] == "backward"
        before = torch.cuda.memory_allocated(device) if self.is_cuda else 0
        # Forward and backward in one run; a loss needs no gradient of its own.
        self.is_whole = request["pass"] == "both"
        self.dout = None
        what = request.get("what")
        if what == "layer":
            self.prepare_layer(request)
        elif what is not None:
            self.prepare_operation(request)
        else:
            self.prepare_attention(request)
        if self.is_backward:
            self.out = self.call()
            # Of its layout in memory too, as the operation behind it would give it.
            self.dout = torch.empty_like(self.out).normal_()
        if self.is_cuda:
            # Here and not at the first run: what is compiled at run time fails in many ways, and takes long.
            self.once()
            torch.cuda.synchronize(device)
            self.held_bytes = torch.cuda.memory_allocated(device) - before

    def prepare_operation(self, request):
        names, function = OPERATIONS[request["what"]]
        dtype = getattr(torch, request["dtype"])
        options = {"dtype": dtype, "device": self.device}
        self.inputs = [INPUTS.get(name, of_rows)(request, options) for name in names]
        for name, x in zip(names, self.inputs):
            is_wanted = x.is_floating_point() and name not in ("cosine", "sine")
            x.requires_grad_(is_wanted and request["pass"] != "forward")
        if request["what"] == "adamW":
            if request["implementation"] == "torch-compiled":
                raise Unsupported("the fused optimiser is one kernel already")
            function = adamw_step(*self.inputs)
        if request["implementation"] == "torch-compiled":
            # For this shape alone, as good as it gets.
            function = torch.compile(function, dynamic=False)
        self.call = lambda: function(*self.inputs)

    def prepare_layer(self, request):
        dtype = getattr(torch, request["dtype"])
        if self.ranks == 1:
            layer, rows = Layer(request, backend_of(request)), (request["batch"], request["seqLen"])
        else:
            layer = ParallelLayer(request, backend_of(request), self.ranks)
            rows = (request["seqLen"] // self.ranks, request["batch"])
        layer = layer.to(self.device, dtype)
        x = torch.randn(*rows, request["hidden"], dtype=dtype, device=self.device)
        self.inputs = [x, *layer.parameters()]
        for tensor in self.inputs:
            tensor.requires_grad_(request["pass"] != "forward")
        if self.is_whole:
            self.dout = torch.randn_like(x)
        if request["recompute"] == "full":
            self.call = lambda: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        else:
            self.call = lambda: layer(x)

    def prepare_attention(self, request):
        batch, length, dim = request["batch"], request["seqLen"], request["headDim"]
        dtype = getattr(torch, request["dtype"])
        # With warnings only, attention's kernels would stay as they are.
        torch.use_deterministic_algorithms(request.get("deterministic", False))
        torch.utils.deterministic.fill_uninitialized_memory = False

        def normal(heads, seed):
            generator = torch.Generator(self.device).manual_seed(seed)
            options = {"dtype": dtype, "device": self.device, "generator": generator}
            if self.is_cuda:
                return torch.randn((batch, length, heads, dim), **options).transpose(1, 2)
            return torch.randn((batch, heads, length, dim), **options)

        heads, groups = request["heads"], request["heads"] // request["kvHeads"]
        q, k, v = (normal(n, seed) for seed, n in enumerate((heads, request["kvHeads"], request["kvHeads"])))
        if groups > 1:
            # Not every kernel takes grouped heads: repeated before the clock starts, which favours PyTorch.
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        self.inputs = [x.detach().requires_grad_(self.is_backward) for x in (q, k, v)]
        if request["implementation"] == "torch-flex":
            self.call = flex_attention_call(request, self.inputs, self.device)
            return
        options = {"is_causal": request["causal"]}
        if request["maskFile"]:
            size = length * length
            flat = torch.from_file(request["maskFile"], shared=False, size=size, dtype=torch.uint8)
            options = {"attn_mask": flat.view(1, 1, length, length).bool().to(self.device)}
        backend = backend_of(request)

        def attend():
            with sdpa_kernel([backend]):
                return F.scaled_dot_product_attention(*self.inputs, **options)

        self.call = attend

    def once(self):
        wrt = [x for x in self.inputs if x.requires_grad]
        if self.is_whole:
            return torch.autograd.grad(self.call(), wrt, self.dout)
        if self.is_backward:
            return torch.autograd.grad(self.out, wrt, self.dout, retain_graph=True)
        with torch.no_grad():
            return self.call()


class Peer:
    store = None
    ranks = 1

    def hello(self, request):
        torch.set_num_threads(request["threads"])
        self.device = torch.device(request["device"])
        self.is_cuda = self.device.type == "cuda"
        if self.is_cuda and self.device.index is None:
            self.device = torch.device("cuda", 0)
        self.prepared = {}
        is_attention = request["what"] in ("attention", "layer")
        # The allocator of the CPU keeps no count: what the process grows by from here on stands for it.
        self.base_bytes = resident_bytes("VmRSS")
        if not self.is_cuda:
            return {"torch": torch.__version__, "device": "cpu", "implementations": ["torch-cpu"]}
        torch.cuda.set_device(self.device)
        self.cold = torch.empty(COLD_BYTES, dtype=torch.uint8, device=self.device)
        # A compiled backward pass is run more than once here: it may not write over what it was given.
        torch._functorch.config.donated_buffer = False
        if not is_attention:
            names = ["torch-eager", "torch-compiled"]
        elif request["masked"]:
            # Neither flash nor cuDNN takes a mask of one's own.
            names = ["torch-flex", "torch-efficient"]
        elif request["dtype"] == "float32":
            names = ["torch-efficient"]
        else:
            names = ["torch-flash", "torch-cudnn"]
        name = torch.cuda.get_device_name(self.device)
        return {"torch": torch.__version__, "device": name, "implementations": names}

    def listen(self, request):
        # wait_for_workers: they hear of the port by this answer.
        self.store = dist.TCPStore(request["host"], 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        return {"port": self.store.port}

    def join(self, request):
        # As ours has it: no NVLink multicast unless it is asked for.
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
        if self.store is None:
            self.store = dist.TCPStore(request["host"], request["port"], is_master=False, timeout=TIMEOUT)
        place = {"rank": request["rank"], "world_size": request["size"]}
        backend = "nccl" if self.is_cuda else "gloo"
        dist.init_process_group(backend, store=self.store, timeout=TIMEOUT, **place)
        self.ranks = request["size"]
        self.token = torch.zeros(1, device=self.device)
        # NCCL connects with the first collective: what fails there is to be heard of here.
        self.align()
        self.synchronize()
        return {}

    def align(self):
        """Holds the GPU until those of all ranks have come here: one that is ahead would count its waiting for them."""
        if self.ranks > 1:
            dist.all_reduce(self.token)

    def prepare(self, request):
        self.dispose(request)
        self.prepared[request["implementation"]] = Prepared(request, self.device, self.ranks)
        return {}

    def run(self, request):
        prepared = self.prepared[request["implementation"]]
        self.align()
        self.synchronize()
        start = time.perf_counter()
        prepared.once()
        self.synchronize()
        return {"ms": 1000 * (time.perf_counter() - start)}

    def runMany(self, request):
        prepared = self.prepared[request["implementation"]]
        pairs = []
        for _ in range(request["count"]):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.cold.zero_()
            self.align()
            start.record()
            prepared.once()
            end.record()
            pairs.append((start, end))
        self.synchronize()
        return {"ms": [start.elapsed_time(end) for start, end in pairs]}

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
            others = (one for name, one in self.prepared.items() if name != request["implementation"])
            not_its_own = COLD_BYTES + sum(one.held_bytes for one in others)
            return {"bytes": torch.cuda.max_memory_allocated(self.device) - not_its_own}
        most = resident_bytes("VmHWM")
        return {"bytes": None if most is None or self.base_bytes is None else most - self.base_bytes}

    def dispose(self, request):
        self.prepared.pop(request["implementation"], None)
        if self.is_cuda:
            torch.cuda.empty_cache()
        return {}

    def synchronize(self):
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


def is_out_of_memory(error):
    # The CPU's allocator raises a plain RuntimeError, and NCCL an error of its own.
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(words in str(error) for words in ("allocate memory", "out of memory"))


def main():
    # Ctrl-C reaches the whole process group; the bench decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print there (NCCL_DEBUG, gloo) is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(peer, request["op"])(request)
        except Exception as error:  # noqa: BLE001 - any failure of PyTorch's is the answer
            answer = {
                "error": f"{type(error).__name__}: {error}",
                "oom": is_out_of_memory(error),
                "unsupported": request["op"] == "prepare" and peer.is_cuda and not is_out_of_memory(error),
            }
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
