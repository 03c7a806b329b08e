#pragma once

// Leaf modules of a layer type in forward order, with the sums that frameworks need of them.

#include <cstdint>
#include <string>
#include <vector>

#include "core/model.hpp"

namespace shardwright {

enum class ModuleKind : std::uint8_t {
    Embedding,
    InputNorm,     // norm before attention (or of the whole parallel block)
    AttentionIn,   // projections into attention: q, k, v, fused qkv, latent down/up projections
    AttentionNorm, // q_norm, k_norm, norms of latents
    AttentionOut,
    PostAttentionNorm,
    MlpIn,  // gate, up, fc1
    MlpOut, // down, fc2
    Router,
    ExpertIn,
    ExpertOut,
    SharedIn,
    SharedOut,
    PostMlpNorm, // gemma2's norms behind attention and MLP
    FinalNorm,
    Head,
};

struct LeafModule {
    std::string name; // within the layer: "self_attn.q_proj"; "{}" for experts
    ModuleKind kind = ModuleKind::MlpIn;
    std::int64_t numel = 0;     // all parameters it owns directly, repeats and adapters included
    std::int64_t trainable = 0; // of those, trainable
    std::int64_t frozen = 0;
    std::int64_t tensors = 0;     // parameter tensors, repeats included
    std::int64_t outFeatures = 0; // rows of its matrix (one expert's), 0 for norms
    std::int64_t inFeatures = 0;
    std::int64_t loraRank = 0;                        // 0 = not adapted
    std::vector<int> parameters;                      // indices into LayerType::parameters
    bool needsInput() const { return trainable > 0; } // backward needs its input to make a weight gradient
};

/// The leaf modules of a layer type in forward order. Adapters (LoRA) belong to the module that they adapt.
std::vector<LeafModule> leafModules(const LayerType& type);

} // namespace shardwright
