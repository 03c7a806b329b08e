// The step under FSDP1: torch/distributed/fsdp/_runtime_utils.py and _flat_param.py of PyTorch 2.15.

#include <deque>

#include "planner/frameworks/fsdp/fsdp1_rules.hpp"
#include "planner/frameworks/fsdp/fsdp_emission.hpp"

namespace shardwright {

namespace {

constexpr std::size_t kMaximumAllGathersInFlight = 2; // _limiter_utils.py _max_num_inflight_all_gathers

} // namespace

class Fsdp1Emission final : public FsdpEmission {
public:
    explicit Fsdp1Emission(const Fsdp1Rules& rules)
        : FsdpEmission(rules.m_sizes, rules.m_shape), m_rules(rules), m_states(rules.m_shape.units.units.size())
    {
    }

protected:
    /// A prefetched unit makes its views of the flat parameter before the forward of the unit that prefetches it, and
    /// autograd runs backward in the opposite order: their gradients are put together after that unit's backward.
    bool postponesPostBackward() const override { return options().forwardPrefetch; }

    void initialise() override
    {
        for (int unit = unitCount() - 1; unit >= 0; --unit) { // children are wrapped before the root
            if (empty(unit))
                continue;
            const Fsdp1Unit& sizes = sizesOf(unit);
            UnitState& state = stateOf(unit);
            op(OpKind::Allocate, Stream::Compute, Phase::Init);
            const bool wraps = !builder().records(); // shardrun builds nothing but the shards
            const BufferId whole = wraps ? builder().allocate(sizes.initModule) : -1;
            const BufferId flat = wraps ? builder().allocate(sizes.initFlat) : -1;
            if (wraps)
                builder().free(whole);
            state.parameters = builder().allocate(sizes.persistent, trained(unit, Quantity::Parameters));
            builder().act(Verb::Initialize, {}, {state.parameters});
            if (wraps)
                builder().free(flat);
            if (offload()) {
                state.hostGradient = builder().allocate(sizes.hostGradient, trained(unit, Quantity::Gradients));
                builder().act(Verb::Initialize, {}, {state.hostGradient});
            }
        }
        op(OpKind::Allocate, Stream::Compute, Phase::Init);
        for (int unit = 0; unit < unitCount(); ++unit)
            if (sizesOf(unit).trains && keepsMoments()) {
                stateOf(unit).moments = builder().allocate(sizesOf(unit).moments, trained(unit, Quantity::Moments));
                builder().act(Verb::Initialize, {}, {stateOf(unit).moments});
            }
    }

    Content shardOf(int unit) const override
    {
        Content content = wholeContent(Quantity::Parameters, shape().trained, tensorsOf(unit));
        content.layout.cut = Cut::Flat;
        content.layout.parts = shape().shardRanks;
        content.layout.align = m_rules.alignment();
        content.layout.multiple = options().useOrigParams ? m_rules.m_processGroup / shape().shardRanks : 1;
        content.group = shape().sharded() ? shape().shardGroup : -1;
        return content;
    }

    Stepped stepped() const override
    {
        Stepped all;
        for (int unit = 0; unit < unitCount(); ++unit)
            if (const UnitState& state = m_states[static_cast<std::size_t>(unit)];
                !empty(unit) && sizesOf(unit).trains) {
                all.gradients.push_back(offload() ? state.hostGradient : state.gradientShard);
                all.parameters.push_back(state.parameters);
                all.moments.push_back(state.moments);
            }
        return all;
    }

    /// runtime _root_pre_forward, _wait_for_computation_stream: the unshard streams wait for the compute stream, here
    /// only.
    void enterRootForward(OpId compute) override
    {
        m_rootForward = compute;
        m_lastUnshard = m_awaited = m_lastCollective = m_lastReduced = -1;
    }

    void preForward(int unit, Pass pass) override
    {
        if (!stateOf(unit).prefetched) // by a backward, for one that is recomputed
            unshard(unit, phaseOf(pass));
        waitForUnshard(phaseOf(pass));
        // runtime _prefetch_handle: only the root's forward asks for forward prefetches (_needs_pre_forward_unshard).
        if (!options().forwardPrefetch || pass == Pass::Recompute)
            return;
        const int next = afterInForward(unit);
        if (next >= 0 && stateOf(next).unsharded < 0)
            unshard(next, Phase::Forward);
    }

    void postForward(int unit, Pass pass) override
    {
        if (m_rules.reshardsAfterForward() || !shape().sharded()) // NO_SHARD frees its low-precision copy
            reshard(unit, phaseOf(pass));
        stateOf(unit).prefetched = false; // runtime _reshard
    }

    void leaveForward() override
    {
        if (!shape().sharded())
            reshard(kRootUnit, Phase::Forward);
    }

    void preBackward(int unit) override
    {
        if (!stateOf(unit).prefetched)
            unshard(unit, Phase::Backward);
        waitForUnshard(Phase::Backward);
        if (options().backwardPrefetch == BackwardPrefetch::Pre)
            prefetchBefore(unit);
    }

    void postBackward(int unit, const MicroStep& step) override
    {
        const bool sync = step.last || !options().noSync;
        const OpId flattened = flattenGradients(unit);
        // A heuristic of runtime _should_free_in_backward: strategies that keep parameters after forward keep them
        // between the micro-steps of no_sync too.
        if (sync || m_rules.reshardsAfterForward() || !shape().sharded())
            reshard(unit, Phase::Backward);
        if (options().backwardPrefetch == BackwardPrefetch::Post)
            prefetchBefore(unit);
        if (sync && sizesOf(unit).trains)
            reduce(unit, flattened);
    }

    /// runtime _post_backward_final_callback: the compute stream waits for every reduction; under CPUOffload the host
    /// waits for the compute stream. What other streams still used is free now.
    void leaveBackward() override
    {
        op(OpKind::Release, Stream::Compute, Phase::Backward);
        if (offload())
            builder().blockHost(m_lastReduced);
        else
            builder().wait(m_lastReduced);
        reclaimUsed();
        reclaimFlat();
        while (!m_freed.empty())
            reclaimOldest();
        for (UnitState& state : m_states)
            state.prefetched = false;
    }

    void dropGradients() override
    {
        for (UnitState& state : m_states)
            if (state.gradientShard >= 0)
                builder().free(state.gradientShard);
    }

private:
    struct UnitState {
        BufferId parameters = -1;
        BufferId moments = -1;
        BufferId hostGradient = -1;
        BufferId unsharded = -1;
        BufferId flatGradient = -1;
        BufferId gradientShard = -1;
        bool prefetched = false; // for this backward
    };

    const Fsdp1Unit& sizesOf(int unit) const { return m_rules.m_units[unitType(unit)]; }
    UnitState& stateOf(int unit) { return m_states[static_cast<std::size_t>(unit)]; }
    const Fsdp1Options& options() const { return m_rules.m_options; }
    bool offload() const { return options().offloadParams; }
    ContentId trained(int unit, Quantity quantity) { return shard(unit, quantity, shape().trained); }
    ContentId computed(int unit) { return shard(unit, Quantity::Parameters, shape().compute); }
    /// The whole flat gradient; where it is padded for the reduction later, not yet.
    ContentId flatContent(int unit, DType dtype)
    {
        if (!builder().records())
            return -1;
        Content content = as(shardOf(unit), Quantity::Gradients, dtype);
        if (!sizesOf(unit).padded)
            return builder().content(shape().sharded() ? allPartsOf(content) : content);
        content.layout.parts = 1;
        content.group = -1;
        return builder().content(content);
    }

    /// The compute stream waits for all that the unshard stream has been given.
    void waitForUnshard(Phase phase)
    {
        if (m_lastUnshard == m_awaited)
            return;
        op(OpKind::Release, Stream::Compute, phase);
        builder().wait(m_lastUnshard);
        m_awaited = m_lastUnshard;
    }

    /// All-gathers and reduce-scatters share a communicator, whose kernels run one after the other in the order of
    /// issue (FSDP, arXiv 2304.11277 sec. 3.3.2).
    void takeTurn(OpId collective)
    {
        builder().wait(m_lastCollective);
        m_lastCollective = collective;
    }

    /// runtime _FreeEventQueue: the host waits until the oldest freed unit is really free before it issues a third
    /// all-gather.
    void limitAllGathers()
    {
        if (!options().limitAllGathers || m_freed.size() < kMaximumAllGathersInFlight)
            return;
        builder().blockHost(m_freed.front().freedBy);
        reclaimOldest();
    }
    void reclaimOldest()
    {
        builder().reclaim(m_freed.front().buffer);
        m_freed.pop_front();
    }
    void reclaimUsed()
    {
        for (const BufferId buffer : m_usedByGather)
            builder().reclaim(buffer);
        m_usedByGather.clear();
    }
    void reclaimFlat()
    {
        if (m_usedByReduce >= 0)
            builder().reclaim(m_usedByReduce);
        m_usedByReduce = -1;
    }

    /// Made in the pre-unshard stream and read in the unshard stream (record_stream).
    void freeAfterGather(BufferId buffer)
    {
        builder().freeDeferred(buffer);
        m_usedByGather.push_back(buffer);
    }

    /// flat_param pre_unshard under CPUOffload: the shard in the dtype it is gathered in, on the GPU.
    BufferId upload(int unit, Phase phase)
    {
        const Fsdp1Unit& sizes = sizesOf(unit);
        op(OpKind::CopyToDevice, Stream::HostToDevice, phase);
        builder().wait(m_rootForward);
        reclaimUsed();
        builder().move(sizes.uploadCopy);
        const BufferId low = sizes.casts ? builder().allocate(sizes.lowPrecision, computed(unit)) : -1;
        const BufferId whole = builder().allocate(sizes.upload, trained(unit, Quantity::Parameters));
        builder().act(Verb::Move, {stateOf(unit).parameters}, {whole});
        if (low < 0)
            return whole;
        copy(Stream::HostToDevice, phase, sizes.cast);
        builder().act(Verb::Move, {whole}, {low});
        builder().free(whole);
        return low;
    }

    void unshard(int unit, Phase phase)
    {
        UnitState& state = stateOf(unit);
        const Fsdp1Unit& sizes = sizesOf(unit);
        if (state.unsharded >= 0) {
            if (offload() && phase == Phase::Backward)
                freeAfterGather(upload(unit, phase)); // in vain: pre_unshard does not ask whether it is needed
            return;
        }
        if (!shape().sharded()) {
            useWholeShard(unit, phase);
            return;
        }
        BufferId source = -1;
        OpId prepared = -1; // in the pre-unshard stream
        if (offload()) {
            source = upload(unit, phase);
            prepared = builder().lastOp();
        } else if (sizes.casts) {
            prepared = copy(Stream::HostToDevice, phase, sizes.cast);
            builder().wait(m_rootForward);
            reclaimUsed();
            source = builder().allocate(sizes.lowPrecision, computed(unit));
            builder().act(Verb::Move, {state.parameters}, {source});
        }
        m_lastUnshard = op(OpKind::AllGather, Stream::AllGather, phase);
        builder().wait(prepared < 0 ? m_rootForward : prepared);
        limitAllGathers();
        state.unsharded = builder().allocate(sizes.unsharded, allShards(unit, Quantity::Parameters, shape().compute));
        builder().send(sizes.gather, shape().shardGroup);
        collect(builder(), Verb::AllGather, shape().shardGroup, {source >= 0 ? source : state.parameters},
                {state.unsharded});
        takeTurn(m_lastUnshard);
        if (source >= 0)
            freeAfterGather(source);
    }

    /// NO_SHARD: layers use the flat parameter itself, or its copy in the compute dtype or on the GPU.
    void useWholeShard(int unit, Phase phase)
    {
        const Fsdp1Unit& sizes = sizesOf(unit);
        if (!sizes.casts && !offload())
            return;
        if (offload()) {
            stateOf(unit).unsharded = upload(unit, phase);
        } else {
            copy(Stream::HostToDevice, phase, sizes.cast);
            builder().wait(m_rootForward);
            stateOf(unit).unsharded = builder().allocate(sizes.lowPrecision, computed(unit));
            builder().act(Verb::Move, {stateOf(unit).parameters}, {stateOf(unit).unsharded});
        }
        m_lastUnshard = builder().lastOp();
    }

    void reshard(int unit, Phase phase)
    {
        UnitState& state = stateOf(unit);
        if (state.unsharded < 0)
            return;
        const OpId freedBy = op(OpKind::Release, Stream::Compute, phase);
        builder().freeDeferred(state.unsharded);
        m_freed.push_back({state.unsharded, freedBy});
        state.unsharded = -1;
    }

    void prefetchBefore(int unit)
    {
        const int next = beforeInForward(unit);
        if (next < 0 || inBackward(next) || stateOf(next).prefetched)
            return;
        unshard(next, Phase::Backward);
        stateOf(next).prefetched = true;
    }

    /// Autograd's split backward concatenates the modules' gradients once all of them are there.
    OpId flattenGradients(int unit)
    {
        UnitState& state = stateOf(unit);
        const Fsdp1Unit& sizes = sizesOf(unit);
        if (!sizes.trains)
            return -1;
        const OpId flattened =
            copy(Stream::Compute, Phase::Backward, state.flatGradient >= 0 ? sizes.flattenAdding : sizes.flatten);
        const BufferId zeros = builder().records() ? -1 : builder().allocate(sizes.zeroGradient); // nothing is frozen
        const BufferId flat = builder().allocate(sizes.flatGradient, flatContent(unit, shape().compute));
        builder().act(Verb::Move, gradientBuffers(unit), {flat});
        if (zeros >= 0)
            builder().free(zeros);
        freeGradients(unit);
        if (state.flatGradient >= 0) {
            builder().act(Verb::Add, {flat}, {state.flatGradient}); // to what no_sync left
            builder().free(flat);
        } else {
            state.flatGradient = flat;
        }
        return flattened;
    }

    /// Casts and pads the flat gradient in the post-backward stream; what autograd made is free once that has run.
    BufferId reduceInput(int unit, bool staysAsGradient)
    {
        UnitState& state = stateOf(unit);
        const Fsdp1Unit& sizes = sizesOf(unit);
        BufferId input = state.flatGradient;
        state.flatGradient = -1;
        const BufferId autograd = input;
        const auto replaceBy = [&](BufferClassId with, ContentId content) {
            const BufferId next = builder().allocate(with, content);
            builder().act(Verb::Move, {input}, {next});
            if (input != autograd)
                builder().free(input);
            input = next;
        };
        if (shape().reduce != shape().compute)
            replaceBy(staysAsGradient ? sizes.gradientShard : sizes.reduceCast, flatContent(unit, shape().reduce));
        if (sizes.padded)
            replaceBy(sizes.reducePadded, allShards(unit, Quantity::Gradients, shape().reduce));
        if (input != autograd)
            freeAutogradGradient(autograd);
        return input;
    }
    void freeAutogradGradient(BufferId autograd)
    {
        builder().freeDeferred(autograd);
        m_usedByReduce = autograd;
    }

    /// `ready`: what the post-backward stream waits for.
    void reduce(int unit, OpId ready)
    {
        UnitState& state = stateOf(unit);
        const Fsdp1Unit& sizes = sizesOf(unit);
        const bool sharded = shape().sharded();
        const bool casts = shape().reduce != shape().trained;
        const bool addsUp = state.gradientShard >= 0;
        const bool becomesGradient = !casts && !addsUp && !offload();
        const bool hybrid = sharded && shape().replicas.ranks > 1;
        copy(Stream::Reduce, Phase::Backward, sizes.reduceInput);
        builder().wait(ready);
        reclaimFlat();
        const BufferId flat = state.flatGradient;
        const BufferId input = reduceInput(unit, becomesGradient && !sharded);
        BufferId output = input;
        const OpId scattered = op(sharded ? OpKind::ReduceScatter : OpKind::AllReduce, Stream::Reduce, Phase::Backward);
        if (sharded) {
            output = builder().allocate(becomesGradient ? sizes.gradientShard : sizes.reduceOutput,
                                        shard(unit, Quantity::Gradients, shape().reduce));
            builder().send(sizes.scatter, shape().shardGroup);
            collect(builder(), Verb::ReduceScatter, shape().shardGroup, {input}, {output});
            takeTurn(scattered);
            if (input == flat)
                freeAutogradGradient(flat);
            else
                builder().free(input);
            if (hybrid) {
                op(OpKind::AllReduce, Stream::Replicate, Phase::Backward);
                builder().wait(scattered);
                builder().send(sizes.replicate, shape().replicaGroup);
                collect(builder(), Verb::AllReduce, shape().replicaGroup, {}, {output});
            }
        } else {
            builder().send(sizes.scatter, shape().replicaGroup);
            collect(builder(), Verb::AllReduce, shape().replicaGroup, {}, {output});
        }
        // What follows stays in the stream of the last collective.
        const Stream after = hybrid ? Stream::Replicate : Stream::Reduce;
        copy(after, Phase::Backward, addsUp ? sizes.settleAdding : sizes.settle);
        m_lastReduced = builder().lastOp();
        if (becomesGradient) {
            state.gradientShard = output;
            return;
        }
        BufferId reduced = -1;
        if (casts) {
            reduced = output;
            output = builder().allocate(sizes.gradientShard, trained(unit, Quantity::Gradients));
            builder().act(Verb::Move, {reduced}, {output});
        }
        if (offload())
            download(unit, output, after);
        else if (addsUp)
            builder().act(Verb::Add, {output}, {state.gradientShard});
        if (casts)
            builder().free(reduced);
        if (offload() || addsUp)
            builder().free(output);
        else
            state.gradientShard = output;
    }

    /// runtime _offload_grad: asynchronous unless parameters are whole.
    void download(int unit, BufferId gradient, Stream stream)
    {
        m_lastReduced = op(OpKind::CopyToHost, stream, Phase::Backward);
        builder().move(sizesOf(unit).downloadCopy);
        builder().act(Verb::Move, {gradient}, {stateOf(unit).hostGradient});
        if (shape().sharded())
            return;
        op(OpKind::Release, stream, Phase::Backward);
        builder().blockHost(m_lastReduced);
    }

    /// Unsharded parameters that the program let go of while the compute stream may still use them.
    struct Freed {
        BufferId buffer;
        OpId freedBy;
    };

    const Fsdp1Rules& m_rules;
    std::vector<UnitState> m_states;
    std::deque<Freed> m_freed;            // oldest first
    std::vector<BufferId> m_usedByGather; // shards that the last all-gather reads
    BufferId m_usedByReduce = -1;         // the flat gradient that the last reduction reads
    OpId m_rootForward = -1;              // where the compute stream stood when the root's forward began
    OpId m_lastUnshard = -1;              // last operation of the unshard stream ...
    OpId m_awaited = -1;                  // ... and that which the compute stream waits for already
    OpId m_lastCollective = -1;           // of the shard group
    OpId m_lastReduced = -1;              // last operation after a reduction
};

Schedule Fsdp1Rules::emit() const
{
    return Fsdp1Emission(*this).run();
}

} // namespace shardwright
