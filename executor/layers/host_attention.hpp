#pragma once

#include "executor/layers/device.hpp"
#include "executor/layers/worker_pool.hpp"

namespace shardwright {

// Attention of FlashAttention's kind (arXiv 2205.14135): block by block, never a (length x length) matrix.

void hostAttention(WorkerPool& pool, const AttentionShape& shape, const HeadsView& q, const HeadsView& k,
                   const HeadsView& v, const HeadsView& context, TensorView logSumExp);
void hostAttentionGradient(WorkerPool& pool, const AttentionShape& shape, const Device::AttentionGradient& operands);

} // namespace shardwright
