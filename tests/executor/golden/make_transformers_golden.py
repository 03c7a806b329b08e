#!/usr/bin/env python3
"""Writes the golden fixtures of tests/executor/transformers_golden_test.cpp with the real transformers.

Run by hand (pip install torch transformers safetensors), not in CI:
    python3 tests/executor/golden/make_transformers_golden.py

For each family: config.json and model.safetensors as save_pretrained writes them, and expected.json with the token
ids, the mean cross entropy of every next token, and the norm of every parameter's gradient. All in fp32.
"""

import json
import pathlib

import torch
import transformers

FOLDER = pathlib.Path(__file__).parent
LENGTH = 12  # tokens that are read; each one's successor is a label

CONFIGS = {
    "llama": transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=False, attention_dropout=0.0),
    "gpt2": transformers.GPT2Config(
        vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0),
    "qwen2": transformers.Qwen2Config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-6, rope_theta=10000.0,
        tie_word_embeddings=True, attention_dropout=0.0),
    "llama3": transformers.LlamaConfig(  # Llama 3.1's rotary embeddings
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
        attention_dropout=0.0, rope_parameters={
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8}),
    "mistral": transformers.MistralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, sliding_window=5,
        tie_word_embeddings=False, attention_dropout=0.0),
}


def main() -> None:
    for name, config in CONFIGS.items():
        torch.manual_seed(20)
        model = transformers.AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():  # larger than at first initialisation: norms, biases and softmaxes must matter
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        folder = FOLDER / name
        folder.mkdir(exist_ok=True)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        tokens = torch.randint(0, config.vocab_size, (2, LENGTH + 1))
        logits = model(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        expected = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "tokens": tokens.tolist(),
            "loss": loss.item(),
            "gradient_norms": {key: parameter.grad.norm().item() for key, parameter in model.named_parameters()},
        }
        (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
        print(name, loss.item())


if __name__ == "__main__":
    main()
