// The step under FSDP2: torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py and _fsdp_state.py of PyTorch 2.15.

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
        op(toFewer ? OpKind::Copy : OpKind::Release, Stream::Compute, Phase::Forward);
        if (toFewer)
            state.postForward = builder().allocate(sizesOf(unit).postForward);
        drop(state.unsharded);
    }

    void leaveForward() override
    {
        if (m_lastGather < 0)
            return;
        op(OpKind::Release, Stream::Compute, Phase::Forward);
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
            op(OpKind::Release, Stream::Reduce, Phase::Backward);
            drop(m_lastReduceInput);
        }
    }

    void leaveBackward() override
    {
        op(OpKind::Release, Stream::Reduce, Phase::Backward);
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
        if (offload() && !fromFewer) {
            op(OpKind::CopyToDevice, Stream::HostToDevice, phase);
            builder().move(sizes.uploadCopy);
            cast = builder().allocate(sizes.cast);
            upload = builder().allocate(sizes.upload);
            if (m_rules.casts())
                drop(upload);
            op(OpKind::AllGather, Stream::AllGather, phase);
        } else {
            op(OpKind::AllGather, Stream::AllGather, phase);
            cast = builder().allocate(fromFewer ? sizes.postForwardCast : sizes.cast);
        }
        state.gathered = builder().allocate(sizes.gathered);
        drop(cast);
        drop(upload);
        builder().send(sizes.gather, fromFewer ? m_rules.m_fewer : shape().shardGroup);
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
        op(OpKind::Copy, Stream::Compute, phase);
        if (phase == Phase::Forward)
            drop(m_lastGather); // held until now, so that this unit's copy-in could overlap its gather
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
        if (offload()) {
            op(OpKind::CopyToDevice, Stream::HostToDevice, phase);
            builder().move(sizes.uploadCopy);
            builder().free(builder().allocate(sizes.upload));
        }
        op(OpKind::Copy, Stream::Compute, phase);
        stateOf(unit).unsharded = builder().allocate(sizes.unsharded);
        builder().free(builder().allocate(sizes.cast));
    }

    /// no_sync: gradients stay unsharded, upcast to the reduce dtype one by one.
    void keepWithoutReduction(int unit)
    {
        UnitState& state = stateOf(unit);
        if (shape().reduce == shape().compute || state.wide || gradientsOf(unit).empty())
            return;
        op(OpKind::Copy, Stream::Compute, Phase::Backward);
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
        op(shape().sharded() ? OpKind::ReduceScatter : OpKind::Copy, Stream::Reduce, Phase::Backward);
        drop(m_lastReduceInput);
        m_lastReduceInput = builder().allocate(sizes.reduceInput);
        freeGradients(unit);
        state.wide = false;
        const bool casts = shape().reduce != shape().trained;
        const bool addsUp = state.gradientShard >= 0;
        const bool becomesGradient = !casts && !addsUp && !offload();
        BufferId output = builder().allocate(becomesGradient ? sizes.gradientShard : sizes.reduceOutput);
        if (shape().sharded())
            builder().send(sizes.scatter, shape().shardGroup);
        const bool replicated = shape().replicas.ranks > 1;
        if (replicated) {
            op(OpKind::AllReduce, Stream::Replicate, Phase::Backward);
            builder().send(sizes.replicate, shape().replicaGroup);
        }
        if (becomesGradient) {
            state.gradientShard = output;
            return;
        }
        op(offload() ? OpKind::CopyToHost : OpKind::Copy, offload() ? Stream::DeviceToHost : Stream::Reduce,
           Phase::Backward);
        if (offload())
            builder().move(sizes.downloadCopy);
        if (casts) {
            const BufferId converted = builder().allocate(sizes.gradientShard);
            if (addsUp || offload())
                builder().free(converted);
            else
                state.gradientShard = converted;
        }
        if (replicated)
            state.allReduced = output;
        else
            builder().free(output);
    }

    const Fsdp2Rules& m_rules;
    std::vector<UnitState> m_states;
    BufferId m_lastGather = -1; // all-gather output that forward still holds (comm_ctx.all_gather_state)
    BufferId m_lastReduceInput = -1;
};

Schedule Fsdp2Rules::emit() const
{
    return Fsdp2Emission(*this).run();
}

} // namespace shardwright
