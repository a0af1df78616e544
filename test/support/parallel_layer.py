"""Whether the peer's parallel layer is its serial one, values and gradients: on two GPUs over NCCL, or for torch-cpu in
two processes over gloo. usage: parallel_layer.py torch-cpu|torch-efficient|torch-cudnn|torch-flash, of which the first
two compute in float32. Prints the largest differences, relative to the largest value, as JSON."""

import json
import pathlib
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "bench"))
import peer_torch  # noqa: E402

RANKS = 2
PROBLEM = {
    **{"what": "layer", "pass": "both", "batch": 2, "seqLen": 256, "hidden": 128, "heads": 4, "kvHeads": 2},
    **{"headDim": 32, "feedForward": 256, "bias": True, "causal": True},
}


def portions(serial, rank):
    """A rank's part of each of the serial layer's parameters."""

    def part(x, dim):
        return x.chunk(RANKS, dim)[rank]

    heads = [count * PROBLEM["headDim"] for count in serial.heads]
    parameters = dict(serial.named_parameters())
    columns = {name: part(x, 0) for name, x in parameters.items() if name.startswith("mlp_up")}
    packed = {
        name: torch.cat([part(x, 0) for x in parameters[name].split(heads)])
        for name in ("qkv.weight", "qkv.bias")
    }
    rows = {name: part(parameters[name], 1) for name in ("proj.weight", "mlp_down.weight")}
    return {**parameters, **columns, **packed, **rows}


def compare(rank, implementation, port, results):
    device = torch.device("cpu") if implementation == "torch-cpu" else torch.device("cuda", rank)
    dtype = "float32" if implementation in ("torch-cpu", "torch-efficient") else "bfloat16"
    peer = peer_torch.Peer()
    peer.hello({"threads": 1, "device": str(device), "what": "layer", "dtype": dtype, "masked": False})
    peer.join({"rank": rank, "size": RANKS, "host": "127.0.0.1", "port": port})
    torch.manual_seed(1)
    backend = peer_torch.backend_of({"implementation": implementation})
    options = {"dtype": getattr(torch, dtype), "device": device}
    serial = peer_torch.Layer(PROBLEM, backend).to(**options)
    for name, x in serial.named_parameters():
        torch.nn.init.normal_(x, std=0.1)
    parallel = peer_torch.ParallelLayer(PROBLEM, backend, RANKS).to(**options)
    with torch.no_grad():
        for name, x in parallel.named_parameters():
            x.copy_(portions(serial, rank)[name])
    x, dy = (torch.randn(PROBLEM["batch"], PROBLEM["seqLen"], PROBLEM["hidden"], **options) for _ in range(2))

    def run(layer, x, dy, recompute=False):
        x = x.clone().requires_grad_()
        y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        names, parameters = zip(*layer.named_parameters())
        dx, *gradients = torch.autograd.grad(y, [x, *parameters], dy)
        return {"y": y.detach(), "dx": dx, **dict(zip(names, gradients))}

    def shard(x):
        return x.transpose(0, 1).chunk(RANKS)[rank].contiguous()

    whole = run(serial, x, dy)
    with torch.no_grad():
        for name, parameter in serial.named_parameters():
            parameter.copy_(whole[name])
    expected = {**portions(serial, rank), "y": shard(whole["y"]), "dx": shard(whole["dx"])}
    for recompute in (False, True):
        for name, found in run(parallel, shard(x), shard(dy), recompute).items():
            # This rank's terms, of parameters that all ranks have.
            if name.endswith(("norm.weight", "norm.bias", "proj.bias", "mlp_down.bias")):
                dist.all_reduce(found)
            difference = (found - expected[name]).abs().max() / expected[name].abs().max()
            results[f"{name}{' recomputed' if recompute else ''}, rank {rank}"] = difference.item()
    dist.destroy_process_group()


if __name__ == "__main__":
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        listener = peer_torch.Peer()
        port = listener.listen({"host": "127.0.0.1"})["port"]
        multiprocessing.spawn(compare, (sys.argv[1], port, results), RANKS)
        print(json.dumps(dict(results)))
