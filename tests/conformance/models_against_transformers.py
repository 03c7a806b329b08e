#!/usr/bin/env python3
"""Compares every parameter of every shipped model (name and shape) with what transformers builds from the same config.

    python3 -m venv venv && venv/bin/pip install torch 'transformers==4.57.*' peft
    venv/bin/python tests/conformance/models_against_transformers.py [--tool build/bin/tools/list_parameters] [ID ...]

Also the class of every block (what wrap policies name), small variants that switch the optional fields of each type,
and adapters against peft. Models are built on torch's meta device, so no memory is needed. transformers 4 is asked for
because transformers 5 fuses the experts of a mixture into one tensor when it loads; checkpoints hold them one by one,
as Shardwright counts. "generic-decoder" is no Hugging Face type; llm-foundry's MPT (biases, learned positions) is not
what transformers builds from the same fields. Both are left out and named at the end. Exit code 1 on any difference.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

SMALL = dict(hidden_size=64, num_hidden_layers=4, num_attention_heads=8, intermediate_size=96, vocab_size=128)
EXPERTS = dict(SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
GPT = dict(n_embd=64, n_layer=2, n_head=8, vocab_size=128)
OPT = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=8, ffn_dim=96, vocab_size=128,
           max_position_embeddings=32)
FALCON = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=8, vocab_size=128)
LATENT = dict(SMALL, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=12, n_routed_experts=8,
              num_experts_per_tok=2, moe_intermediate_size=16)

# The optional fields of each type, switched away from what the shipped models have; absent ones take class defaults.
VARIANTS = [
    ("llama", dict(SMALL, attention_bias=True, mlp_bias=True)),
    ("llama", dict(SMALL, num_key_value_heads=None, head_dim=None, tie_word_embeddings=True)),
    ("llama", dict(SMALL, num_key_value_heads=2, head_dim=24)),
    ("mistral", dict(SMALL)),
    ("mistral", dict(SMALL, num_attention_heads=16, num_key_value_heads=None)),
    ("mistral", dict(SMALL, num_attention_heads=16)),
    ("mistral", dict(SMALL, head_dim=32)),
    ("mixtral", dict(SMALL, num_local_experts=3, num_experts_per_tok=2, tie_word_embeddings=True)),
    ("qwen2", dict(SMALL, num_key_value_heads=4)),
    ("qwen3", dict(SMALL, num_attention_heads=32)),
    ("qwen3", dict(SMALL, num_key_value_heads=2, attention_bias=True, head_dim=16)),
    ("qwen2_moe", dict(EXPERTS, num_key_value_heads=8, shared_expert_intermediate_size=48, decoder_sparse_step=2)),
    ("qwen2_moe", dict(EXPERTS, num_key_value_heads=8, shared_expert_intermediate_size=48, qkv_bias=False)),
    ("qwen3_moe", dict(EXPERTS, mlp_only_layers=[0, 2], attention_bias=True)),
    ("qwen3_moe", dict(EXPERTS, mlp_only_layers=[0, 1, 2, 3])),
    ("gemma", dict(SMALL, num_attention_heads=16, attention_bias=True)),
    ("gemma", dict(SMALL, num_key_value_heads=1, tie_word_embeddings=False)),
    ("gemma2", dict(SMALL, attention_bias=True)),
    ("phi", dict(SMALL, qk_layernorm=True, num_key_value_heads=2)),
    ("phi", dict(SMALL, tie_word_embeddings=True)),
    ("phi3", dict(SMALL, num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0)),
    ("gpt2", dict(GPT, n_positions=32, n_inner=100, tie_word_embeddings=False)),
    ("gpt2", dict(GPT, n_positions=32, n_inner=None)),
    ("gpt_neox", dict(SMALL, attention_bias=False, tie_word_embeddings=True)),
    ("gpt_neox", dict(SMALL, use_parallel_residual=False)),
    ("gptj", dict(GPT, n_inner=100, rotary_dim=4)),
    ("gptj", dict(GPT, tie_word_embeddings=True, rotary_dim=4)),
    ("opt", dict(OPT, enable_bias=False)),
    ("opt", dict(OPT, _remove_final_layer_norm=True, tie_word_embeddings=False)),
    ("opt", dict(OPT, word_embed_proj_dim=48)),
    ("falcon", dict(FALCON, parallel_attn=False, bias=True)),
    ("falcon", dict(FALCON, multi_query=False)),
    ("falcon", dict(FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1)),
    ("falcon", dict(FALCON, new_decoder_architecture=True, ffn_hidden_size=100, tie_word_embeddings=False)),
    ("bloom", dict(hidden_size=64, n_layer=2, n_head=8, vocab_size=128, tie_word_embeddings=False)),
    ("deepseek_v3", dict(LATENT)),
    ("deepseek_v3", dict(LATENT, q_lora_rank=None, first_k_dense_replace=1, n_shared_experts=2, attention_bias=True)),
    ("deepseek_v2", dict(LATENT)),
    ("deepseek_v2", dict(LATENT, q_lora_rank=24, first_k_dense_replace=4, n_shared_experts=None, attention_bias=True)),
    ("mpt", dict(d_model=64, n_heads=8, n_layers=2, max_seq_len=32, vocab_size=128)),
    ("mpt", dict(d_model=64, n_heads=8, n_layers=2, max_seq_len=32, vocab_size=128, tie_word_embeddings=False)),
]

# model, rank, target modules ("all-linear" in peft where empty; routers are not adapted here, so no mixtures)
ADAPTERS = [
    ("llama-2-7b", 8, ["q_proj", "v_proj"]),
    ("llama-3-8b", 16, []),
    ("llama-3-8b", 4, ["self_attn.o_proj", "lm_head"]),
    ("gpt2", 8, ["c_attn"]),
    ("gpt2", 8, ["attn.c_proj", "mlp.c_fc"]),
    ("falcon-7b", 16, ["query_key_value"]),
    ("falcon-180b", 64, ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
    ("mixtral-8x7b", 4, ["q_proj", "w1", "w2", "w3"]),
    ("deepseek-v2-lite", 8, ["kv_b_proj", "gate_proj"]),
]


def their_model(fields):
    config = CONFIG_MAPPING[fields["model_type"]].from_dict(dict(fields))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def their_parameters(model):
    # named_parameters() lists a tied tensor once, under its first name: the embedding's.
    return {name: (list(parameter.shape), parameter.requires_grad) for name, parameter in model.named_parameters()}


def adapted(model, rank, targets):
    import peft
    config = peft.LoraConfig(r=rank, target_modules=targets or "all-linear", task_type="CAUSAL_LM")
    wrapped = their_parameters(peft.get_peft_model(model, config))
    plain = lambda name: name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    return {plain(name): value for name, value in wrapped.items()}


def our_listing(tool, path, *lora):
    text = subprocess.run([tool, path, *map(str, lora)], check=True, capture_output=True, text=True).stdout
    parameters, blocks = {}, {}
    for line in text.splitlines():
        kind, name, *rest = line.split("\t")
        if kind == "block":
            blocks[name] = rest[0]
            continue
        assert name not in parameters, f"{path}: {name} is listed twice"
        parameters[name] = ([int(extent) for extent in rest[0].split(",")], rest[1] == "trainable")
    return parameters, blocks


def reason_to_skip(fields):
    if fields["model_type"] == "generic-decoder":
        return "generic-decoder is no Hugging Face type"
    if fields["model_type"] == "mpt" and not fields.get("no_bias", True):
        return "transformers' MPT has no biases and no learned positions"
    return None


class Comparison:
    def __init__(self):
        self.subjects = self.tensors = self.different = 0

    def compare(self, label, expected, found):
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        total = sum(torch.Size(shape).numel() for shape, _ in expected.values())
        print(f"{label:44s} {len(expected):6d} tensors {total:>17,d} {'equal' if not wrong else 'DIFFERENT'}")
        for name in wrong[:8]:
            print(f"    {name}: theirs {expected.get(name)}, ours {found.get(name)}")
        self.subjects += 1
        self.tensors += len(expected)
        self.different += bool(wrong)

    def compare_blocks(self, label, model, blocks):
        for prefix, name in blocks.items():
            theirs = type(model.get_submodule(prefix)).__name__
            if theirs != name:
                print(f"    {label}: {prefix} is a {theirs}, ours says {name}")
                self.different += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", default=os.path.join(ROOT, "build/bin/tools/list_parameters"))
    parser.add_argument("ids", nargs="*", help="model ids; when none are given, all of models/, variants and adapters")
    arguments = parser.parse_args()
    folder = lambda model_id: os.path.join(ROOT, "models", model_id, "config.json")
    comparison, skipped = Comparison(), []

    def check(label, fields, path):
        model = their_model(fields)
        parameters, blocks = our_listing(arguments.tool, path)
        comparison.compare(label, their_parameters(model), parameters)
        comparison.compare_blocks(label, model, blocks)

    for model_id in arguments.ids or sorted(os.listdir(os.path.join(ROOT, "models"))):
        if not os.path.exists(folder(model_id)):
            continue
        with open(folder(model_id)) as file:
            fields = json.load(file)
        reason = reason_to_skip(fields)
        if reason:
            skipped.append((model_id, reason))
        else:
            check(model_id, fields, folder(model_id))
    if not arguments.ids:
        with tempfile.TemporaryDirectory() as scratch:
            path = os.path.join(scratch, "config.json")
            for index, (model_type, fields) in enumerate(VARIANTS):
                fields = dict(fields, model_type=model_type)
                with open(path, "w") as file:
                    json.dump(fields, file)
                check(f"variant {index} of {model_type}", fields, path)
        for model_id, rank, targets in ADAPTERS:
            with open(folder(model_id)) as file:
                model = their_model(json.load(file))
            found, _ = our_listing(arguments.tool, folder(model_id), rank, *targets)
            comparison.compare(f"LoRA {rank} on {model_id} {' '.join(targets)[:20]}", adapted(model, rank, targets),
                               found)
    print(f"{comparison.subjects} models, {comparison.tensors} tensors compared, {comparison.different} differences")
    for model_id, reason in skipped:
        print(f"left out: {model_id}: {reason}")
    return 1 if comparison.different else 0


if __name__ == "__main__":
    sys.exit(main())
