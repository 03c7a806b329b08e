#include "planner/configs/deepspeed_keys.hpp"

#include <algorithm>
#include <array>

#include "core/deepspeed_options.hpp"

namespace shardwright {

namespace {

// Blocks that 0.19.6 reads and a plan does not depend on. They are kept.
const std::vector<std::string> kKeptKeys{"scheduler",
                                         "steps_per_print",
                                         "wall_clock_breakdown",
                                         "memory_breakdown",
                                         "dump_state",
                                         "log_level",
                                         "vocabulary_size",
                                         "zero_allow_untested_optimizer",
                                         "zero_force_ds_cpu_optimizer",
                                         "gradient_allreduce_op",
                                         "dataloader_drop_last",
                                         "flops_profiler",
                                         "comms_logger",
                                         "tensorboard",
                                         "wandb",
                                         "csv_monitor",
                                         "comet",
                                         "checkpoint",
                                         "datastates",
                                         "data_efficiency",
                                         "autotuning",
                                         "hybrid_engine",
                                         "weight_quantization",
                                         "timers",
                                         "managed_gradient_accumulation",
                                         "use_data_before_expert_parallelism",
                                         "disable_allgather"};

// Blocks that would change what a plan computes, if plans knew them.
const std::vector<std::string> kNotPlannedKeys{"tensor_parallel", "expert_parallel",
                                               "pipeline",        "compile",
                                               "torch_autocast",  "seq_parallel_communication_data_type"};

struct RemovedKey {
    std::string_view key;
    std::string_view since;
};
// runtime/config.py, _REMOVED_TOP_LEVEL_CONFIG_KEYS of 0.19.7 and 0.19.8: these raise there.
constexpr std::array kRemovedKeys{
    RemovedKey{"nebula", "0.19.7"},
    RemovedKey{"compression_training", "0.19.7"},
    RemovedKey{"quantize_training", "0.19.7"},
    RemovedKey{"sparse_attention", "0.19.7"},
    RemovedKey{"amp", "0.19.8"},
    RemovedKey{"sparse_gradients", "0.19.8"},
    RemovedKey{"eigenvalue", "0.19.8"},
    RemovedKey{"elasticity", "0.19.8"},
    RemovedKey{"graph_harvesting", "0.19.8"},
    RemovedKey{"curriculum_learning", "0.19.8"},
    RemovedKey{"progressive_layer_drop", "0.19.8"},
};

// Beside those of core/deepspeed_options.hpp.
const std::vector<std::string> kReadKeys{"train_batch_size",
                                         "train_micro_batch_size_per_gpu",
                                         "gradient_accumulation_steps",
                                         "gradient_clipping",
                                         "optimizer",
                                         "fp16",
                                         "bfloat16",
                                         "activation_checkpointing",
                                         "prescale_gradients",
                                         "gradient_predivide_factor",
                                         "sequence_parallel_size",
                                         "allgather_size"};

bool isIn(const std::vector<std::string>& list, const std::string& key)
{
    return std::find(list.begin(), list.end(), key) != list.end();
}

} // namespace

DeepSpeedKey deepSpeedKey(const std::string& key)
{
    for (const RemovedKey& removed : kRemovedKeys)
        if (removed.key == key)
            return {KeyUse::Removed, removed.since};
    if (isIn(kNotPlannedKeys, key))
        return {KeyUse::NotPlanned};
    if (isIn(kKeptKeys, key))
        return {KeyUse::WithoutEffect};
    if (isIn(kReadKeys, key) || isIn(deepSpeedOptionKeys(), key))
        return {KeyUse::Read};
    return {};
}

std::vector<std::string> deepSpeedKeys()
{
    std::vector<std::string> keys = deepSpeedOptionKeys();
    for (const auto* list : {&kKeptKeys, &kNotPlannedKeys, &kReadKeys})
        keys.insert(keys.end(), list->begin(), list->end());
    for (const RemovedKey& removed : kRemovedKeys)
        keys.emplace_back(removed.key);
    return keys;
}

} // namespace shardwright
