#pragma once

// Writes the schedule of a step under FSDP2: fsdp2_gathering.cpp has what becomes of parameters, fsdp2_reducing.cpp
// what becomes of gradients. Source: torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py ("param_group") and
// _fsdp_state.py ("state") of PyTorch 2.15.

#include <array>

#include "planner/frameworks/fsdp/fsdp2_rules.hpp"
#include "planner/frameworks/fsdp/fsdp_emission.hpp"

namespace shardwright {

class Fsdp2Emission final : public FsdpEmission {
public:
    explicit Fsdp2Emission(const Fsdp2Rules& rules);

protected:
    void initialise() override;
    Content shardOf(int unit) const override;

    Stepped stepped() const override;

    /// state _root_pre_forward: the all-gather streams wait for the optimizer, or whatever the compute stream does.
    void enterRootForward(OpId compute) override;
    bool rootReturnsLoss() const override { return FsdpEmission::rootReturnsLoss() && !m_rules.tiedGroup(); }

    void preForward(int unit, Pass pass) override;
    void postForward(int unit, Pass pass) override;
    void leaveForward() override { releaseLastGather(Phase::Forward); }
    void preBackward(int unit) override;

    void postBackward(int unit, const MicroStep& step) override;
    void reduceChunk(const std::vector<int>& units) override;
    /// state _root_post_backward_final_callback: the compute stream waits for every reduction, the host for the
    /// gradients that come to it.
    void leaveBackward() override;
    void dropGradients() override;

private:
    struct UnitState {
        BufferId parameters = -1;
        BufferId moments = -1;
        BufferId hostGradient = -1;
        bool onHost = false; // the host has gradients of this step
        BufferId gathered = -1;
        BufferId unsharded = -1;
        BufferId postForward = -1; // shard over fewer ranks, between forward and backward
        OpId postForwardMade = -1;
        OpId arrived = -1; // its all-gather
        BufferId gradientShard = -1;
        BufferId allReduced = -1; // HSDP keeps every all-reduce's buffer until the backward ends (_all_reduce_state)
        bool wide = false;        // gradients lie in the reduce dtype already
    };

    const Fsdp2Unit& sizesOf(int unit) const { return m_rules.m_units[unitType(unit)]; }
    UnitState& stateOf(int unit) { return m_states[static_cast<std::size_t>(unit)]; }
    bool offload() const { return shape().options.offloadParams; }
    ContentId trained(int unit, Quantity quantity) { return shard(unit, quantity, shape().trained); }
    ContentId computed(int unit) { return shard(unit, Quantity::Parameters, shape().compute); }
    /// Tensor by tensor, the rows padded as they were gathered.
    ContentId unshardedContent(int unit) { return padded(unit, 1, -1, false); }
    /// A part of those over the ranks of reshard_after_forward=int.
    ContentId fewerShard(int unit, bool allParts = false);
    ContentId padded(int unit, std::int64_t parts, GroupId group, bool allParts);

    void drop(BufferId& buffer);

    bool expertsApart() const { return m_rules.m_parallelism.expert > 1; }
    int blockAfter(int unit) const;
    int blockBefore(int unit) const;
    void prefetch(int unit, Phase phase, bool withExperts);
    bool staysUnsharded(int unit) const;

    /// param_group unshard: the all-gather, unless it is under way or done.
    void gather(int unit, Phase phase);
    /// All-gathers and reduce-scatters share a communicator, whose kernels run one after the other in the order of
    /// issue (FSDP, arXiv 2304.11277 sec. 3.3.2).
    void takeTurn(int unit, OpId collective);
    void releaseLastGather(Phase phase);
    /// A unit whose forward is run again is the outermost one of it, but for experts within their block: the all-gather
    /// streams wait for the compute stream before it, and what forward still holds goes behind it.
    bool isForwardRoot(int unit, Pass pass) const { return pass == Pass::Recompute && !isExperts(unit); }
    /// param_group unshard and wait_for_unshard.
    void unshard(int unit, Phase phase, bool inForward);
    /// A shard group of one rank: parameters are copied, cast on the way, and nothing is gathered.
    void copyIn(int unit, Phase phase);
    /// Whether trainable shards are cast to be gathered. torch asks of all, and shardrun trains all.
    bool converts() { return builder().records() ? shape().compute != shape().trained : m_rules.casts(); }
    /// The copy of a shard that is cast; shardrun has none where nothing is cast.
    BufferId castShard(bool casts, BufferClassId bufferClass, ContentId content);

    /// no_sync: gradients stay unsharded, upcast to the reduce dtype one by one.
    void keepWithoutReduction(int unit);
    void reduce(int unit);
    void download(int unit, BufferId gradient, Stream stream);

    const Fsdp2Rules& m_rules;
    std::vector<UnitState> m_states;
    BufferId m_lastGather = -1; // all-gather output that forward still holds (comm_ctx.all_gather_state)
    BufferId m_lastReduceInput = -1;
    OpId m_gatherGate = -1;                       // what the all-gather streams wait for
    OpId m_forwardCopyOut = -1;                   // the last copy-out of this forward
    std::array<OpId, 2> m_lastCollective{-1, -1}; // of the shard group, and of that of experts
    OpId m_lastScatter = -1;
    std::array<OpId, 2> m_lastReduced{-1, -1}; // last operation after a reduction, in its two streams
};

} // namespace shardwright
