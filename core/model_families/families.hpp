#pragma once

// The families of models: one function each, from a config.json to the model. Class names, parameter names and class
// defaults are those of transformers 4.57 (src/transformers/models/<family>/), unless a family says otherwise.

#include "core/model_families/hf_config.hpp"
#include "core/model_families/layer_builder.hpp"

namespace shardwright {

Model readLlama(const HfConfig& config);
Model readMistral(const HfConfig& config);
Model readMixtral(const HfConfig& config);
Model readQwen2(const HfConfig& config);
Model readQwen3(const HfConfig& config);
Model readQwen2Moe(const HfConfig& config);
Model readQwen3Moe(const HfConfig& config);
Model readGemma(const HfConfig& config);
Model readGemma2(const HfConfig& config);
Model readPhi(const HfConfig& config);
Model readPhi3(const HfConfig& config);
Model readGpt2(const HfConfig& config);
Model readGptNeoX(const HfConfig& config);
Model readGptJ(const HfConfig& config);
Model readOpt(const HfConfig& config);
Model readFalcon(const HfConfig& config);
Model readBloom(const HfConfig& config);
Model readDeepseekV2(const HfConfig& config);
Model readDeepseekV3(const HfConfig& config);
Model readMpt(const HfConfig& config);
Model readGenericDecoder(const HfConfig& config);

/// What a "generic-decoder" needs and may have, for the message about an unknown model_type.
std::string describeGenericDecoder();

} // namespace shardwright
