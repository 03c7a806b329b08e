#pragma once

// Seconds of fused causal attention (FlashAttention-2, torch's scaled_dot_product_attention) on one GPU.

#include "planner/costs/gpu_facts.hpp"

namespace shardwright {

struct AttentionShape {
    std::int64_t sequences = 1;
    std::int64_t heads = 0;
    std::int64_t queries = 0; // tokens of a sequence that ask
    std::int64_t keys = 0;    // tokens of it that are attended to
    std::int64_t headDim = 0; // of queries and keys
    std::int64_t valueDim = 0;
    bool causal = true; // half of the products are skipped
};

/// Flash1: flash-attn before 2 and the Triton kernel of that time. MemoryEfficient: torch's kernel from xformers, which
/// it takes for a mask that is a tensor. Deterministic: flash-attn 2 whose backward adds in a fixed order.
enum class AttentionKernels : std::uint8_t { Flash2, Flash1, MemoryEfficient, Deterministic };

/// FLOPs of the products that are not skipped: two forward, five backward (scores are made again).
double attentionFlops(const AttentionShape& shape, bool backward);

double attentionSeconds(const Gpu& gpu, const GpuFacts& facts, DType dtype, const AttentionShape& shape, bool backward,
                        AttentionKernels kernels = AttentionKernels::Flash2);

} // namespace shardwright
