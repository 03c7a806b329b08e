#!/usr/bin/env python3
"""Compares the peak of our FSDP2 schedules with what PyTorch's FSDPMemTracker sees in fully_shard itself.

    python3 -m venv venv && venv/bin/pip install torch 'transformers>=4.57'
    venv/bin/python tests/conformance/fsdp_memory_against_torch.py [--tool build/bin/tools/schedule_collectives]

A Llama with wide layers takes two AdamW steps on four tokens, on the CPU, as rank 0 of a fake process group. With so
few tokens parameters, gradients, moments and communication buffers are nearly all there is; activations are modelled
for GPU kernels and stay out of the comparison: total less activations must agree within 1 %. Exit code 1 otherwise.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import torch
import torch.distributed as dist
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

import fsdp_collectives_against_torch as collectives

TOLERANCE = 0.01
WIDE = dict(collectives.LLAMA, hidden_size=256, num_attention_heads=4, num_key_value_heads=4, head_dim=64,
            intermediate_size=768, vocab_size=64, num_hidden_layers=8)
HEADY = dict(WIDE, vocab_size=4096, num_hidden_layers=3)
collectives.MODELS.update(wide=WIDE, heady=HEADY, wide_tied=dict(HEADY, tie_word_embeddings=True))
case = collectives.case

CASES = [
    case("fsdp2 full shard", model="wide"),
    case("fsdp2 full shard fp32", model="wide", mixed="no"),
    case("fsdp2 full shard, 8 ranks", model="wide", gpus=8),
    case("fsdp2 reduce fp32", model="wide", reduce_dtype="fp32"),
    case("fsdp2 large vocabulary", model="heady"),
    case("fsdp2 large vocabulary, root", model="heady", separate_head_unit=False),
    case("fsdp2 large vocabulary, tied", model="wide_tied"),
    case("fsdp2 forward prefetch", model="wide", forward_prefetch=True),
    case("fsdp2 reshard false", model="wide", reshard_after_forward=False),
    case("fsdp2 reshard 2", model="wide", reshard_after_forward=2),
    case("fsdp2 hsdp", model="wide", dp_replicate_size=2, nodes=2, gpus=2),
    case("fsdp2 hsdp reduce fp32", model="wide", dp_replicate_size=2, nodes=2, gpus=2, reduce_dtype="fp32"),
    case("fsdp2 accumulation", model="wide", accumulation=3),
    case("fsdp2 accumulation reduce fp32", model="wide", accumulation=3, reduce_dtype="fp32"),
    case("fsdp2 accumulation synced", model="wide", accumulation=3, no_sync=False),
    case("fsdp2 no shard", model="wide", no_shard=True),
]


def measured(one):
    """Bytes at the peak, by the tracker's categories."""
    dist.init_process_group("fake", rank=0, world_size=one["nodes"] * one["gpus"], store=FakeStore())
    model = collectives.fsdp2(one, collectives.build(collectives.MODELS[one["model"]]))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False, fused=False)
    tracker = FSDPMemTracker(model, optimizer)
    ids = torch.randint(0, 60, (1, 4))
    tracker.track_inputs((ids,))
    with tracker:
        for _ in range(2):
            for micro in range(one["accumulation"]):
                quiet = micro + 1 < one["accumulation"] and one["strategy"].get("no_sync", True)
                model.set_requires_gradient_sync(not quiet)
                model(input_ids=ids, labels=ids).loss.backward()
                tracker.reset_mod_stats()  # statistics by module take one call each; the peak stays
            optimizer.step()
            optimizer.zero_grad()
    snapshot = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    dist.destroy_process_group()
    return {getattr(key, "value", str(key)): value for key, value in snapshot.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tool", default=os.path.join(collectives.ROOT, "build", "bin", "tools",
                                                       "schedule_collectives"))
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("cases", nargs="*", help="only cases whose name contains one of these")
    arguments = parser.parse_args()
    os.environ["SHARDWRIGHT_PEAK"] = "1"
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for one in CASES:
            if arguments.cases and not any(part in one["name"] for part in arguments.cases):
                continue
            theirs = measured(one)
            mine = collectives.ours(arguments.tool, one, folder)[0]
            categories = mine["categories"]
            total = theirs["Total"] - theirs.get("Inputs", 0) - theirs.get("Buffer", 0)
            if one["strategy"].get("reshard_after_forward") != 2:  # shards made in forward are its activations
                total -= theirs.get("Activation", 0)
            estimate = mine["total"] - categories["activations"] - categories["logits"] - categories["temporaries"]
            off = estimate / total - 1
            good = abs(off) <= TOLERANCE
            failures += not good
            print(f"{'same   ' if good else 'differs'}  {one['name']}: torch {total}, ours {estimate} ({off:+.2%})",
                  flush=True)
            if arguments.verbose and not good:
                print("  torch ", theirs)
                print("  ours  ", mine)
    print(f"torch {torch.__version__}: {failures} of the cases differ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
