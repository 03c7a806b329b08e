#pragma once

// DeepSpeed's configuration file. Schema: DeepSpeed 0.19.6, runtime/config.py and the blocks it reads; what later
// releases changed is noted where it matters.

#include "planner/configs/run_config.hpp"

namespace shardwright {

struct DeepSpeedContext {
    std::optional<std::int64_t> world;      // ranks that share the data; needed to divide train_batch_size
    std::optional<std::int64_t> hiddenSize; // of the model; Hugging Face sizes "auto" buckets by it
    bool underAccelerate = false; // Accelerate reads it first: a missing accumulation is 1, ZeRO must be there
};

/// Reads a ds_config.json (comments with //, /* */ and #, and trailing commas, as Hjson has them). Everything wrong
/// comes as one InputError.
ImportedConfig readDeepSpeedJson(const std::string& text, const std::string& file,
                                 const DeepSpeedContext& context = {});

struct DeepSpeedWriting {
    bool optimizer = true; // false: the training script's own optimizer is used (Accelerate refuses both)
};

/// The configuration with every value explicit and nothing "auto". What a file cannot say goes to `notes`.
Json deepSpeedJson(const RunConfig& run, const DeepSpeedWriting& writing, std::vector<ConfigNote>& notes);

} // namespace shardwright
