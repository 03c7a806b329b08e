#include "planner/costs/attention_kernels.hpp"

#include <algorithm>

namespace shardwright {

namespace {

// Sequence length at which causal attention runs at half its final rate: diagonal blocks are computed whole, and each
// row of blocks fills and drains its pipeline. FlashAttention-2 (arXiv 2307.08691, figure 4, A100, causal, forward and
// backward, TFLOP/s at 512, 1k, 2k, 4k, 8k, 16k): 88 119 140 156 165 171 at head size 64; 99 133 155 173 182 189 at
// 128.
constexpr double kHalfRateForward = 400;
constexpr double kHalfRateBackward = 640;
// Without the mask, from github.com/Dao-AILab/flash-attention/pull/2688 (H100, head size 64).
constexpr double kHalfRateForwardDense = 70;
constexpr double kHalfRateBackwardDense = 290;

// FlashAttention-1 relative to 2 on A100, arXiv 2307.08691 sec. 1: it "only reaches 30-50 %" of the peak forward and
// "25-35 %" backward, of which the middle, against 73 % and 63 %.
constexpr double kFlash1Forward = 0.40 / 0.73;
constexpr double kFlash1Backward = 0.30 / 0.63;

// The memory-efficient kernel on A100, fp16, 160 heads of size 128: 107 TFLOP/s forward at 4096 and at 8192 tokens
// (github.com/facebookresearch/xformers/pull/412), against 73 % of 312. assumed: as much backward, on other GPUs, and
// at other head sizes.
constexpr double kMemoryEfficient = 107.0 / (0.73 * 312);

// FlashAttention-2's backward with deterministic=True on H100: 166 TFLOP/s, causal, 8192 tokens, head size 128
// (github.com/Dao-AILab/flash-attention/pull/1893), of the 298 that it has otherwise (gpu_facts.cpp, with the tokens'
// factor). assumed: as much on other GPUs and at other head sizes.
constexpr double kDeterministicBackward = 166.0 / 298;

/// Head sizes that kernels are compiled for: others are padded.
std::int64_t paddedHead(std::int64_t size)
{
    for (const std::int64_t known : {32, 64, 96, 128, 160, 192, 256})
        if (size <= known)
            return known;
    return size;
}

double share(double at64, double at128, std::int64_t head)
{
    constexpr double kBeyond128 = 0.85; // assumed: smaller blocks at head sizes above 128
    if (head <= 64)
        return at64;
    if (head <= 128)
        return at64 + (at128 - at64) * static_cast<double>(head - 64) / 64;
    return at128 * kBeyond128;
}

double flops(const AttentionShape& shape, std::int64_t headDim, std::int64_t valueDim, bool backward)
{
    const double pairs = static_cast<double>(shape.sequences * shape.heads) * static_cast<double>(shape.queries) *
                         static_cast<double>(shape.keys) * (shape.causal ? 0.5 : 1.0);
    const auto dims = static_cast<double>(backward ? 3 * headDim + 2 * valueDim : headDim + valueDim);
    return 2 * pairs * dims;
}

} // namespace

double attentionFlops(const AttentionShape& shape, bool backward)
{
    return flops(shape, shape.headDim, shape.valueDim, backward);
}

double attentionSeconds(const Gpu& gpu, const GpuFacts& facts, DType dtype, const AttentionShape& shape, bool backward,
                        AttentionKernels kernels)
{
    if (shape.sequences <= 0 || shape.heads <= 0 || shape.queries <= 0 || shape.keys <= 0)
        return 0;
    const AttentionRates& rates = facts.attention;
    if (gpu.isHostProcessor()) // measured as a whole, over the pairs that the mask leaves
        return attentionFlops(shape, backward) /
               (sustainedFlops(gpu, facts, DType::Fp32) * (backward ? rates.backward128 : rates.forward128));
    const std::int64_t head = std::max(shape.headDim, shape.valueDim);
    double rate =
        backward ? share(rates.backward64, rates.backward128, head) : share(rates.forward64, rates.forward128, head);
    if (kernels == AttentionKernels::Flash1)
        rate = backward ? rates.backward128 * kFlash1Backward : rates.forward128 * kFlash1Forward;
    if (kernels == AttentionKernels::MemoryEfficient)
        rate *= kMemoryEfficient;
    if (kernels == AttentionKernels::Deterministic && backward)
        rate *= kDeterministicBackward;
    const double tensorShare = dtype == DType::Fp32 ? facts.vectorShare : facts.tensorShare;
    const double peak = sustainedFlops(gpu, facts, dtype) / tensorShare;
    const double half = shape.causal ? (backward ? kHalfRateBackward : kHalfRateForward)
                                     : (backward ? kHalfRateBackwardDense : kHalfRateForwardDense);
    const double work = flops(shape, paddedHead(shape.headDim), paddedHead(shape.valueDim), backward);
    return work / (peak * rate) * (1 + half / static_cast<double>(shape.queries)) + facts.kernelSeconds;
}

} // namespace shardwright
