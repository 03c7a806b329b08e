#pragma once

// Writes the schedule of ZeRO-3: zero3_gathering.cpp has what comes to the GPU, zero3_reducing.cpp what becomes of
// gradients, zero3_two_hops.cpp how they travel quantised, zero3_stepping.cpp the optimizer's step.

#include <algorithm>
#include <deque>

#include "planner/frameworks/deepspeed/zero3.hpp"
#include "planner/frameworks/deepspeed/zero_emission.hpp"

namespace shardwright {

class Zero3Emission final : public ZeroEmission {
public:
    explicit Zero3Emission(const Zero3Rules& rules);

    Schedule run();

    void beforeStage(Pass pass, int layer, int) override;

    BufferId gradientBuffer(int layer, int module) override;

    void afterStage(Pass pass, int layer, int module) override;

private:
    /// A sub-group's states, on NVMe or in swap buffers.
    struct Swapped {
        BufferId master = -1;
        BufferId gradient = -1;
        BufferId moments = -1;
    };
    /// What is sent and received of one tensor under qgZ.
    struct TwoHops {
        BufferId inside = -1;
        BufferId arrivedInside = -1;
        BufferId between = -1;
        BufferId arrivedBetween = -1;
        BufferId dequantised = -1;
    };
    struct Pending {
        std::int32_t flush;
        BufferId buffer;
    };

    void once(BufferClassId bufferClass) { m_builder.free(m_record.allocateScratch(bufferClass)); }
    /// Collectives of one communicator run in the order of issue.
    void takeTurn(OpId collective);

    bool records() const { return m_record.records(); }
    /// This rank's shards of some tensors, or all ranks' shards as a gather leaves them.
    Layout shardsOf(Tensors tensors) const { return {std::move(tensors), Cut::EachFlat, m_rules.m_shardRanks}; }
    Layout gathered(Tensors tensors) const;
    BufferId allocateShards(BufferClassId bufferClass, Quantity quantity, DType dtype, const Tensors& tensors);
    Tensors tensorsOfGroup(const Zero3Rules::SubGroup& group) const;
    template <typename Chosen> Tensors tensorsWhere(Chosen chosen) const
    {
        Tensors tensors;
        for (const Zero3Rules::SubGroup& group : m_rules.m_subGroups)
            for (std::size_t i = group.firstTensor; i < group.endTensor && chosen(group); ++i)
                tensors.push_back(m_rules.m_order.tensors()[i].tensor);
        return tensors;
    }

    /// Whether some of a flush's tensors are among these.
    bool flushTouches(std::int32_t flush, const Tensors& tensors) const;

    void initialise();

    void initialiseStates();

    void play(std::uint32_t end);

    bool quantized() const { return m_rules.quantizesWeights(); }
    const Zero3Rules::CallClasses& classesOf(std::size_t call) const;

    void gather(std::size_t index);

    Tensors tensorsOfCall(const GatherCall& call) const;
    /// zero/partition_parameters.py CUDAQuantizer: int8, a scale for each run of elements of a tensor's shard.
    Content quantizedContent(Layout layout, GroupId group) const;
    /// How the parts of a call's tensors lie: those of all ranks, or those of the hpZ group.
    Layout partsOf(const GatherCall& call, bool all) const;
    GroupId groupOf(const GatherCall& call) const
    {
        return call.secondary ? m_rules.m_secondaryGroup : m_rules.m_shardGroup;
    }
    Buffers secondariesOf(const GatherCall& call) const;
    /// Where this rank's parts lie on the GPU: the shards, the secondary shards, or what came up from the host.
    Buffers ownParts(const GatherCall& call, BufferId upload) const;
    /// This rank's int8 input of a call.
    BufferId quantise(const GatherCall& call, const Zero3Rules::CallClasses& classes, BufferId& upload);
    BufferId allocateFlat(const GatherCall& call, const Zero3Rules::CallClasses& classes);
    /// Shards of the secondary group are parts of the tensor as it is padded for all ranks (partition_parameters.py
    /// _partition_param_sec).
    Layout secondaryOf(Tensors tensors, bool all) const;
    /// Where the shards of what is gathered lie outside the GPU, those from NVMe once they have been read.
    Buffers hostSources() const { return {m_hostShards, m_hostOwn, m_paramBuffers}; }
    OpId readShards(std::size_t index);
    /// Those of a call's tensors, or of a sub-group's, that are kept on NVMe.
    Tensors onNvme(const Tensors& tensors) const;
    /// The buffers of host memory that hold shards of some of these.
    Buffers hostHomesOf(const Tensors& tensors) const;

    /// What was read for a gather grows old in the step to come.
    void forgetShards(const GatherCall& call);

    /// Own shards come into their place in the flat buffer, then those of the others.
    void fill(const GatherCall& call, const Zero3Rules::CallClasses& classes, BufferId flat, BufferId input,
              BufferId upload);

    /// The first of a call's parameters is needed: all of them are made.
    void wait(std::size_t index);

    /// coordinator fetch_sub_module: the compute stream waits for all that the fetch stream has waited for.
    void awaitFetches();

    void dropFlat(std::size_t call);

    void freePiece(std::size_t piece);

    void makeSecondary(std::size_t unit);

    const Zero3Rules::GradientClasses& gradientClasses(int layer, int module) const;
    GradientBuffers allocateGradient(int layer, int module);

    void makeGradient(int layer, int module);

    void arrive(const BucketArrival& arrival);

    const BucketFlush& flushAt(std::int32_t index) const;
    Tensors tensorsOfFlush(std::int32_t index) const;
    /// Whether some of the arriving module's own tensors go out of the bucket with a flush that its others cause.
    bool splits(const ModuleGradient& arriving, std::int32_t flush) const;
    /// What is reduce-scattered as it lies: then the gradient itself is the shards of all ranks.
    Layout layoutBefore(std::int32_t flush) const;
    /// The bucket as it holds the tensors of that flush.
    BufferId bucketFor(std::int32_t flush);
    /// Where the gradients of a flush lie when it begins. `arriving`: of a module that completes meanwhile, those for
    /// the bucket, some of which still go out with it.
    Buffers gradientsOf(std::int32_t flush, BufferId arriving);

    /// What the reduction stream waits for: the compute stream as it stands.
    OpId markGradients();

    void reduce(std::int32_t index, BufferId arriving = -1);

    OpId keep(const Zero3Rules::FlushClasses& classes, const Buffers& reduced);

    /// zero/mics.py allreduce_mics_shard_grads: what the micro-steps have added up, at the boundary.
    void replicate(std::int32_t flush, const Zero3Rules::FlushClasses& classes);

    /// qgZ, one tensor after the other. `reduced`: where the gradients lie, and what the means of this rank's parts are
    /// written back to. The buffers that hold DeepSpeed's results until they are kept.
    Buffers reduceInTwoHops(const BucketFlush& flush, const Buffers& reduced);
    BufferId hop(const Zero3Rules::TwoHopClasses& classes, std::int32_t tensor, TwoHops& hops, const Buffers& reduced);
    BufferId scatterAlone(const Zero3Rules::TwoHopClasses& classes, std::int32_t tensor, const Buffers& reduced);
    Content quantisedGradient(const Zero3Rules::TwoHopClasses& classes, Layout layout, GroupId group,
                              std::int64_t versions) const;

    /// stage3.py partition_grads: the accumulated 16-bit shard lives on the host and comes to the GPU to be added to;
    /// at the boundary it goes back in fp32.
    OpId offload(std::int32_t flush, const Zero3Rules::FlushClasses& classes, const Buffers& reduced);
    /// Gradients on their way to NVMe, sub-group by sub-group through a swap buffer, which holds the last; -1 where
    /// none of the flush go there.
    BufferId landGradients(std::int32_t flush, const Buffers& reduced);
    void waitUnlessPinned(OpId op);

    void microStep(const MicroStep& step);

    void optimizerStep();

    void stepGroup(std::size_t index);
    /// stage3.py _reassign_or_swap_out_partitioned_parameters under offload_param: to host memory or NVMe.
    void putParametersAway(std::size_t index);
    void stepBesideTheHost(std::size_t index);

    /// This rank's gradients of the step, of all tensors.
    BufferId gradients() const { return m_rules.offloadsOptimizer() ? m_hostNarrow : m_gradientShards; }
    /// Scaled by the norm of all gradients, in the dtype that is stepped.
    void clip(BufferId gradient);

    /// The host steps itself. From NVMe: swap_tensor/partitioned_optimizer_swapper.py reads, steps and writes one
    /// sub-group after the other; pipelined_optimizer_swapper.py reads the next sub-group (pipeline_read) and writes
    /// the last (pipeline_write) meanwhile.
    void stepOnHost(std::size_t index);

    /// All sub-groups that have their states in host memory, at the first of them: one optimizer steps them.
    void stepAllOnHost();
    void stepSwapped(std::size_t index);
    OpId readStates(std::size_t index);

    const Swapped& swapOf(std::size_t group) const { return m_swaps[group % m_swaps.size()]; }

    const Zero3Rules& m_rules;
    const GatherTrace* m_trace = nullptr;
    std::vector<BufferId> m_flats;   // by gather call
    std::vector<BufferId> m_widened; // by gather call
    std::vector<BufferId> m_pieces;
    std::vector<BufferId> m_secondaries; // by unit
    std::vector<GradientBuffers> m_made; // in order of completion
    std::vector<Pending> m_pending;
    GradientBuffers m_tied;
    GradientBuffers m_fresh;         // of the module whose backward runs
    std::int32_t m_bucketFlush = -1; // whose tensors the bucket holds
    bool m_steppedOnHost = false;
    BufferId m_shards = -1, m_hostShards = -1, m_hostOwn = -1, m_landing = -1, m_nvmeShards = -1, m_paramBuffers = -1,
             m_persistent = -1;
    BufferId m_master = -1, m_moments = -1, m_hostMaster = -1, m_hostMoments = -1;
    BufferId m_gradientShards = -1, m_hostNarrow = -1, m_hostWide = -1, m_wideGradients = -1, m_bucket = -1;
    Swapped m_nvme;
    std::vector<Swapped> m_swaps;
    Tensors m_onGpu, m_onHost, m_onNvme;                         // whose states are there
    Tensors m_flatParameters, m_ownParameters, m_nvmeParameters; // kept outside the GPU; sorted
    std::size_t m_visit = 0;
    std::uint32_t m_command = 0;
    std::size_t m_arrival = 0;
    std::size_t m_complete = 0;
    Phase m_phase = Phase::Forward;
    bool m_first = true;
    bool m_last = true;

    // coordinator __allgather_stream and stage3.py reduce_and_partition_stream: the default stream without
    // overlap_comm. The fetch stream uploads, quantises and copies out; gathers themselves run in the communicator's
    // stream.
    Stream m_fetchStream;
    Stream m_reduceStream;
    std::vector<OpId> m_gatherOps; // by gather call
    std::deque<OpId> m_fetches;    // handles waited for in the fetch stream, oldest first
    std::deque<OpId> m_reductions; // oldest first
    OpId m_begun = -1;             // where the compute stream stood when the micro-step began
    OpId m_lastFetch = -1;         // last operation of the fetch stream
    OpId m_awaited = -1;           // the last of m_fetches that the compute stream waits for
    OpId m_lastCollective = -1;    // of the shard group
    OpId m_lastReduced = -1;
    OpId m_nextRead = -1;
    OpId m_lastStateWrite = -1;
};

} // namespace shardwright
