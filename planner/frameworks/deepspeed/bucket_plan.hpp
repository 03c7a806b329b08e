#pragma once

// DeepSpeed's reduction bucket ("IPG bucket"): which gradients go out together. Source: runtime/zero/stage_1_and_2.py
// reduce_independent_p_g_buckets_and_remove_grads, runtime/zero/stage3.py of the same name.

#include <cstdint>
#include <vector>

#include "planner/frameworks/deepspeed/tensor_order.hpp"

namespace shardwright {

/// One reduction: the tensors that lie in the bucket when it is emptied.
struct BucketFlush {
    std::size_t firstTensor = 0; // into BucketPlan::tensors
    std::size_t endTensor = 0;
    std::int64_t elements = 0;
    int kind = 0; // flushes of the same sizes share a kind
};

/// What happens when a module's gradients are complete: first the flushes [firstFlush, endFlush), then the small
/// tensors are copied into the bucket; tensors larger than the bucket keep their memory until flush `largeFlush`.
struct BucketArrival {
    GradientArrival module;
    std::int32_t firstFlush = 0;
    std::int32_t endFlush = 0;
    std::int32_t largeFlush = -1;
};

struct BucketPlan {
    std::vector<FlatTensor> tensors; // in order of arrival
    std::vector<BucketFlush> flushes;
    std::vector<BucketArrival> arrivals;
    std::vector<std::size_t> kinds; // by kind: a flush of it

    /// The flushes after the last arrival empty what is left.
    std::int32_t firstRemaining() const { return arrivals.empty() ? 0 : arrivals.back().endFlush; }
};

/// A tensor goes into the bucket unless it would then hold more than `bucketSize` elements; the bucket is emptied
/// first. A tensor that alone is larger stands for a bucket of its own.
BucketPlan planBuckets(const FlatOrder& order, const std::vector<GradientArrival>& arrivals, std::int64_t bucketSize);

/// Elements of a module's gradients that go through the bucket, and of those too large for it.
struct ModuleGradient {
    std::int64_t bucketed = 0;
    std::int64_t large = 0;
};
ModuleGradient moduleGradient(const FlatOrder& order, int layer, int module, std::int64_t bucketSize);

} // namespace shardwright
