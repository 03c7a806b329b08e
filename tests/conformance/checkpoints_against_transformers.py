#!/usr/bin/env python3
"""Weights to and fro between transformers and shardrun: the same loss within 1e-4 in fp32, in both directions.

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors
    venv/bin/python tests/conformance/checkpoints_against_transformers.py [--build build]

For llama, qwen2, mistral and gpt2, with stretched rotary embeddings and windows shorter than the text too: transformers saves a model; shardrun reads it and reports the loss of its first step over a
text, which transformers computes too. Then shardrun trains some steps under FULL_SHARD on four ranks, writes a
checkpoint, converts it to a full one, and transformers reads that: the loss of the next step must be the one with which
shardrun resumes. Exit code 1 on any difference.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
LENGTH, BATCH, RANKS, STEPS = 32, 2, 4, 5
TOLERANCE = 1e-4
TEXT = ROOT / "README.md"

COMMON = dict(vocab_size=256, attention_dropout=0.0)
SMALL = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
CONFIGS = {
    "llama": transformers.LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                                      num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
                                      **COMMON),
    "qwen2": transformers.Qwen2Config(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                                      num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
                                      **COMMON),
    "llama with llama3's rope": transformers.LlamaConfig(
        **SMALL, max_position_embeddings=128, tie_word_embeddings=True, rope_parameters={
            "rope_type": "llama3", "rope_theta": 1000.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16}, **COMMON),
    "qwen2 with yarn": transformers.Qwen2Config(
        **SMALL, max_position_embeddings=16, tie_word_embeddings=True, rope_parameters={
            "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16},
        **COMMON),
    "llama with dynamic rope": transformers.LlamaConfig(
        **SMALL, max_position_embeddings=16, tie_word_embeddings=False,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0}, **COMMON),
    "qwen3": transformers.Qwen3Config(**SMALL, head_dim=20, max_position_embeddings=64, tie_word_embeddings=True,
                                      **COMMON),
    "mistral with a window": transformers.MistralConfig(
        **SMALL, max_position_embeddings=64, sliding_window=7, tie_word_embeddings=False, **COMMON),
    "qwen2 with windows": transformers.Qwen2Config(
        **SMALL, max_position_embeddings=64, use_sliding_window=True, sliding_window=7, max_window_layers=1,
        tie_word_embeddings=True, **COMMON),
    "gpt2": transformers.GPT2Config(vocab_size=256, n_positions=64, n_embd=64, n_layer=3, n_head=4, resid_pdrop=0.0,
                                    embd_pdrop=0.0, attn_pdrop=0.0),
}


def loss_of(model, first_sequence):
    """Mean cross entropy over the sequences of one step, as shardrun numbers them."""
    text = TEXT.read_bytes()
    rows = []
    for index in range(first_sequence, first_sequence + BATCH * RANKS):
        start = index * LENGTH % (len(text) - LENGTH)
        rows.append(list(text[start:start + LENGTH + 1]))
    tokens = torch.tensor(rows)
    with torch.no_grad():
        logits = model(input_ids=tokens[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nexit code {done.returncode}\n{done.stderr}")
    return done.stdout


def losses(build, plan, work, name, *options):
    out = work / f"{name}.json"
    run(build / "bin/shardrun", plan, "--data", TEXT, "-o", out, *options)
    return json.loads(out.read_text())["losses"]


def compare(what, ours, theirs):
    good = abs(ours - theirs) <= TOLERANCE
    print(f"{what:<80} shardrun {ours:.6f}  transformers {theirs:.6f}  {'' if good else 'DIFFERS'}")
    return good


def check(title, config, build, work):
    name = title.replace(" ", "-").replace("'", "")
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder = work / name
    model.save_pretrained(folder)
    scenario = work / f"{name}-scenario.json"
    scenario.write_text(json.dumps({
        "schema": "shardwright-scenario/1", "name": name, "question": "weights to and fro", "model": str(folder),
        "cluster": "host-4-threads",
        "training": {"sequence_length": LENGTH, "micro_batch": BATCH, "implementation": "shardrun",
                     "precision": {"mixed": "no", "load": "fp32"}},
        "strategies": ["fsdp2-full-shard"]}))
    plan = work / f"{name}-plan.json"
    plan.write_text(run(build / "bin/shardplan", "compare", scenario, "--emit-plan", "fsdp2-full-shard"))
    first = losses(build, plan, work, f"{name}-first", "--weights", folder, "--steps", STEPS, "--checkpoint",
                   work / f"{name}-run")
    good = compare(f"{title}: weights of transformers", first[0], loss_of(model, 0))
    run(build / "bin/shardrun", "convert-checkpoint", work / f"{name}-run", work / f"{name}-full", "--to", "full")
    resumed = losses(build, plan, work, f"{name}-resumed", "--resume", work / f"{name}-run", "--steps", "1")
    trained = transformers.AutoModelForCausalLM.from_pretrained(work / f"{name}-full").float().eval()
    return compare(f"{title}: weights of shardrun after {STEPS} steps on {RANKS} ranks", resumed[0],
                   loss_of(trained, STEPS * BATCH * RANKS)) and good


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    arguments = parser.parse_args()
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as work:
        results = [check(title, config, arguments.build, pathlib.Path(work)) for title, config in CONFIGS.items()]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
