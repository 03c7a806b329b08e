// The step under FSDP2: torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py and _fsdp_state.py of PyTorch 2.15.

#include <algorithm>
#include <array>

#include "planner/frameworks/fsdp/fsdp2_rules.hpp"
#include "planner/frameworks/fsdp/fsdp_emission.hpp"

namespace shardwright {

class Fsdp2Emission final : public FsdpEmission {
public:
    explicit Fsdp2Emission(const Fsdp2Rules& rules)
        : FsdpEmission(rules.m_sizes, rules.m_shape), m_rules(rules), m_states(rules.m_shape.units.units.size())
    {
    }

protected:
    void initialise() override
    {
        for (int unit = 0; unit < unitCount(); ++unit) {
            if (empty(unit))
                continue;
            op(OpKind::Allocate, Stream::Compute, Phase::Init);
            const BufferId whole = builder().allocate(sizesOf(unit).init);
            builder().allocate(sizesOf(unit).persistent);
            if (shape().options.offloadParams)
                builder().allocate(sizesOf(unit).hostGradient);
            builder().free(whole);
        }
        op(OpKind::Allocate, Stream::Compute, Phase::Init);
        for (int unit = 0; unit < unitCount(); ++unit)
            if (sizesOf(unit).trainable > 0)
                builder().allocate(sizesOf(unit).moments);
    }

    /// state _root_pre_forward: the all-gather streams wait for the optimizer, or whatever the compute stream does.
    void enterRootForward(OpId compute) override
    {
        m_gatherGate = compute;
        m_lastCollective = -1;
        m_lastReduced = {-1, -1};
        m_forwardCopyOut = -1;
        m_lastScatter = -1;
    }

    bool rootReturnsLoss() const override { return FsdpEmission::rootReturnsLoss() && !m_rules.tiedGroup(); }

    void preForward(int unit) override
    {
        unshard(unit, Phase::Forward);
        if (m_rules.m_options.forwardPrefetch) {
            const int next = afterInForward(unit);
            if (next >= 0)
                gather(next, Phase::Forward);
        }
    }

    void postForward(int unit) override
    {
        UnitState& state = stateOf(unit);
        if (staysUnsharded(unit) || state.unsharded < 0)
            return;
        const bool toFewer = m_rules.reshard() == Reshard::ToFewer;
        const OpId resharding = op(toFewer ? OpKind::Copy : OpKind::Release, Stream::Compute, Phase::Forward);
        if (toFewer) {
            builder().move(sizesOf(unit).toFewer);
            state.postForward = builder().allocate(sizesOf(unit).postForward);
            state.postForwardMade = resharding;
        }
        drop(state.unsharded);
    }

    void leaveForward() override
    {
        if (m_lastGather < 0)
            return;
        op(OpKind::Release, Stream::Compute, Phase::Forward);
        m_gatherGate = std::max(m_gatherGate, m_forwardCopyOut);
        drop(m_lastGather);
    }

    void preBackward(int unit) override
    {
        // The hook hangs on the unit's output, which has a gradient only where something before it trains.
        const bool tokensOnly = shape().units.units[static_cast<std::size_t>(unit)].firstLayer == 0 && !isRoot(unit) &&
                                shape().typeOf(unit).trainable == 0;
        if (tokensOnly)
            return;
        unshard(unit, Phase::Backward);
        const int next = beforeInForward(unit);
        if (next >= 0)
            gather(next, Phase::Backward);
    }

    void postBackward(int unit, const MicroStep& step) override
    {
        UnitState& state = stateOf(unit);
        if (state.unsharded >= 0) {
            op(OpKind::Release, Stream::Compute, Phase::Backward);
            drop(state.unsharded);
        }
        if (!step.last && m_rules.m_options.noSync) {
            keepWithoutReduction(unit);
            return;
        }
        if (sizesOf(unit).trainable > 0) {
            reduce(unit);
        } else if (m_lastReduceInput >= 0) {
            op(OpKind::Release, Stream::Compute, Phase::Backward);
            builder().wait(m_lastScatter);
            drop(m_lastReduceInput);
        }
    }

    /// state _root_post_backward_final_callback: the compute stream waits for every reduction, the host for the
    /// gradients that come to it.
    void leaveBackward() override
    {
        op(OpKind::Release, Stream::Compute, Phase::Backward);
        builder().wait(m_lastScatter);
        for (const OpId reduced : m_lastReduced) {
            if (offload())
                builder().blockHost(reduced);
            else
                builder().wait(reduced);
        }
        drop(m_lastReduceInput);
        for (UnitState& state : m_states) {
            drop(state.gathered); // a prefetch that nobody used
            drop(state.allReduced);
        }
    }

    void dropGradients() override
    {
        for (UnitState& state : m_states)
            drop(state.gradientShard);
    }

private:
    struct UnitState {
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

    void drop(BufferId& buffer)
    {
        if (buffer >= 0)
            builder().free(buffer);
        buffer = -1;
    }

    bool staysUnsharded(int unit) const
    {
        const UnitType& type = shape().typeOf(unit);
        if (m_rules.reshard() == Reshard::Never || isRoot(unit) || type.name == "final norm and head")
            return true;
        if (!m_rules.m_options.keepLastBlock || type.name != "block")
            return false;
        for (int later = unit + 1; later < unitCount(); ++later)
            if (shape().typeOf(later).name == "block")
                return false;
        return true;
    }

    /// param_group unshard: the all-gather, unless it is under way or done.
    void gather(int unit, Phase phase)
    {
        UnitState& state = stateOf(unit);
        if (state.gathered >= 0 || state.unsharded >= 0 || !shape().sharded())
            return;
        const Fsdp2Unit& sizes = sizesOf(unit);
        const bool fromFewer = state.postForward >= 0;
        BufferId cast = -1;
        BufferId upload = -1;
        const OpId gate = std::max(m_gatherGate, state.postForwardMade);
        if (offload() && !fromFewer) {
            const OpId copied = op(OpKind::CopyToDevice, Stream::HostToDevice, phase);
            builder().move(sizes.uploadCopy);
            builder().wait(gate);
            cast = builder().allocate(sizes.cast);
            upload = builder().allocate(sizes.upload);
            if (m_rules.casts())
                drop(upload);
            copy(Stream::HostToDevice, phase, sizes.copyIn);
            if (!m_rules.m_options.pinMemory)
                builder().blockHost(copied); // a copy from pageable memory returns when it is done
        } else {
            copy(Stream::HostToDevice, phase, fromFewer ? sizes.copyInFromFewer : sizes.copyIn);
            builder().wait(gate);
            cast = builder().allocate(fromFewer ? sizes.postForwardCast : sizes.cast);
        }
        state.gathered = builder().allocate(sizes.gathered);
        drop(cast);
        const OpId copiedIn = builder().lastOp();
        state.arrived = op(OpKind::AllGather, Stream::AllGather, phase);
        builder().wait(copiedIn);
        drop(upload);
        builder().send(sizes.gather, fromFewer ? m_rules.m_fewer : shape().shardGroup);
        if (!fromFewer)
            takeTurn(state.arrived);
    }

    /// All-gathers and reduce-scatters share a communicator, whose kernels run one after the other in the order of
    /// issue (FSDP, arXiv 2304.11277 sec. 3.3.2).
    void takeTurn(OpId collective)
    {
        builder().wait(m_lastCollective);
        m_lastCollective = collective;
    }

    /// param_group unshard and wait_for_unshard.
    void unshard(int unit, Phase phase)
    {
        UnitState& state = stateOf(unit);
        if (state.unsharded >= 0)
            return;
        if (!shape().sharded()) {
            copyIn(unit, phase);
            return;
        }
        gather(unit, phase);
        const OpId copiedOut = copy(Stream::Compute, phase, sizesOf(unit).copyOut);
        builder().wait(state.arrived);
        // In forward later gathers wait for the copy-out before this one, whose output goes; in backward for this one.
        if (phase == Phase::Forward) {
            m_gatherGate = std::max(m_gatherGate, m_forwardCopyOut);
            m_forwardCopyOut = copiedOut;
            drop(m_lastGather);
        } else {
            m_gatherGate = copiedOut;
        }
        state.unsharded = builder().allocate(sizesOf(unit).unsharded);
        drop(state.postForward);
        if (phase == Phase::Forward)
            m_lastGather = state.gathered;
        else
            builder().free(state.gathered);
        state.gathered = -1;
    }

    /// A shard group of one rank: parameters are copied, cast on the way, and nothing is gathered.
    void copyIn(int unit, Phase phase)
    {
        const Fsdp2Unit& sizes = sizesOf(unit);
        OpId uploaded = -1;
        if (offload()) {
            uploaded = op(OpKind::CopyToDevice, Stream::HostToDevice, phase);
            builder().move(sizes.uploadCopy);
            builder().wait(m_gatherGate);
            builder().free(builder().allocate(sizes.upload));
        }
        copy(Stream::Compute, phase, sizes.copyWhole);
        builder().wait(uploaded);
        if (!m_rules.m_options.pinMemory)
            builder().blockHost(uploaded);
        stateOf(unit).unsharded = builder().allocate(sizes.unsharded);
        builder().free(builder().allocate(sizes.cast));
    }

    /// no_sync: gradients stay unsharded, upcast to the reduce dtype one by one.
    void keepWithoutReduction(int unit)
    {
        UnitState& state = stateOf(unit);
        if (shape().reduce == shape().compute || state.wide || gradientsOf(unit).empty())
            return;
        copy(Stream::Compute, Phase::Backward, sizesOf(unit).widen);
        for (ModuleGradient& gradient : gradientsOf(unit)) {
            const int type = shape().model.layers[static_cast<std::size_t>(gradient.layer)];
            const BufferId wide = builder().allocate(
                m_rules.m_accumulated[static_cast<std::size_t>(type)][static_cast<std::size_t>(gradient.module)]);
            builder().free(gradient.buffer);
            gradient.buffer = wide;
        }
        state.wide = true;
    }

    void reduce(int unit)
    {
        UnitState& state = stateOf(unit);
        const Fsdp2Unit& sizes = sizesOf(unit);
        // The copy-in runs in the compute stream, which first waits until the input of the reduce-scatter before may go
        // (comm_ctx.reduce_scatter_state).
        const OpId copiedIn = copy(Stream::Compute, Phase::Backward, sizes.reduceCopyIn);
        builder().wait(m_lastScatter);
        drop(m_lastReduceInput);
        m_lastReduceInput = builder().allocate(sizes.reduceInput);
        freeGradients(unit);
        state.wide = false;
        const bool casts = shape().reduce != shape().trained;
        const bool addsUp = state.gradientShard >= 0;
        const bool becomesGradient = !casts && !addsUp && !offload();
        m_lastScatter = op(shape().sharded() ? OpKind::ReduceScatter : OpKind::Copy, Stream::Reduce, Phase::Backward);
        builder().wait(copiedIn);
        BufferId output = builder().allocate(becomesGradient ? sizes.gradientShard : sizes.reduceOutput);
        if (shape().sharded()) {
            builder().send(sizes.scatter, shape().shardGroup);
            takeTurn(m_lastScatter);
        } else {
            builder().move(sizes.reduceAlone);
        }
        const bool replicated = shape().replicas.ranks > 1;
        const Stream after = replicated ? Stream::Replicate : Stream::Reduce; // collectives post_reduce_stream
        if (replicated) {
            op(OpKind::AllReduce, Stream::Replicate, Phase::Backward);
            builder().wait(m_lastScatter);
            builder().send(sizes.replicate, shape().replicaGroup);
        }
        if (becomesGradient) {
            state.gradientShard = output;
        } else {
            if (casts || addsUp)
                copy(after, Phase::Backward, addsUp && !offload() ? sizes.settleAdding : sizes.settle);
            const BufferId converted = casts ? builder().allocate(sizes.gradientShard) : -1;
            if (offload())
                download(sizes, after);
            if (casts && (addsUp || offload()))
                builder().free(converted);
            else if (casts)
                state.gradientShard = converted;
            if (replicated)
                state.allReduced = output;
            else
                builder().free(output);
        }
        m_lastReduced[replicated ? 1 : 0] = builder().lastOp();
    }

    void download(const Fsdp2Unit& sizes, Stream stream)
    {
        const OpId downloaded = op(OpKind::CopyToHost, stream, Phase::Backward);
        builder().move(sizes.downloadCopy);
        if (m_rules.m_options.pinMemory)
            return;
        op(OpKind::Release, stream, Phase::Backward);
        builder().blockHost(downloaded);
    }

    const Fsdp2Rules& m_rules;
    std::vector<UnitState> m_states;
    BufferId m_lastGather = -1; // all-gather output that forward still holds (comm_ctx.all_gather_state)
    BufferId m_lastReduceInput = -1;
    OpId m_gatherGate = -1;     // what the all-gather streams wait for
    OpId m_forwardCopyOut = -1; // the last copy-out of this forward
    OpId m_lastCollective = -1; // of the shard group
    OpId m_lastScatter = -1;
    std::array<OpId, 2> m_lastReduced{-1, -1}; // last operation after a reduction, in its two streams
};

Schedule Fsdp2Rules::emit() const
{
    return Fsdp2Emission(*this).run();
}

} // namespace shardwright
