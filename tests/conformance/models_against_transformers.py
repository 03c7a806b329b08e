#!/usr/bin/env python3
"""Compares every parameter of every shipped model (name and shape) with what transformers builds from the same config.

    python3 -m venv venv && venv/bin/pip install torch 'transformers==4.57.*'
    venv/bin/python tests/conformance/models_against_transformers.py [--tool build/bin/tools/list_parameters] [ID ...]

Models are built on torch's meta device, so no memory is needed. transformers 4 is asked for because transformers 5
fuses the experts of a mixture into one tensor when it loads; checkpoints hold them one by one, as Shardwright counts.
"generic-decoder" is no Hugging Face type; llm-foundry's MPT (biases, learned positions) is not what transformers
builds from the same fields. Both are left out and named at the end. Exit code 1 on any difference.
"""
import argparse
import json
import os
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def theirs(fields):
    config = CONFIG_MAPPING[fields["model_type"]].from_dict(fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    # named_parameters() lists a tied tensor once, under its first name: the embedding's.
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}, model


def ours(tool, path):
    text = subprocess.run([tool, path], check=True, capture_output=True, text=True).stdout
    listed = [line.split("\t") for line in text.splitlines()]
    parameters = {name: [int(extent) for extent in shape.split(",")] for name, shape in listed}
    assert len(parameters) == len(listed), f"{path}: a name is listed twice"
    return parameters


def reason_to_skip(fields):
    if fields["model_type"] == "generic-decoder":
        return "generic-decoder is no Hugging Face type"
    if fields["model_type"] == "mpt" and not fields.get("no_bias", True):
        return "transformers' MPT has no biases and no learned positions"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", default=os.path.join(ROOT, "build/bin/tools/list_parameters"))
    parser.add_argument("ids", nargs="*", help="model ids; all of models/ when none are given")
    arguments = parser.parse_args()
    different, skipped, compared, tensors = 0, [], 0, 0
    for model_id in arguments.ids or sorted(os.listdir(os.path.join(ROOT, "models"))):
        path = os.path.join(ROOT, "models", model_id, "config.json")
        if not os.path.exists(path):
            continue
        with open(path) as file:
            fields = json.load(file)
        reason = reason_to_skip(fields)
        if reason:
            skipped.append((model_id, reason))
            continue
        expected, _ = theirs(fields)
        found = ours(arguments.tool, path)
        compared += 1
        tensors += len(expected)
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        total = sum(torch.Size(shape).numel() for shape in expected.values())
        print(f"{model_id:20s} {len(expected):6d} tensors {total:>17,d} {'equal' if not wrong else 'DIFFERENT'}")
        for name in wrong[:8]:
            print(f"    {name}: transformers {expected.get(name)}, Shardwright {found.get(name)}")
        different += bool(wrong)
    print(f"{compared} models, {tensors} tensors compared, {different} models different")
    for model_id, reason in skipped:
        print(f"left out: {model_id}: {reason}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
