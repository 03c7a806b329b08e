#pragma once

// How the modelling code that trains a model differs from the plain decoder in what it makes and keeps. One struct of
// facts, so that the programs ask for a property and never for a name.

#include "core/training.hpp"

namespace shardwright {

enum class SoftmaxKind : std::uint8_t {
    Upcast,     // softmax in fp32, its result cast back to the compute dtype: both are kept
    InPlaceType // softmax in the compute dtype
};

enum class Activation : std::uint8_t {
    OneKernel,    // keeps its input
    ComposedGelu, // gelu_new spelled out: every elementwise operation keeps an operand
    Relu          // keeps its result, which the next matrix keeps anyway
};

struct FamilyRules {
    bool rotary = true;
    bool fusedGateUp = false;        // gate and up are halves of one matrix product
    bool copiesFusedQkv = false;     // q, k, v out of a fused projection are copies, not views that keep all of it
    bool copiesAttentionOut = false; // queries are contiguous by head, so the attention output is copied to be by token
    bool gatesSharedExpert = false;  // the shared expert's output is scaled by a sigmoid gate
    bool repeatsHeads = false;       // grouped keys and values are copied out to all query heads before attention
    bool scoresInFp32 = false;       // queries and keys are cast to fp32 for eager attention
    bool softcap = false;            // attention scores go through tanh
    SoftmaxKind softmax = SoftmaxKind::Upcast;
    Activation activation = Activation::OneKernel;
    bool normWeightInFp32 = false;   // RMSNorm multiplies its weight in fp32, so the fp32 result is kept
    bool scalesEmbedding = false;    // token embeddings are multiplied by a constant
    bool routesInFp32 = false;       // the router's matrix product runs on an fp32 copy of the hidden states
    bool fp32RoutingWeights = false; // experts' outputs are weighted in fp32
};

FamilyRules familyRules(const Model& model, const Training& training);

} // namespace shardwright
