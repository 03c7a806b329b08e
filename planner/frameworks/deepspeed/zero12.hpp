#pragma once

// ZeRO stages 1 and 2. Sources are named by file: stage_1_and_2.py is deepspeed/runtime/zero/stage_1_and_2.py.

#include "core/deepspeed_options.hpp"
#include "planner/frameworks/deepspeed/bucket_plan.hpp"
#include "planner/frameworks/deepspeed/deepspeed_rules.hpp"

namespace shardwright {

class Zero12Rules final : public DeepSpeedRules {
public:
    explicit Zero12Rules(const PlanInput& input);

    void resize(const PlanInput& input) override;
    std::string structureKey() const override;
    ModelStates modelStates() const override;
    Schedule emit() const override;

protected:
    std::int64_t steppedElements() const override { return m_partition; }

private:
    friend class Zero12Emission;

    struct GradientClasses : GradientClassIds {
        BufferClassId accumulated = -1;
        PayloadId toBucket = -1, addUp = -1, castBack = -1;
    };
    /// One reduction of a flush, or several alike.
    struct Reduction {
        BufferClassId flatten = -1; // its elements one after another, where they do not lie so
        BufferClassId cast = -1;    // in the dtype of the wire
        PayloadId payload = -1;
        std::int64_t firstOwner = 0; // of a reduction to owners
        std::int32_t count = 1;      // one to each of as many owners in a row
    };
    /// What a flush moves besides the reductions themselves.
    struct FlushCopies {
        PayloadId prepare = -1;                           // flattened, cast, divided
        PayloadId copyBack = -1;                          // and out again, with what this rank keeps of it
        PayloadId down = -1;                              // fp32 gradients to the host
        PayloadId accumulateDown = -1, accumulateUp = -1; // 16-bit ones, between micro-steps
    };

    /// Elements of a flush in a rank's partition, and of the tensors that touch it.
    struct Kept {
        std::int64_t partition = 0;
        std::int64_t touched = 0;
    };
    Kept keptByFirstRank(const BucketPlan& plan, const BucketFlush& flush) const;

    // stage_1_and_2.py nccl_start_alignment_factor: partitions start at multiples of two elements.
    static constexpr std::int64_t kAlignment = 2;

    void defineStates();
    bool flattensOnGpu(Bytes both) const;
    void defineGradients();
    Reduction defineReduction(std::int64_t elements, std::int64_t copied);
    void defineFlushes();
    void defineFlushCopies(const BucketPlan& plan);
    void defineStep();
    void defineHost();
    std::int64_t flattened(const BucketFlush& flush) const;

    bool offload() const { return m_options.offloadOptimizer == OffloadDevice::Cpu; }
    bool overlaps() const { return overlapsCommunication(m_options); }
    bool contiguous() const { return m_options.contiguousGradients || offload(); }
    /// Elements of the largest gradient that is copied into a bucket.
    std::int64_t bucketLimit() const { return contiguous() ? m_options.reduceBucketSize : 0; }
    bool separateAccumulation() const { return m_options.stage == 1 && m_dtypes.accumulate != m_dtypes.model; }
    /// The flushes that gradients go out in.
    const BucketPlan& flushPlan() const { return m_options.stage == 1 && !overlaps() ? m_inOrder : m_inBackward; }
    std::int64_t fragment() const { return std::min(m_order.largest(), m_partition); }

    std::vector<Visit> m_visits;
    FlatOrder m_order;
    BucketPlan m_inBackward; // gradients as backward makes them
    BucketPlan m_inOrder;    // stage 1 without overlap: all of them at the end, in forward order

    std::int64_t m_padded = 0;    // elements of the flat buffer
    std::int64_t m_partition = 0; // of them, per rank
    std::int64_t m_touched = 0;   // of tensors that touch a rank's partition, whole

    BufferClassId m_module = -1, m_frozen = -1, m_flat = -1, m_master = -1, m_moments = -1, m_firstGradient = -1;
    BufferClassId m_bucket = -1, m_touchedGradients = -1;
    BufferClassId m_flatGradient = -1, m_castGradient = -1, m_overflow = -1, m_norm = -1, m_foreach = -1;
    BufferClassId m_offloadBuffer = -1, m_offloadCast = -1;
    BufferClassId m_hostMaster = -1, m_hostGradient = -1, m_hostStaging = -1, m_hostMoments = -1, m_hostLargest = -1,
                  m_hostAccumulators = -1;
    std::vector<std::vector<GradientClasses>> m_gradients; // by layer type and module
    std::vector<std::vector<Reduction>> m_reductions;      // by flush
    std::vector<FlushCopies> m_flushCopies;
    PayloadId m_gather = -1, m_parametersUp = -1, m_accumulate = -1, m_check = -1, m_prepare = -1, m_step = -1;
};

} // namespace shardwright
