#pragma once

// The configuration file of `accelerate launch`. Source: Accelerate 1.15.0, commands/config/config_args.py (keys),
// commands/launch.py (defaults and what becomes of them), utils/launch.py (what is handed to the script),
// utils/dataclasses.py (FullyShardedDataParallelPlugin, DeepSpeedPlugin).

#include <functional>

#include "planner/configs/deepspeed_json.hpp"

namespace shardwright {

/// Gives the text of the file that a configuration names (deepspeed_config_file); InputError when it cannot.
using ConfigFileReader = std::function<std::string(const std::string& path)>;

/// Reads an Accelerate YAML of distributed_type FSDP, DEEPSPEED, MULTI_GPU or NO. `context.world` is taken from
/// num_processes where the file says it.
ImportedConfig readAccelerateYaml(const std::string& text, const std::string& file, DeepSpeedContext context,
                                  const ConfigFileReader& readFile);

/// The YAML as an object, keys in writing order. `deepSpeedFile` is what AccelerateDeepSpeed names. What the YAML
/// cannot say goes to `notes`; a strategy that it cannot say at all is an InputError.
Json accelerateYaml(const RunConfig& run, ConfigFormat format, const std::string& deepSpeedFile,
                    std::vector<ConfigNote>& notes);

} // namespace shardwright
