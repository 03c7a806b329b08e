#pragma once

// The programs of each kind of layer. Shapes per GPU and micro-batch; symbols: T tokens, H hidden, I ffn, V vocabulary,
// a query heads, s sequence length, b micro-batch, c bytes of the compute dtype, k experts per token.

#include "core/training.hpp"
#include "planner/activations/family_rules.hpp"
#include "planner/activations/layer_program.hpp"
#include "planner/activations/modules.hpp"
#include "planner/parallelism/local_shape.hpp"

namespace shardwright {

/// A class of tensors whose bytes are a multiple of the tokens T (or of T s, for attention matrices).
struct ScaledClass {
    const BufferSpec* spec = nullptr;
    std::int64_t bytesPerToken = 0;
    bool timesSequence = false;
    int layerType = -1;
};

/// What a framework changes about activations.
struct ActivationVariant {
    bool checkpointChildren = false; // full checkpointing wraps each child of a block: their inputs are all kept
    LocalShape local = {};
};

enum class LocalGroup : std::uint8_t { Tensor, Context, Expert, Pipeline };

/// A collective between model-parallel ranks; its tensor is a multiple of the tokens T.
struct LayerCollective {
    OpKind kind = OpKind::AllReduce;
    LocalGroup group = LocalGroup::Tensor;
    std::string_view name;
    std::string_view formula;
    std::string_view source;
    std::int64_t bytesPerToken = 0; // of the whole tensor
    DType native = DType::Bf16;
    std::int32_t count = 1;

    bool operator==(const LayerCollective&) const = default;
};

struct ProgramContext {
    const Model& model;
    const Training& training;
    DType compute;
    ActivationVariant variant;
    FamilyRules rules;
    std::vector<ScaledClass>& classes;
    std::vector<LayerCollective>& collectives;
    BufferClassId
        hidden; // (T, H) in compute dtype: the boundary between layers; T / t tokens with sequence parallelism
    std::int64_t split = 1; // ranks that share the tokens of what is added

    /// A class of `width` elements a token of `bytesEach` bytes; no class (-1) for zero elements.
    BufferClassId add(const BufferSpec& spec, std::int64_t width, std::int64_t bytesEach, int layerType = -1,
                      bool timesSequence = false) const;
    /// The collective, added where there is none like it yet.
    int addCollective(const LayerCollective& collective) const;
    /// For what is split along the sequence where the run splits it.
    ProgramContext alongSequence() const;
    std::int64_t computeBytes() const { return bitsOf(compute) / 8; }
};

/// Chunks of the fused cross entropy: Liger Kernel makes a chunk of logits about as large as the hidden states.
std::int64_t lossChunks(const Architecture& architecture);

LayerProgram embeddingProgram(const ProgramContext& context, const std::vector<LeafModule>& modules);
LayerProgram blockProgram(const ProgramContext& context, int layerType, const std::vector<LeafModule>& modules);
LayerProgram finalNormProgram(const ProgramContext& context, const std::vector<LeafModule>& modules);
/// Its output is the logits. `logits`: their class.
LayerProgram headProgram(const ProgramContext& context, const std::vector<LeafModule>& modules, BufferClassId logits);
/// Reads the logits as its input, makes their gradient; the tensor that the caller holds on to is handed over.
LayerProgram lossProgram(const ProgramContext& context, BufferClassId logits);
/// Reads the logits as its input.
LayerProgram metricsProgram(const ProgramContext& context, BufferClassId logits);

} // namespace shardwright
