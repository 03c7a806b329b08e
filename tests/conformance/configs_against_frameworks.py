#!/usr/bin/env python3
"""Loads exported configurations through the real parsers of Accelerate and DeepSpeed and compares what they understood
with what the plan said.

    build/bin/tools/export_all scenarios/llama-2-7b-8xa100.json /tmp/exported
    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install torch accelerate transformers
    DS_BUILD_OPS=0 /tmp/venv/bin/pip install --no-build-isolation deepspeed==0.19.6
    /tmp/venv/bin/python tests/conformance/configs_against_frameworks.py /tmp/exported

No GPU is needed and nothing is launched: the launcher's own functions build the environment that a script would see, and
the plugins read it as they would there. DeepSpeed sees a fake world size. Not part of CI: it needs a network once.
"""

import json
import os
import pathlib
import sys
import warnings
from unittest import mock

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from deepspeed.runtime.config import DeepSpeedConfig

warnings.simplefilter("ignore")


class Check:
    def __init__(self, folder):
        self.folder = folder
        self.expected = json.loads((folder / "expected.json").read_text())
        self.strategy = self.expected["strategy"]
        self.training = self.expected["training"]
        self.compared = 0

    def equal(self, what, understood, said):
        self.compared += 1
        if understood != said:
            raise AssertionError(f"{what}: understood {understood!r}, the plan said {said!r}")

    def mixed(self):
        precision = self.training["precision"]
        return "fp8" if precision["fp8"] else precision["mixed"] or "no"

    # What `accelerate launch --config_file ...` does up to starting processes.
    def launched(self):
        parser = launch_command_parser()
        command = ["--config_file", str(self.folder / "accelerate_config.yaml")]
        if self.expected["nodes"] > 1:
            command += ["--main_process_ip", "10.0.0.1"]
        args = parser.parse_args(command + ["train.py"])
        args, defaults, from_config = _validate_launch_command(args)
        if args.use_deepspeed:  # launch_command of commands/launch.py
            fields = list(defaults.deepspeed_config.keys())
            if from_config:
                fields.append("mixed_precision")
            args.deepspeed_fields_from_accelerate_config = ",".join(fields)
            _, environment = prepare_deepspeed_cmd_env(args)
        else:
            environment = prepare_multi_gpu_env(args)
        self.equal("num_processes", args.num_processes, self.expected["processes"])
        self.equal("num_machines", args.num_machines, self.expected["nodes"])
        if self.expected["nodes"] > 1:
            self.equal("nproc_per_node", int(args.nproc_per_node), self.expected["processes"] // self.expected["nodes"])
        return args, environment

    def fsdp(self, version):
        args, environment = self.launched()
        self.equal("mixed precision", environment["ACCELERATE_MIXED_PRECISION"], self.mixed())
        # No GPU here: sync_module_states asks for a device to build on.
        cuda = mock.patch("accelerate.utils.dataclasses.is_cuda_available", return_value=True)
        device = mock.patch("torch.cuda.current_device", return_value=0)
        with mock.patch.dict(os.environ, environment), cuda, device:
            plugin = FullyShardedDataParallelPlugin()
            mesh = ParallelismConfig() if args.use_parallelism_config else None
        said = self.strategy
        self.equal("fsdp_version", plugin.fsdp_version, version)
        if version == 1:
            self.equal("sharding", plugin.sharding_strategy.name.lstrip("_"), said["sharding_strategy"])
            prefetch = plugin.backward_prefetch.name if plugin.backward_prefetch else "NO_PREFETCH"
            self.equal("backward prefetch", prefetch, said["backward_prefetch"])
            self.equal("forward prefetch", plugin.forward_prefetch, said["forward_prefetch"])
            self.equal("use_orig_params", plugin.use_orig_params, said["use_orig_params"])
            self.equal("sync_module_states", plugin.sync_module_states, said["sync_module_states"])
            self.equal("offload", plugin.cpu_offload.offload_params, said["offload_params"])
        else:
            self.equal("reshard", plugin.reshard_after_forward, said["reshard_after_forward"])
            self.equal("offload", type(plugin.cpu_offload).__name__,
                       "CPUOffloadPolicy" if said["offload_params"] else "OffloadPolicy")
            replicas = said["dp_replicate_size"] or self.expected["nodes"]
            self.equal("mesh", mesh is not None, replicas > 1)
            if mesh:
                self.equal("replicas", mesh.dp_replicate_size, replicas)
                self.equal("total", mesh.total_size, self.expected["processes"])
        policy = getattr(plugin.auto_wrap_policy, "__name__", None)
        self.equal("wrap policy", policy, {"TRANSFORMER_BASED_WRAP": "transformer_auto_wrap_policy",
                                           "SIZE_BASED_WRAP": "size_based_auto_wrap_policy",
                                           "NO_WRAP": None}[said["auto_wrap_policy"]])
        self.equal("cpu_ram_efficient_loading", plugin.cpu_ram_efficient_loading, said["cpu_ram_efficient_loading"])
        checkpointing = self.training["activation_checkpointing"] == "full"
        if version == 2:
            checkpointing = checkpointing and said["checkpoint_children"]
        self.equal("activation checkpointing", plugin.activation_checkpointing, checkpointing)

    def zero_block(self, config, sections=("zero_optimization",)):
        for section in sections:
            self.compare_object(section, config.zero_config, self.strategy.get(section, {}))

    def compare_object(self, where, understood, said):
        for key, value in said.items():
            name = key.removeprefix("stage3_")
            got = getattr(understood, name if hasattr(understood, name) else key)
            if isinstance(value, dict):
                self.compare_object(f"{where}.{key}", got, value)
            else:
                self.equal(f"{where}.{key}", str(got) if key == "nvme_path" else got, value)

    # DeepSpeed's own reading, with the world size that the plan has.
    def deepspeed_file(self, path):
        with mock.patch("deepspeed.runtime.config.dist") as dist:
            dist.get_rank.return_value = 0
            dist.get_world_size.return_value = self.expected["processes"]
            config = DeepSpeedConfig(str(path))
        self.zero_block(config)
        training = self.training
        self.equal("micro batch", config.train_micro_batch_size_per_gpu, training["micro_batch"])
        self.equal("accumulation", config.gradient_accumulation_steps, training["gradient_accumulation"])
        self.equal("clipping", config.gradient_clipping, training.get("gradient_clipping") or 0.0)
        self.equal("bf16", config.bfloat16_config.enabled, self.mixed() in ("bf16", "fp8"))
        self.equal("fp16", config.float16_config.enabled, self.mixed() == "fp16")
        for key, value in self.strategy.get("aio", {}).items():
            self.equal(f"aio.{key}", config.aio_config[key], value)
        return config

    def accelerate_deepspeed(self, plugin_style):
        _, environment = self.launched()
        with mock.patch.dict(os.environ, environment):
            plugin = DeepSpeedPlugin()
        zero = self.strategy["zero_optimization"]
        self.equal("stage", plugin.zero_stage, zero["stage"])
        self.equal("zero3 init", plugin.zero3_init_flag, zero["stage"] == 3 and self.strategy["zero3_init_flag"])
        for block in ("offload_optimizer", "offload_param"):
            device = plugin.deepspeed_config["zero_optimization"].get(block, {}).get("device", "none")
            self.equal(f"{block}.device", device, zero.get(block, {}).get("device", "none"))
        if plugin_style:
            self.equal("accumulation", plugin.gradient_accumulation_steps, self.training["gradient_accumulation"])
            self.equal("clipping", plugin.gradient_clipping, self.training.get("gradient_clipping") or 1.0)
            self.equal("mixed precision", environment["ACCELERATE_MIXED_PRECISION"], self.mixed())
        else:
            self.deepspeed_file(self.folder / "ds_config.json")

    def run(self):
        kind = self.expected["format"]
        if kind == "deepspeed":
            config = self.deepspeed_file(self.folder / "ds_config.json")
            names = {"adamw": "adamw", "adam": "adam", "lion": "lion"}
            if self.training["optimizer"] in names:
                self.equal("optimizer", config.optimizer_name, names[self.training["optimizer"]])
        elif kind in ("accelerate-deepspeed", "accelerate-deepspeed-plugin"):
            self.accelerate_deepspeed(kind.endswith("plugin"))
        elif kind in ("accelerate-fsdp1", "accelerate-fsdp2"):
            self.fsdp(int(kind[-1]))
        elif kind == "accelerate-ddp":
            args, environment = self.launched()
            self.equal("mixed precision", environment["ACCELERATE_MIXED_PRECISION"], self.mixed())
            self.equal("multi_gpu", bool(args.multi_gpu), self.expected["processes"] > 1)
        else:
            raise AssertionError(f"unknown format {kind}")


def main():
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    failures, compared, files = 0, 0, 0
    for expected in sorted(pathlib.Path(sys.argv[1]).rglob("expected.json")):
        check = Check(expected.parent)
        files += 1
        try:
            check.run()
        except Exception as error:  # every refusal by a framework is a finding here
            failures += 1
            print(f"FAILED {expected.parent}: {type(error).__name__}: {str(error)[:400]}")
        compared += check.compared
    print(f"{files} configurations, {compared} settings compared, {failures} failures (torch {torch.__version__})")
    return 1 if failures or files == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
