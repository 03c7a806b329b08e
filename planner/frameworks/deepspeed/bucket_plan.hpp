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

/// What happens when a module's gradients are complete: the flushes [firstFlush, endFlush), before, between and behind
/// its tensors as they come. Tensors larger than the bucket keep their memory until their own flush; the others are
/// copied into the bucket.
struct BucketArrival {
    GradientArrival module;
    std::size_t firstTensor = 0; // into BucketPlan::tensors
    std::int32_t firstFlush = 0;
    std::int32_t endFlush = 0;
};

struct BucketPlan {
    std::vector<FlatTensor> tensors;   // in order of arrival
    std::vector<std::int32_t> flushOf; // by tensor
    std::vector<BucketFlush> flushes;
    std::vector<BucketArrival> arrivals;
    std::vector<std::size_t> kinds; // by kind: a flush of it

    /// The flushes after the last arrival empty what is left.
    std::int32_t firstRemaining() const { return arrivals.empty() ? 0 : arrivals.back().endFlush; }
};

/// A tensor goes into the bucket unless it would then hold more than `bucketSize` elements; the bucket is emptied
/// first. A tensor that alone is larger stands for a bucket of its own.
BucketPlan planBuckets(const FlatOrder& order, const std::vector<GradientArrival>& arrivals, std::int64_t bucketSize);

/// What of a flush belongs to one rank, or to each of several in a row that own as much of it.
struct OwnerShare {
    std::int64_t firstOwner = 0;
    std::int64_t owners = 1;
    std::int64_t elements = 0; // of each
    bool inOnePiece = true;    // in the bucket; else other ranks' elements lie between
};

/// The shares of a flush in the order in which their owners first occur in it, each owner in one of them. `partition`:
/// elements of the flat buffer that a rank owns. Source: stage_1_and_2.py average_tensor.
std::vector<OwnerShare> ownerShares(const BucketPlan& plan, const BucketFlush& flush, std::int64_t partition);

/// A module's tensors by where their gradients go: those of at most `limit` elements together through the bucket, each
/// of the others by itself.
struct ModuleGradient {
    std::vector<FlatTensor> bucketed;
    std::vector<FlatTensor> large;
    std::vector<std::size_t> largePlaces; // among the module's tensors

    std::int64_t bucketedElements() const;
    std::int64_t elements() const;
};
ModuleGradient moduleGradient(const FlatOrder& order, int layer, int module, std::int64_t limit);

/// The buffers of a module's gradients: one of all that go through the bucket, one of each that is too large for it.
struct GradientClassIds {
    BufferClassId bucketed = -1;
    std::vector<BufferClassId> large;
    bool none() const { return bucketed < 0 && large.empty(); }
};
struct GradientBuffers {
    BufferId bucketed = -1;
    std::vector<BufferId> large;
    bool none() const { return bucketed < 0 && large.empty(); }
    std::vector<BufferId> all() const;
};

} // namespace shardwright
