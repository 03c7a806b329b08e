#pragma once

// Hugging Face config.json -> Model, parameter by parameter. One file per family in core/model_families/.

#include <string>
#include <vector>

#include "core/json.hpp"
#include "core/model.hpp"

namespace shardwright {

/// Reads a model by shipped id ("llama-2-7b"), by folder that holds a config.json ("models/llama-2-7b"), or by file.
/// InputError with every problem: unknown id (with the nearest one), unknown model_type (naming the supported ones and
/// the fields of "generic-decoder"), missing or impossible dimensions.
Model readModel(const std::string& idOrPath);

/// The model that a parsed config.json describes. `id` names it; `file` and `pointer` (the place of `config` within
/// the file, "" at top level) are for messages.
Model modelFromJson(const Json& config, const std::string& id, const std::string& file,
                    const std::string& pointer = {});

/// The supported values of "model_type", sorted.
std::vector<std::string> supportedModelTypes();

} // namespace shardwright
