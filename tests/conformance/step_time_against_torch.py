#!/usr/bin/env python3
"""One training step, timed beside PyTorch on the same processor: the same model, batch and optimizer.

    python3 -m venv venv && venv/bin/pip install torch transformers
    venv/bin/python tests/conformance/step_time_against_torch.py [--build build] [--threads 2] [--dtype fp32|bf16]

A llama of ten million parameters (hidden 384, 6 layers, MLP 1024, 256 tokens, 4 sequences). transformers' own modelling
code in eager mode with scaled_dot_product_attention and fused AdamW; shardrun as one rank with as many threads, and as
as many ranks of one thread. Both clip gradients to a norm of 1. Prints the median second of each; nothing is judged.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = {"model_type": "llama", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6,
         "num_key_value_heads": 6, "intermediate_size": 1024, "vocab_size": 256, "max_position_embeddings": 256,
         "tie_word_embeddings": False}
LENGTH, SEQUENCES = 256, 4


def of_torch(dtype, threads, steps):
    torch.set_num_threads(threads)
    config = transformers.AutoConfig.for_model(**MODEL)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(0, MODEL["vocab_size"], (SEQUENCES, LENGTH + 1))
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def of_shardrun(build, work, dtype, ranks, threads, strategy, steps):
    scenario = work / f"{ranks}.json"
    scenario.write_text(json.dumps({
        "schema": "shardwright-scenario/1", "name": "step-time", "question": "beside torch", "model": MODEL,
        "cluster": "host-4-threads",
        "training": {"sequence_length": LENGTH, "micro_batch": SEQUENCES // ranks, "implementation": "shardrun",
                     "precision": {"mixed": "no", "load": dtype}},
        "strategies": [strategy]}))
    plan = work / f"{ranks}-plan.json"
    plan.write_text(subprocess.run(
        [build / "bin/shardplan", "compare", scenario, "--emit-plan", strategy, "--gpus-per-node", str(ranks),
         "--nodes", "1"], check=True, capture_output=True, text=True).stdout)
    out = work / "measured.json"
    subprocess.run([build / "bin/shardrun", plan, "--steps", str(steps), "--threads", str(threads), "-o", out,
                    "--force"], check=True, capture_output=True)
    return json.loads(out.read_text())["seconds_per_step"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, default=20)
    a = parser.parse_args()
    theirs = of_torch({"fp32": torch.float32, "bf16": torch.bfloat16}[a.dtype], a.threads, a.steps)
    print(f"torch {torch.__version__}, {a.threads} threads, {a.dtype}: {1e3 * theirs:.1f} ms a step")
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        for ranks, threads, strategy in [(1, a.threads, "ddp"), (a.threads, 1, "ddp"),
                                         (a.threads, 1, "fsdp2-full-shard")]:
            ours = of_shardrun(a.build, work, a.dtype, ranks, threads, strategy, a.steps)
            print(f"shardrun, {ranks} rank(s) of {threads} thread(s), {strategy}, {a.dtype}: {1e3 * ours:.1f} ms, "
                  f"{theirs / ours:.2f} x as fast")


if __name__ == "__main__":
    main()
