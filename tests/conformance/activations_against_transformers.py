#!/usr/bin/env python3
"""Compares what a training step keeps and how high it stands with what torch and transformers really do.

    python3 -m venv venv && venv/bin/pip install torch transformers
    venv/bin/python tests/conformance/activations_against_transformers.py [--tool build/bin/tools/saved_activations] \\
        [--models ID ...] [--attention sdpa,eager] [--checkpointing none,full] [--verbose]

transformers' own modelling code runs forward and backward on torch's meta device, at full width with three blocks: every
operation is dispatched and every tensor has its real size and lifetime, only no numbers are computed. A dispatch mode
notes each storage that an operation makes and a finaliser notes its end. Compared are the tensors alive when the loss
begins, layer by layer, and the rise of live bytes during the forward and the backward of each layer and of the loss.
Parameters, their gradients and the token ids are not activations and are left out on both sides.

What the meta device cannot show, and what stands for it:
  attention   torch's SDPA on CUDA takes the flash kernel for these shapes; the script calls that operation itself (the
              memory-efficient one with a mask or narrower values). Masks that transformers builds only for padded or
              packed batches are left out (a batch of whole sequences).
  dropout     CUDA's fused kernel, whose mask has one byte an element; the fallback of other devices keeps two.
  kernels     what a kernel allocates for itself (flash's fp32 dQ accumulator, cub's workspace) is not seen. Our program
              has the accumulator; in none of these models does it stand at a peak.
  rotary      cosines and sines are shared by all layers (4 T d at most): printed apart, not predicted.

With torch 2.15 and transformers 5.23 everything that blocks, norms, embeddings, head and loss keep agrees for all these
models (within 0.5 T H for mixtures, whose routing indices are not modelled), with transformers 4.40 for the Llama type,
there with --hold for the shifted copy of the logits. Rises agree for the Llama type (llama, mistral, qwen2, qwen3,
gemma) under both attentions with and without checkpointing. Known differences, all in temporaries: gemma-2's capped
logits (1.5 T V in fp32 terms); falcon's eager attention (fp32 additive masks by head) and alibi; names that GPT-2,
GPT-J, GPT-NeoX and phi hold to the end of a block (2 T H); mixtures in backward (experts' outputs released later, the
shared expert of qwen2_moe running first).

Exit code 1 when any difference is above --tolerance.
"""
import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections import Counter

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

MODELS = ["llama-2-7b", "llama-3-8b", "mistral-7b", "qwen2.5-7b", "qwen3-8b", "gemma-7b", "gemma-2-9b", "phi-2",
          "phi-3-mini", "gpt2-xl", "gpt-j-6b", "gpt-neox-20b", "falcon-7b", "falcon-40b", "falcon-rw-1b", "bloom-7b1",
          "opt-6.7b", "mpt-7b-hf", "mixtral-8x7b", "qwen3-30b-a3b", "qwen1.5-moe-a2.7b", "deepseek-v2-lite",
          "deepseek-v3"]
BLOCKS = 3
KINDS = ["embedding", "block", "final norm", "head"]


def flash_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """The operation that torch's SDPA runs on CUDA for half precision without a mask. With a mask, or where values are
    narrower than keys, the memory-efficient kernel, which keeps the same tensors and reads the mask."""
    if attn_mask is None and query.shape[-1] == value.shape[-1]:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False,
                                                                  scale=scale)[0]
    mask = attn_mask if attn_mask is None else attn_mask.expand(*query.shape[:3], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, mask, True, dropout_p, is_causal,
                                                                  scale=scale)[0]


def dropout(input, p=0.5, training=True, inplace=False):
    """The kernel that torch runs on CUDA: its mask has one byte an element."""
    return torch.ops.aten.native_dropout(input, p, True)[0] if training and p > 0 else input


class Recorder(TorchDispatchMode):
    """Notes every storage made and freed, with the phase of the step it happened in."""

    def __init__(self, known):
        super().__init__()
        self.phase = ("forward", 0)
        self.numbers = {}  # StorageImpl address -> number, while alive
        self.made = []     # number -> (bytes, operation, shape, dtype, phase)
        self.log = []      # (phase, +bytes or -bytes, number)
        self.left_out = set()
        for tensor in known:
            self.left_out.add(self.number(tensor, "given"))

    def number(self, tensor, operation):
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self.numbers:
            number = len(self.made)
            self.numbers[address] = number
            self.made.append((storage.nbytes(), operation, tuple(tensor.shape), tensor.dtype, self.phase))
            self.log.append((self.phase, storage.nbytes(), number))
            weakref.finalize(storage, self.gone, address, number, storage.nbytes())
        return self.numbers[address]

    def gone(self, address, number, nbytes):
        del self.numbers[address]
        self.log.append((self.phase, -nbytes, number))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.number(leaf, str(func))
        return out


def first_tensor(value):
    return value if isinstance(value, torch.Tensor) else next(v for v in value if isinstance(v, torch.Tensor))


def blocks_of(model):
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == BLOCKS)


def final_norm_of(model):
    names = ("norm", "ln_f", "norm_f", "final_layernorm", "final_layer_norm")
    return next(m for name, m in model.named_modules() if name.split(".")[-1] in names and name.count(".") <= 2)


def record(config, arguments, attention, checkpointing):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16, attn_implementation=attention)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.zeros(arguments.batch, arguments.sequence, dtype=torch.long, device="meta")
    given = list(model.parameters()) + list(model.buffers()) + [ids]
    shapes = {p.shape for p in model.parameters() if p.dim() > 1}
    shapes |= {torch.Size(reversed(s)) for s in shapes}
    recorder = Recorder(given)
    boundary = {}  # storage number -> layer that reads it as its input
    alive_at_loss = []
    head = model.get_output_embeddings()
    blocks = blocks_of(model)

    def at_backward(phase):
        def enter(_):
            recorder.phase = phase
        return enter

    def entering(layer):
        def hook(module, args, kwargs):
            hidden = first_tensor(list(args) + list(kwargs.values()))
            boundary[recorder.number(hidden, "input")] = layer
            if recorder.phase[0] == "forward":  # not in a recomputation
                recorder.phase = ("forward", layer)
                hidden.register_hook(at_backward(("backward", layer - 1)))
        return hook

    def leaving_head(module, args, output):
        output.register_hook(at_backward(("backward", BLOCKS + 2)))
        alive_at_loss.extend(recorder.numbers.values())
        recorder.phase = ("loss-forward", -1)

    for i, block in enumerate(blocks):
        block.register_forward_pre_hook(entering(i + 1), with_kwargs=True)
    final_norm_of(model).register_forward_pre_hook(entering(BLOCKS + 1), with_kwargs=True)
    head.register_forward_pre_hook(entering(BLOCKS + 2), with_kwargs=True)
    head.register_forward_hook(leaving_head)

    def drop_gradient(parameter):
        recorder.left_out.add(recorder.number(parameter.grad, "gradient"))
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_hook(lambda g: recorder.left_out.add(recorder.number(g, "gradient")))
        parameter.register_post_accumulate_grad_hook(drop_gradient)

    with recorder:
        output = model(input_ids=ids, labels=ids, use_cache=False)
        loss = output.loss
        if not arguments.hold:
            del output  # transformers' Trainer keeps the loss alone
        recorder.phase = ("loss-backward", -1)
        loss.backward()
    for number, (_, operation, shape, _, phase) in enumerate(recorder.made):
        if phase[0] == "backward" and torch.Size(shape) in shapes:
            recorder.left_out.add(number)
    return recorder, boundary, alive_at_loss


def reduce(recorder, boundary, alive_at_loss):
    """Saved tensors by layer, those shared by all layers, and by (phase, layer) how far live bytes rise in it."""
    saved = [[] for _ in range(BLOCKS + 3)]
    shared = []
    for number in alive_at_loss:
        if number in recorder.left_out:
            continue
        nbytes, operation, shape, dtype, phase = recorder.made[number]
        what = (f"{operation} {list(shape)} {str(dtype)[6:]}", nbytes)
        if number in boundary:
            saved[boundary[number]].append(what)
        elif phase == ("forward", 0):
            shared.append(what)
        else:
            saved[phase[1]].append(what)
    live = 0
    peaks = {}
    excluded = recorder.left_out | {n for n in alive_at_loss if recorder.made[n][4] == ("forward", 0)
                                    and n not in boundary}
    starts = {}
    for phase, change, number in recorder.log:
        if number in excluded:
            continue
        starts.setdefault(phase, live)
        peaks[phase] = max(peaks.get(phase, live), live, live + change)
        live += change
    return saved, shared, {phase: peak - starts[phase] for phase, peak in peaks.items()}


def ours(arguments, folder, attention, checkpointing):
    training = {"sequence_length": arguments.sequence, "micro_batch": arguments.batch,
                "precision": {"mixed": "no", "load": "bf16"}, "attention": attention,
                "activation_checkpointing": "full" if checkpointing else "none", "holds_logits": arguments.hold}
    if transformers.__version__.startswith("4.40"):
        training["loss"] = "shifted-copy"
    path = os.path.join(folder, "training.json")
    with open(path, "w") as file:
        json.dump(training, file)
    result = subprocess.run([arguments.tool, folder, path], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{arguments.tool}: {result.stderr}")
    return json.loads(result.stdout)


def compare(arguments, model, attention, checkpointing):
    with open(os.path.join(ROOT, "models", model, "config.json")) as file:
        fields = json.load(file)
    for key in ("num_hidden_layers", "n_layer", "n_layers"):
        if key in fields:
            fields[key] = BLOCKS
    if "first_k_dense_replace" in fields:
        fields["first_k_dense_replace"] = 1
    fields.pop("auto_map", None)
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(fields, file)
        predicted = ours(arguments, folder, attention, checkpointing)
        config = AutoConfig.from_pretrained(folder)
    recorder, boundary, alive = record(config, arguments, attention, checkpointing)
    saved, shared, peaks = reduce(recorder, boundary, alive)

    hidden = getattr(config, "hidden_size", None) or getattr(config, "n_embd", None) or config.d_model
    unit = arguments.sequence * arguments.batch * hidden  # figures are printed in T H bytes
    print(f"{model}, {attention}{', full checkpointing' if checkpointing else ''}:"
          f" shared by all layers {sum(b for _, b in shared) / unit:.2f}")
    worst = 0.0

    def line(what, mine, theirs):
        nonlocal worst
        off = (mine - theirs) / unit
        worst = max(worst, abs(off))
        if arguments.verbose or abs(off) > arguments.tolerance:
            print(f"   {what:32} predicted {mine / unit:8.2f}  torch {theirs / unit:8.2f}  {off:+.2f}")
        return abs(off) > arguments.tolerance

    for layer in (0, 2, 4, 5):  # one block stands for all
        tensors, theirs = predicted["saved"][layer]["tensors"], saved[layer]
        if layer == 0:
            theirs = shared = [t for t in shared if t[1] * 4 >= unit and not is_mask(t[0])]
        if line(f"saved by {KINDS[predicted['saved'][layer]['kind']]}", sum(n for _, n in tensors),
                sum(n for _, n in theirs)) and arguments.verbose:
            left, right = Counter(n for _, n in tensors), Counter(n for _, n in theirs)
            for who, some, other in (("ours", tensors, right), ("torch", theirs, left)):
                for name, nbytes in sorted(some, key=lambda t: -t[1]):
                    if left[nbytes] != right[nbytes] and nbytes * 1000 > unit:
                        print(f"        {who:5} {nbytes / unit:7.2f} {name}")
    rises = {(p["phase"], p["layer"]): p["bytes"] for p in predicted["rises"]}
    for key in [("forward", 2), ("forward", 4), ("forward", 5), ("loss-forward", -1), ("loss-backward", -1),
                ("backward", 5), ("backward", 4), ("backward", 2), ("backward", 0)]:
        name = key[0] if key[1] < 0 else f"{key[0]} of {KINDS[predicted['saved'][key[1]]['kind']]}"
        if line(f"rise in {name}", rises[key], peaks.get(key, 0)) and arguments.verbose:
            explain_peak(recorder, key, unit)
    return worst


def is_mask(name):
    """Attention masks and alibi, (b, 1 or a, s, s): masks are gone in training on whole sequences."""
    extents = name[name.index("[") + 1:name.index("]")].split(",")
    return len(extents) == 4 and extents[2] == extents[3]


def explain_peak(recorder, phase, unit):
    """What stands at torch's peak of a phase, beyond what stood when the phase began."""
    live, start, best, standing = {}, None, -1, {}
    for at, change, number in recorder.log:
        if number in recorder.left_out:
            continue
        if at == phase and start is None:
            start = set(live)
        if change > 0:
            live[number] = change
        else:
            live.pop(number, None)
        if at == phase and sum(live.values()) > best:
            best, standing = sum(live.values()), dict(live)
    for number, nbytes in standing.items():
        if number not in (start or ()) and nbytes * 1000 > unit:
            _, operation, shape, dtype, _ = recorder.made[number]
            print(f"        at peak {nbytes / unit:7.2f} {operation} {list(shape)} {str(dtype)[6:]}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tool", default=os.path.join(ROOT, "build", "bin", "tools", "saved_activations"))
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--attention", default="sdpa,eager")
    parser.add_argument("--checkpointing", default="none,full")
    # No model's width may equal sequence x batch: weight gradients are told from activations by their shape.
    parser.add_argument("--sequence", type=int, default=1344)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--hold", action="store_true", help="keep the outputs alive through backward")
    parser.add_argument("--tolerance", type=float, default=0.1, help="in T H bytes")
    parser.add_argument("--verbose", "-v", action="count", default=0)
    arguments = parser.parse_args()

    torch.nn.functional.scaled_dot_product_attention = flash_attention
    torch.nn.functional.dropout = dropout
    torch.autocast = lambda *args, **kwargs: contextlib.nullcontext()  # transformers 4 asks for one on "meta"
    if hasattr(transformers, "masking_utils"):
        transformers.masking_utils.find_packed_sequence_indices = lambda position_ids: None
    print(f"torch {torch.__version__}, transformers {transformers.__version__}; figures in T H bytes")
    worst = 0.0
    for model in arguments.models:
        for attention in arguments.attention.split(","):
            for checkpointing in arguments.checkpointing.split(","):
                try:
                    worst = max(worst, compare(arguments, model, attention, checkpointing == "full"))
                except ValueError as error:  # an attention that the model does not have
                    print(f"{model}, {attention}: {str(error).split('. ')[0]}")
    print(f"largest difference {worst:.2f} T H bytes")
    sys.exit(worst > arguments.tolerance)


if __name__ == "__main__":
    main()
