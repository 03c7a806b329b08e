#pragma once

// Writes the schedule of ZeRO-1 and ZeRO-2: zero12_reducing.cpp has what becomes of gradients, zero12_stepping.cpp the
// optimizer's step.

#include "planner/frameworks/deepspeed/zero12.hpp"
#include "planner/frameworks/deepspeed/zero_emission.hpp"

namespace shardwright {

class Zero12Emission final : public ZeroEmission {
public:
    explicit Zero12Emission(const Zero12Rules& rules);
    Schedule run();

    BufferId gradientBuffer(int layer, int module) override;
    void afterStage(Pass pass, int layer, int module) override;

private:
    struct Held : GradientBuffers {
        BufferId accumulated = -1;
    };

    struct Pending {
        std::int32_t flush;
        BufferId buffer;
    };
    struct Bucket {
        BufferId buffer;
        std::int32_t flush; // whose tensors it holds
    };

    const Zero12Rules::GradientClasses& classesOf(int layer, int module) const;
    Held& heldOf(int layer, int module);
    Held makeGradient(int layer, int module);
    /// Of the whole model, or of this rank's part of it.
    BufferId allocateState(BufferClassId bufferClass, Quantity quantity, DType dtype, const Layout& layout);

    void dropAll(const GradientBuffers& gradients);
    void transfer(OpKind kind, PayloadId payload, Verb verb, const Buffers& from, const Buffers& to);
    /// A later part of the same gradient (another micro-step, a tied weight's other use) is added in place.
    void addTo(int layer, int module, Held fresh);

    void initialise();

    void setUpBuckets();
    /// What goes out together stands in the order of arrival.
    Layout layoutOf(std::int32_t flush) const;
    /// The bucket that the flush empties, as it holds that one's tensors; with two they take turns.
    BufferId bucketOf(std::int32_t flush);
    /// Where the gradients of a flush lie before it. `arriving`: of a module that completes meanwhile, those for the
    /// bucket, some of which still go out with it.
    Buffers gradientsOf(std::int32_t flush, BufferId arriving);

    void arrive(const BucketArrival& arrival);
    /// Whether some of the arriving module's own tensors go out of the bucket with a flush that its others cause.
    bool splits(const ModuleGradient& arriving, std::int32_t flush) const;

    void reduce(std::int32_t flush, BufferId arriving = -1);
    /// average_tensor: the reduction stream waits for the compute stream, and that for the reductions before. Gradients
    /// that are in no bucket come by buffered_reduce_fallback instead, whose allreduce_and_copy makes the host wait for
    /// both (synchronize()).
    OpId joinStreams();
    void allReduce(std::int32_t flush, const Buffers& gradients);
    /// allreduce_no_retain to each owner in turn. allreduce_and_copy first lets the device come to rest where
    /// reductions have a stream of their own (synchronize()): only the last of a bucket overlaps with anything.
    void reduceToOwners(std::int32_t flush, const Buffers& gradients);
    /// DeepSpeed sends a tensor larger than the bucket and a partition piece by piece, through a copy of a piece; the
    /// executor reduces it where it lies.
    bool copiesWhole(std::int32_t flush) const;
    BufferId allocateCopy(BufferClassId bufferClass, DType dtype, std::int32_t flush);

    void microStep(const MicroStep& step);
    void beginBackward(const MicroStep& step);
    void endBackward(const MicroStep& step);
    /// stage_1_and_2.py independent_gradient_partition_epilogue: the first micro-step's copy stays to be added to,
    /// later ones go.
    void epilogue(const MicroStep& step);
    void accumulate();
    /// The gradients that this rank keeps of a bucket go down as soon as it is reduced: asynchronously, in its stream.
    OpId offloadGradients(const Zero12Rules::FlushCopies& copies, const Buffers& gradients);

    void optimizerStep();
    void clip(BufferId gradient);
    void stepOnHost();
    void stepOnGpu();
    void dropAccumulated();

    const Zero12Rules& m_rules;
    Stream m_reduceStream;
    std::vector<std::vector<Held>> m_held; // by layer and module
    std::vector<Pending> m_pending;
    std::vector<Bucket> m_buckets;
    Held m_fresh; // of the module whose backward runs
    Layout m_part, m_whole, m_touching;
    BufferId m_flat = -1, m_master = -1, m_moments = -1;
    BufferId m_hostGradient = -1, m_staging = -1, m_accumulators = -1;
    BufferId m_touched = -1;  // this micro-step's gradients of the partition
    BufferId m_averaged = -1; // those of the micro-steps before
    std::size_t m_arrival = 0;
    OpId m_lastReduced = -1;
    bool m_first = true;
    bool m_last = true;
    bool m_reducing = false;
    bool m_tiedSeen = false;
};

} // namespace shardwright
