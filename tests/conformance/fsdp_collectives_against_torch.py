#!/usr/bin/env python3
"""Compares the collectives of our FSDP1, FSDP2 and DDP schedules with those that PyTorch itself issues.

    python3 -m venv venv && venv/bin/pip install torch 'transformers>=4.57' peft
    venv/bin/python tests/conformance/fsdp_collectives_against_torch.py [--tool build/bin/tools/schedule_collectives]

A tiny model of transformers is trained for one optimizer step over gloo on the CPU, four processes; rank 0 records
every all-gather, reduce-scatter and all-reduce of gradients: kind, elements of the whole tensor, dtype, group size, in
the order in which the host issues them. The first step is left out, for lazily built orders (FSDP1's forward prefetch,
the reducer's buckets) exist from the second on. Collectives of setup and of the loss are not recorded. FSDP2's units are those of
Accelerate 1.15 (fsdp2_prepare_model). FSDP1 lays a unit's tensors out in the order of registration, we in that of the
forward pass; only the last one is not padded to 16 bytes, so that a flat parameter may differ by less than that: such a
case is called near. Exit code 1 on any other difference.
"""
import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

LLAMA = dict(model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=20, num_hidden_layers=4,
             num_attention_heads=2, num_key_value_heads=1, head_dim=10, intermediate_size=33, vocab_size=101,
             max_position_embeddings=64, tie_word_embeddings=False)
TIED = dict(LLAMA, tie_word_embeddings=True, num_hidden_layers=3)
MODELS = {"llama": LLAMA, "tied": TIED}


class Recorder:
    """Wraps the functions of torch.distributed that FSDP calls."""

    def __init__(self):
        self.rows = []
        self.active = False
        self.originals = []

    def add(self, op, whole, group):
        if self.active:
            parts = whole if isinstance(whole, list) else [whole]
            self.rows.append(dict(op=op, elements=sum(part.numel() for part in parts), dtype=NAMES[parts[0].dtype],
                                  ranks=dist.get_world_size(group)))

    def wrap(self, name, op, whole):
        original = getattr(dist, name, None)
        if original is None:
            return

        @functools.wraps(original)
        def wrapper(*args, **kwargs):
            self.add(op, whole(args, kwargs), kwargs.get("group"))
            was, self.active = self.active, False  # the newer names call the older ones or the other way round
            try:
                return original(*args, **kwargs)
            finally:
                self.active = was

        self.originals.append((name, original))
        setattr(dist, name, wrapper)

    def uninstall(self):
        for name, original in self.originals:
            setattr(dist, name, original)

    def install(self):
        output = lambda args, kwargs: next((kwargs[key] for key in ("output_tensor", "output", "tensor_list")
                                            if key in kwargs), args[0] if args else None)
        source = lambda args, kwargs: kwargs.get("input_tensor", kwargs.get("input", args[1] if len(args) > 1 else None))
        first = lambda args, kwargs: kwargs.get("tensor", args[0] if args else None)
        for name in ("all_gather_single", "all_gather_into_tensor"):
            self.wrap(name, "all-gather", output)
        for name in ("reduce_scatter_single", "reduce_scatter_tensor"):
            self.wrap(name, "reduce-scatter", source)
        self.wrap("all_gather", "all-gather", output)  # FSDP1 on the CPU gathers into a list of views
        self.wrap("all_reduce", "all-reduce", first)


def build(config):
    from transformers import AutoModelForCausalLM, CONFIG_MAPPING
    fields = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[config["model_type"]](**fields),
                                             attn_implementation="eager")
    model.config.use_cache = False
    model.train()
    return model


def adapted(case, model):
    """The model with adapters: they are put in place of its linear layers, the model itself stays the root."""
    if case.get("lora"):
        from peft import LoraConfig, inject_adapter_in_model
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = inject_adapter_in_model(LoraConfig(r=case["lora"], target_modules=targets, init_lora_weights=False),
                                        model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    return model


def fsdp1(case, model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (BackwardPrefetch, FullyShardedDataParallel, MixedPrecision, ShardingStrategy)
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy, size_based_auto_wrap_policy
    options = case["strategy"]
    strategy = getattr(ShardingStrategy, options.get("sharding_strategy", "FULL_SHARD").replace(
        "HYBRID_SHARD_ZERO2", "_HYBRID_SHARD_ZERO2"))
    mesh = None
    if "HYBRID" in strategy.name:
        mesh = init_device_mesh("cpu", (case["nodes"], case["gpus"]), mesh_dim_names=("replicate", "shard"))
    prefetch = {"BACKWARD_PRE": BackwardPrefetch.BACKWARD_PRE, "BACKWARD_POST": BackwardPrefetch.BACKWARD_POST,
                "NO_PREFETCH": None}[options.get("backward_prefetch", "BACKWARD_PRE")]
    policy = options.get("auto_wrap_policy", "TRANSFORMER_BASED_WRAP")
    wrap = None
    if policy == "TRANSFORMER_BASED_WRAP":
        wrap = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={type(model.model.layers[0])})
    elif policy == "SIZE_BASED_WRAP":
        wrap = functools.partial(size_based_auto_wrap_policy, min_num_params=options["min_num_params"])
    precision = None
    if case["mixed"] != "no":
        dtype = {"bf16": torch.bfloat16}[case["mixed"]]
        reduce = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.get("reduce_dtype", case["mixed"])]
        precision = MixedPrecision(param_dtype=dtype, reduce_dtype=reduce, buffer_dtype=dtype)
    return FullyShardedDataParallel(
        model, sharding_strategy=strategy, auto_wrap_policy=wrap, backward_prefetch=prefetch, mixed_precision=precision,
        forward_prefetch=options.get("forward_prefetch", False), use_orig_params=options.get("use_orig_params", True),
        limit_all_gathers=options.get("limit_all_gathers", True), device_mesh=mesh, device_id=torch.device("cpu"))


def fsdp2(case, model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    options = case["strategy"]
    world = case["nodes"] * case["gpus"]
    replicate = options.get("dp_replicate_size", 1)
    if options.get("no_shard"):
        replicate = world
    if replicate > 1:
        mesh = init_device_mesh("cpu", (replicate, world // replicate), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh("cpu", (world,))
    kwargs = dict(mesh=mesh, reshard_after_forward=options.get("reshard_after_forward", True))
    if case["mixed"] != "no":
        reduce = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.get("reduce_dtype", case["mixed"])]
        kwargs["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=reduce)
    for block in model.model.layers:
        fully_shard(block, **kwargs)
    tied = model.model.embed_tokens.weight is model.lm_head.weight
    if options.get("separate_head_unit", True):
        tail = [model.model.norm, model.model.embed_tokens, model.lm_head] if tied else [model.model.norm,
                                                                                         model.lm_head]
        if not tied:
            fully_shard(model.model.embed_tokens, **kwargs)
        fully_shard(tail, **{**kwargs, "reshard_after_forward": False})
    kwargs.pop("reshard_after_forward")
    fully_shard(model, **kwargs)
    if options.get("forward_prefetch"):
        order = ([model.model.embed_tokens] if not tied else []) + list(model.model.layers)
        for unit, following in zip(order, order[1:] + [model.lm_head]):
            unit.set_modules_to_forward_prefetch([following])
    return model


def ddp(case, model):
    from torch.nn.parallel import DistributedDataParallel
    model = DistributedDataParallel(model, bucket_cap_mb=case["strategy"].get("bucket_cap_mb", 25))
    return model


def watch_buckets(recorder, model):
    """The reducer calls its collectives from C++: a hook that does what the default does, and writes it down."""

    def hook(state, bucket):
        recorder.add("all-reduce", bucket.buffer(), None)
        was, recorder.active = recorder.active, False
        future = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True).get_future()
        recorder.active = was
        return future.then(lambda done: done.value()[0])

    model.register_comm_hook(None, hook)


def no_sync(case, model):
    if case["strategy"]["framework"] != "fsdp2":
        return model.no_sync()

    @contextlib.contextmanager
    def context():
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    return context()


def record(case):
    """The collectives of the second of two optimizer steps."""
    recorder = Recorder()
    recorder.install()
    try:
        model = adapted(case, build(MODELS[case["model"]]))
        framework = case["strategy"]["framework"]
        model = {"fsdp1": fsdp1, "fsdp2": fsdp2, "ddp": ddp}[framework](case, model)
        if framework == "ddp":
            watch_buckets(recorder, model)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for step in range(2):
            recorder.active = step == 1
            for micro in range(case["accumulation"]):
                last = micro + 1 == case["accumulation"]
                ids = torch.randint(0, 100, (1, 8))
                quiet = not last and case["strategy"].get("no_sync", True)
                with no_sync(case, model) if quiet else contextlib.nullcontext():
                    model(input_ids=ids, labels=ids).loss.backward()
            recorder.active = False
            optimizer.step()
            optimizer.zero_grad()
    finally:
        recorder.uninstall()
    return recorder.rows


def worker(rank, cases, world, port, path):
    """Runs all cases of one world size; rank 0 writes a line for each."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    for one in cases:
        try:
            answer = dict(rows=record(one))
        except Exception as error:  # the same on every rank: the next case can run
            answer = dict(error=f"{type(error).__name__}: {error}")
        if rank == 0:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(answer) + "\n")
        dist.barrier()
    dist.destroy_process_group()


def case(name, model="llama", nodes=1, gpus=4, accumulation=1, mixed="bf16", **strategy):
    extra = {key: strategy.pop(key) for key in ("lora",) if key in strategy}
    framework = name.split()[0]
    return dict(name=name, model=model, nodes=nodes, gpus=gpus, accumulation=accumulation, mixed=mixed,
                strategy=dict(name=name, framework=framework, **strategy), **extra)


CASES = [
    case("fsdp1 full shard"),
    case("fsdp1 full shard fp32", mixed="no"),
    case("fsdp1 full shard, 3 ranks", gpus=3),
    case("fsdp1 full shard, 3 ranks, flat", gpus=3, use_orig_params=False),
    case("fsdp1 full shard post", backward_prefetch="BACKWARD_POST"),
    case("fsdp1 full shard no prefetch", backward_prefetch="NO_PREFETCH"),
    case("fsdp1 full shard forward prefetch", forward_prefetch=True),
    case("fsdp1 full shard no limit", limit_all_gathers=False),
    case("fsdp1 full shard accumulation", accumulation=3),
    case("fsdp1 full shard accumulation synced", accumulation=3, no_sync=False),
    case("fsdp1 reduce fp32", reduce_dtype="fp32"),
    case("fsdp1 shard grad op", sharding_strategy="SHARD_GRAD_OP"),
    case("fsdp1 shard grad op accumulation", sharding_strategy="SHARD_GRAD_OP", accumulation=3),
    case("fsdp1 shard grad op accumulation synced", sharding_strategy="SHARD_GRAD_OP", accumulation=2, no_sync=False),
    case("fsdp1 no shard", sharding_strategy="NO_SHARD"),
    case("fsdp1 no shard fp32 3 ranks", sharding_strategy="NO_SHARD", mixed="no", gpus=3),
    case("fsdp1 no shard accumulation", sharding_strategy="NO_SHARD", accumulation=3),
    case("fsdp1 hybrid", sharding_strategy="HYBRID_SHARD", nodes=2, gpus=2),
    case("fsdp1 hybrid accumulation", sharding_strategy="HYBRID_SHARD", nodes=2, gpus=2, accumulation=2),
    case("fsdp1 hybrid zero2", sharding_strategy="HYBRID_SHARD_ZERO2", nodes=2, gpus=2),
    case("fsdp1 hybrid zero2 accumulation", sharding_strategy="HYBRID_SHARD_ZERO2", nodes=2, gpus=2, accumulation=3),
    case("fsdp1 tied", model="tied"),
    case("fsdp1 no wrap", auto_wrap_policy="NO_WRAP"),
    case("fsdp1 adapters", lora=4),
    case("fsdp2 full shard"),
    case("fsdp2 full shard fp32", mixed="no"),
    case("fsdp2 full shard, 3 ranks", gpus=3),
    case("fsdp2 full shard, root", separate_head_unit=False),
    case("fsdp2 full shard tied", model="tied"),
    case("fsdp2 full shard tied, root", model="tied", separate_head_unit=False),
    case("fsdp2 reduce fp32", reduce_dtype="fp32"),
    case("fsdp2 forward prefetch", forward_prefetch=True),
    case("fsdp2 accumulation", accumulation=3),
    case("fsdp2 accumulation synced", accumulation=3, no_sync=False),
    case("fsdp2 reshard false", reshard_after_forward=False),
    case("fsdp2 reshard false accumulation", reshard_after_forward=False, accumulation=3),
    case("fsdp2 reshard 2", reshard_after_forward=2),
    case("fsdp2 reshard 1", reshard_after_forward=1),
    case("fsdp2 reshard 4", reshard_after_forward=4),
    case("fsdp2 hsdp", dp_replicate_size=2, nodes=2, gpus=2),
    case("fsdp2 hsdp accumulation", dp_replicate_size=2, nodes=2, gpus=2, accumulation=2),
    case("fsdp2 no shard", no_shard=True),
    case("fsdp2 adapters", lora=4),
    case("ddp", mixed="no"),
    case("ddp small buckets", mixed="no", bucket_cap_mb=0.02),
    case("ddp accumulation", mixed="no", accumulation=3, bucket_cap_mb=0.02),
    case("ddp tied small buckets", model="tied", mixed="no", bucket_cap_mb=0.01),
]


def ours(tool, one, folder):
    config = os.path.join(folder, one["model"] + ".json")
    with open(config, "w", encoding="utf-8") as file:
        json.dump(MODELS[one["model"]], file)
    strategy = dict(one["strategy"])
    command = [tool, config, str(one["nodes"]), str(one["gpus"]), str(one["accumulation"]), json.dumps(strategy),
               "fp32", one["mixed"]]
    if one.get("lora"):
        command.append(str(one["lora"]))
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return [json.loads(line) for line in done.stdout.splitlines()]


ALIGNMENT = 16  # bytes, of a flat parameter's tensors
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def near(theirs, mine):
    """Same operations in the same order, sizes apart by less than one alignment."""
    return len(theirs) == len(mine) and all(
        left | {"elements": 0} == right | {"elements": 0}
        and abs(left["elements"] - right["elements"]) * BYTES[left["dtype"]] < ALIGNMENT
        for left, right in zip(theirs, mine))


def difference(theirs, mine):
    for index, (left, right) in enumerate(zip(theirs, mine)):
        if left != right:
            return f"operation {index}: torch {left}, ours {right}"
    if len(theirs) != len(mine):
        return f"torch issues {len(theirs)} collectives, ours {len(mine)}"
    return None


def show(rows):
    return " ".join(f"{row['op']}:{row['elements']}:{row['dtype']}/{row['ranks']}" for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tool", default=os.path.join(ROOT, "build", "bin", "tools", "schedule_collectives"))
    parser.add_argument("--verbose", action="store_true", help="print both sequences of cases that differ")
    parser.add_argument("cases", nargs="*", help="only cases whose name contains one of these")
    arguments = parser.parse_args()
    chosen = [one for one in CASES if not arguments.cases or any(part in one["name"] for part in arguments.cases)]
    failures = 0
    port = 29500 + os.getpid() % 2000
    with tempfile.TemporaryDirectory() as folder:
        for world in sorted({one["nodes"] * one["gpus"] for one in chosen}):
            cases = [one for one in chosen if one["nodes"] * one["gpus"] == world]
            path = os.path.join(folder, f"rows{world}")
            mp.spawn(worker, args=(cases, world, port + world, path), nprocs=world)
            with open(path, encoding="utf-8") as file:
                answers = [json.loads(line) for line in file]
            for one, answer in zip(cases, answers):
                theirs = answer.get("rows", [])
                mine = ours(arguments.tool, one, folder)
                found = answer.get("error") or difference(theirs, mine)
                if found and one["strategy"]["framework"] == "fsdp1" and near(theirs, mine):
                    print(f"near     {one['name']}: {len(theirs)} collectives, sizes within {ALIGNMENT} bytes")
                    continue
                print(f"{'differs' if found else 'same   '}  {one['name']}: {found or f'{len(theirs)} collectives'}")
                if found:
                    failures += 1
                if found and arguments.verbose:
                    print("  torch ", show(theirs))
                    print("  ours  ", show(mine))
    print(f"torch {torch.__version__}: {failures} of the cases differ" if failures else
          f"torch {torch.__version__}: all the same")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
