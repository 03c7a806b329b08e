#pragma once

// What optimizers keep and need, apart from how a framework shards it.

#include "core/plan.hpp"
#include "core/training.hpp"

namespace shardwright {

/// Bytes of optimizer state for `elements` parameters held by a rank, in states of `stateDtype` where the optimizer
/// keeps its parameters' dtype. Adam and its kin keep two moments; Lion and SGD with momentum one; 8-bit Adam two int8
/// moments with a fp32 absolute maximum per block of 256 (bitsandbytes blocksize); Adafactor (no first moment) row and
/// column sums, which are counted by adafactorState instead.
Bytes optimizerStateBytes(Optimizer optimizer, std::int64_t elements, DType stateDtype);

/// Adafactor's factored second moment of one matrix: rows + columns fp32 numbers (arXiv 1804.04235 sec. 3).
Bytes adafactorState(std::int64_t rows, std::int64_t columns);

/// Adafactor's state in the average per parameter element of a model: what flat shards of it hold.
Bytes adafactorStateOf(const Model& model);

/// State bytes of one rank that holds `elements` of the model's `trainable` parameters.
Bytes shardStateBytes(const Training& training, const Model& model, std::int64_t elements, std::int64_t trainable,
                      DType stateDtype);

/// Number of state tensors per parameter, for checkpoints.
int optimizerMoments(Optimizer optimizer);

/// True for AdamW of torch in its default foreach form, whose step makes a temporary of one moment's size.
bool foreachTemporaries(const Training& training);

/// Dtypes of what an optimizer step touches.
struct SteppedDtypes {
    DType parameters = DType::Fp32;
    DType gradients = DType::Fp32;
    DType states = DType::Fp32;
};

/// Whether one kernel does the whole step, or one elementwise kernel after the other runs over all tensors.
enum class OptimizerForm : std::uint8_t { Fused, Foreach };

/// torch.optim's form under the training's settings; shardrun's own optimizer is one kernel.
OptimizerForm torchOptimizerForm(const Training& training);

/// Bytes that a step over `elements` parameters reads plus writes. Caches are taken to hold nothing from one kernel to
/// the next: shards are far larger.
Bytes optimizerStepBytes(Optimizer optimizer, OptimizerForm form, std::int64_t elements, const SteppedDtypes& dtypes);

/// Bytes that the gradients' norm (one pass) and their scaling by it (read and write) move; nothing where the training
/// does not clip. torch.nn.utils.clip_grad_norm_ scales whatever the norm is.
Bytes clippingBytes(const Training& training, Bytes gradients);

} // namespace shardwright
