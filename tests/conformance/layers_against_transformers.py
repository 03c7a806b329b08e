#!/usr/bin/env python3
"""Writes what transformers computes for some tiny models: the fixtures of tests/executor/layers/transformers_test.cpp.

    python3 -m venv venv && venv/bin/pip install torch transformers
    venv/bin/python tests/conformance/layers_against_transformers.py tests/executor/layers/golden

Each fixture holds the config as transformers writes it, tokens and labels, the mean loss, and of every parameter's
gradient its length and a few elements. Weights are not in it: both sides make them from the same formula (weight()).
Everything is computed in double precision by transformers' own modelling code and torch's autograd.
"""
import json
import pathlib
import sys

import torch
import transformers

SMALL = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 10,
         "intermediate_size": 27, "vocab_size": 37, "tie_word_embeddings": False}
# Sequences are 70 tokens: longer than the contexts and windows here.
MODELS = {
    "llama": ("llama", {
        "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "intermediate_size": 27, "vocab_size": 37, "rms_norm_eps": 1e-5, "rope_theta": 500.0,
        "max_position_embeddings": 256, "tie_word_embeddings": False}),
    "qwen2": ("qwen2", {
        "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1,
        "intermediate_size": 30, "vocab_size": 50, "tie_word_embeddings": True}),
    "gpt2": ("gpt2", {
        "n_embd": 21, "n_layer": 2, "n_head": 3, "n_positions": 150, "vocab_size": 67, "attn_pdrop": 0.0,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    "llama3-rope": ("llama", {
        **SMALL, "max_position_embeddings": 256, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32}}),
    "linear-rope": ("llama", {
        **SMALL, "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}}),
    "dynamic-rope": ("llama", {
        **SMALL, "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}}),
    "yarn-rope": ("qwen2", {
        **SMALL, "max_position_embeddings": 32, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 32}}),
    "qwen3": ("qwen3", SMALL),
    "mistral-window": ("mistral", {**SMALL, "sliding_window": 20}),
    "qwen2-window": ("qwen2", {**SMALL, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
}
SEQUENCES, LENGTH = 2, 70
SAMPLES = 5


def weight(name, count, norm):
    """A multiplicative hash of the index, begun by FNV-1a of the name, in [-0.3, 0.3); around 1 for norms' weights."""
    start = 2166136261
    for byte in name.encode():
        start = (start ^ byte) * 16777619 % 2**32
    index = torch.arange(count, dtype=torch.int64)
    return ((index * 2654435761 + start) % 2**32).double() / 2**32 * 0.6 - 0.3 + (1.0 if norm else 0.0)


def fixture(kind, settings):
    config = transformers.AutoConfig.for_model(kind, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = name.endswith("weight") and ("norm" in name or "ln_" in name)
            parameter.copy_(weight(name, parameter.numel(), norm).view_as(parameter))
    place = torch.arange(SEQUENCES * LENGTH)
    tokens = (place * 7919 + 13) % config.vocab_size
    labels = (place * 104729 + 5) % config.vocab_size
    logits = model(input_ids=tokens.view(SEQUENCES, LENGTH), use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.view(SEQUENCES * LENGTH, -1), labels)
    loss.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        flat = parameter.grad.flatten()
        at = [i * (flat.numel() - 1) // (SAMPLES - 1) for i in range(SAMPLES)]
        gradients[name] = {"length": flat.norm().item(), "at": at, "elements": [flat[i].item() for i in at]}
    return {"versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
            "config": json.loads(config.to_json_string(use_diff=False)), "sequences": SEQUENCES, "length": LENGTH,
            "tokens": tokens.tolist(), "labels": labels.tolist(), "loss": loss.item(), "gradients": gradients}


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (kind, settings) in MODELS.items():
        text = json.dumps(fixture(kind, settings), indent=1)
        (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
