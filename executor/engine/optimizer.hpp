#pragma once

// The optimizers: one step of a stretch of elements.

#include <cstdint>

#include "core/training.hpp"
#include "executor/engine/rank_executor.hpp"

namespace shardwright {

/// Elements that stand one after another. Moments are nullptr where the optimizer has none; 1-bit Adam steps without a
/// parameter or without a gradient too.
struct OptimizerRun {
    void* parameter = nullptr;
    DType parameterType = DType::Fp32;
    const void* gradient = nullptr;
    DType gradientType = DType::Fp32;
    void* moment[2] = {nullptr, nullptr};
    DType momentType[2] = {DType::Fp32, DType::Fp32};
    std::int64_t count = 0;
    bool decays = false; // matrices; vectors do not
};

/// Whether stepElements knows this optimizer.
bool isKnownOptimizer(Optimizer optimizer);

/// Optimizer step number `step`, counted from 1. Arithmetic is fp32, whatever is stored; 16-bit values round to
/// nearest.
///   AdamW, Adam   torch.optim (Loshchilov and Hutter, arXiv 1711.05101: decoupled decay; Adam: decay in the gradient)
///   Sgd           with decay in the gradient; SgdMomentum: velocity = beta1 velocity + gradient, as torch.optim.SGD
///   Lion          arXiv 2302.06675: the sign of beta1 m + (1 - beta1) g, then m = beta2 m + (1 - beta2) g
///   OneBitAdam    deepspeed/runtime/fp16/onebit/adam.py: AdamW without correction of the bias. Without a parameter the
///                 first moment takes the gradient in; without a gradient the parameter takes the moments' step
void stepElements(const OptimizerRun& run, Optimizer optimizer, const OptimizerSettings& settings, std::int64_t step);

} // namespace shardwright
