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
            UnitState& state = stateOf(unit);
            op(OpKind::Allocate, Stream::Compute, Phase::Init);
            // shardrun builds nothing but the shards.
            const BufferId whole = builder().records() ? -1 : builder().allocate(sizesOf(unit).init);
            state.parameters = builder().allocate(sizesOf(unit).persistent, trained(unit, Quantity::Parameters));
            if (offload())
                state.hostGradient = builder().allocate(sizesOf(unit).hostGradient, trained(unit, Quantity::Gradients));
            builder().act(Verb::Initialize, {}, {state.parameters, state.hostGradient});
            if (whole >= 0)
                builder().free(whole);
        }
        op(OpKind::Allocate, Stream::Compute, Phase::Init);
        for (int unit = 0; unit < unitCount(); ++unit)
            if (sizesOf(unit).trainable > 0 && keepsMoments()) {
                stateOf(unit).moments = builder().allocate(sizesOf(unit).moments, trained(unit, Quantity::Moments));
                builder().act(Verb::Initialize, {}, {stateOf(unit).moments});
            }
    }

    Content shardOf(int unit) const override
    {
        Content content = wholeContent(Quantity::Parameters, shape().trained, tensorsOf(unit));
        content.layout.cut = Cut::EachRows;
        content.layout.parts = sizesOf(unit).ranks;
        content.group = sizesOf(unit).sharded() ? sizesOf(unit).group : -1;
        return content;
    }

    Stepped stepped() const override
    {
        Stepped all;
        for (int unit = 0; unit < unitCount(); ++unit)
            if (const UnitState& state = m_states[static_cast<std::size_t>(unit)]; sizesOf(unit).trainable > 0) {
                all.gradients.push_back(offload() ? state.hostGradient : state.gradientShard);
                all.parameters.push_back(state.parameters);
                all.moments.push_back(state.moments);
            }
        return all;
    }

    /// state _root_pre_forward: the all-gather streams wait for the optimizer, or whatever the compute stream does.
    void enterRootForward(OpId compute) override
    {
        m_gatherGate = compute;
        m_lastCollective = {-1, -1};
        m_lastReduced = {-1, -1};
        m_forwardCopyOut = -1;
        m_lastScatter = -1;
    }

    bool rootReturnsLoss() const override { return FsdpEmission::rootReturnsLoss() && !m_rules.tiedGroup(); }

    void preForward(int unit, Pass pass) override
    {
        const Phase phase = phaseOf(pass);
        if (isForwardRoot(unit, pass))
            m_gatherGate = op(OpKind::Release, Stream::Compute, phase); // state _root_pre_forward
        unshard(unit, phase, /*inForward=*/true);
        if (expertsApart()) {
            // torchtitan sets each block to fetch the next one and its experts, the embedding to fetch the first
            // block: the host waits in every block for the tokens that experts get.
            prefetch(isExperts(unit) ? -1 : blockAfter(unit), phase, shape().typeOf(unit).name == "block");
        } else if (m_rules.m_options.forwardPrefetch) {
            const int next = afterInForward(unit);
            if (next >= 0)
                gather(next, phase);
        }
    }

    void postForward(int unit, Pass pass) override
    {
        if (pass == Pass::Recompute) { // stays unsharded for its backward (param_group post_forward, is_bw)
            if (isForwardRoot(unit, pass))
                releaseLastGather(phaseOf(pass));
            return;
        }
        UnitState& state = stateOf(unit);
        if (staysUnsharded(unit) || state.unsharded < 0)
            return;
        const bool toFewer = m_rules.reshard() == Reshard::ToFewer;
        const OpId resharding = op(toFewer ? OpKind::Copy : OpKind::Release, Stream::Compute, Phase::Forward);
        if (toFewer) {
            builder().move(sizesOf(unit).toFewer);
            state.postForward = builder().allocate(sizesOf(unit).postForward, fewerShard(unit));
            builder().act(Verb::Move, {state.unsharded}, {state.postForward});
            state.postForwardMade = resharding;
        }
        drop(state.unsharded);
    }

    void leaveForward() override { releaseLastGather(Phase::Forward); }

    void releaseLastGather(Phase phase)
    {
        if (m_lastGather < 0)
            return;
        op(OpKind::Release, Stream::Compute, phase);
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
        unshard(unit, Phase::Backward, /*inForward=*/false);
        if (expertsApart()) {
            prefetch(isExperts(unit) ? -1 : blockBefore(unit), Phase::Backward, shape().typeOf(unit).name == "block");
            return;
        }
        const int next = beforeInForward(unit);
        if (next >= 0)
            gather(next, Phase::Backward);
    }

    void postBackward(int unit, const MicroStep& step) override
    {
        UnitState& state = stateOf(unit);
        if (shape().pipelined()) {
            keepWithoutReduction(unit);
            return;
        }
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

    void reduceChunk(const std::vector<int>& units) override
    {
        for (const int unit : units) {
            op(OpKind::Release, Stream::Compute, Phase::Backward);
            drop(stateOf(unit).unsharded);
            if (sizesOf(unit).trainable > 0)
                reduce(unit);
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
            if (state.gathered >= 0) // a prefetch that nobody used (param_group finalize_backward)
                builder().wait(state.arrived);
            drop(state.gathered);
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
    ContentId fewerShard(int unit, bool allParts = false)
    {
        return padded(unit, m_rules.m_options.reshardGroup, m_rules.m_fewer, allParts);
    }
    ContentId padded(int unit, std::int64_t parts, GroupId group, bool allParts)
    {
        if (!builder().records())
            return -1;
        Content content = as(shardOf(unit), Quantity::Parameters, shape().compute);
        content.layout.parts = parts;
        content.layout.multiple = sizesOf(unit).ranks / parts;
        content.layout.allParts = allParts;
        content.group = group;
        return builder().content(content);
    }

    void drop(BufferId& buffer)
    {
        if (buffer >= 0)
            builder().free(buffer);
        buffer = -1;
    }

    bool expertsApart() const { return m_rules.m_parallelism.expert > 1; }

    int blockAfter(int unit) const
    {
        int next = afterInForward(unit);
        while (next >= 0 && isExperts(next))
            next = afterInForward(next);
        return next;
    }
    int blockBefore(int unit) const
    {
        int next = beforeInForward(unit);
        while (next >= 0 && isExperts(next))
            next = beforeInForward(next);
        return next;
    }
    void prefetch(int unit, Phase phase, bool withExperts)
    {
        if (unit < 0)
            return;
        gather(unit, phase);
        const int experts = afterInForward(unit);
        if (withExperts && experts >= 0 && isExperts(experts))
            gather(experts, phase);
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
        if (state.gathered >= 0 || state.unsharded >= 0 || !sizesOf(unit).sharded())
            return;
        const Fsdp2Unit& sizes = sizesOf(unit);
        const bool fromFewer = state.postForward >= 0;
        BufferId cast = -1;
        BufferId upload = -1;
        BufferId source = -1; // what the all-gather's input is copied from
        const OpId gate = std::max(m_gatherGate, state.postForwardMade);
        if (offload() && !fromFewer) {
            const OpId copied = op(OpKind::CopyToDevice, Stream::HostToDevice, phase);
            builder().move(sizes.uploadCopy);
            builder().wait(gate);
            cast = castShard(converts(), sizes.cast, computed(unit));
            upload = builder().allocate(sizes.upload, trained(unit, Quantity::Parameters));
            builder().act(Verb::Move, {state.parameters}, {upload});
            source = upload;
            if (cast >= 0) {
                builder().act(Verb::Move, {upload}, {cast});
                source = cast;
            }
            if (converts())
                drop(upload);
            copy(Stream::HostToDevice, phase, sizes.copyIn);
            if (!m_rules.m_options.pinMemory)
                builder().blockHost(copied); // a copy from pageable memory returns when it is done
        } else {
            copy(Stream::HostToDevice, phase, fromFewer ? sizes.copyInFromFewer : sizes.copyIn);
            builder().wait(gate);
            source = fromFewer ? state.postForward : state.parameters;
            cast = castShard(converts() && !offload(), fromFewer ? sizes.postForwardCast : sizes.cast,
                             fromFewer ? fewerShard(unit) : computed(unit));
            if (cast >= 0) {
                builder().act(Verb::Move, {source}, {cast});
                source = cast;
            }
        }
        state.gathered =
            builder().allocate(sizes.gathered, fromFewer ? fewerShard(unit, true)
                                                         : allShards(unit, Quantity::Parameters, shape().compute));
        builder().act(Verb::Move, {source}, {state.gathered}); // to its place, where it is gathered from
        drop(cast);
        const OpId copiedIn = builder().lastOp();
        state.arrived = op(OpKind::AllGather, Stream::AllGather, phase);
        builder().wait(copiedIn);
        drop(upload);
        const GroupId group = fromFewer ? m_rules.m_fewer : sizes.group;
        builder().send(sizes.gather, group);
        collect(builder(), Verb::AllGather, group, {state.gathered}, {state.gathered});
        if (!fromFewer)
            takeTurn(unit, state.arrived);
    }

    /// All-gathers and reduce-scatters share a communicator, whose kernels run one after the other in the order of
    /// issue (FSDP, arXiv 2304.11277 sec. 3.3.2).
    void takeTurn(int unit, OpId collective)
    {
        OpId& last = m_lastCollective[isExperts(unit) ? 1 : 0];
        builder().wait(last);
        last = collective;
    }

    /// A unit whose forward is run again is the outermost one of it, but for experts within their block: the all-gather
    /// streams wait for the compute stream before it, and what forward still holds goes behind it.
    bool isForwardRoot(int unit, Pass pass) const { return pass == Pass::Recompute && !isExperts(unit); }

    /// param_group unshard and wait_for_unshard.
    void unshard(int unit, Phase phase, bool inForward)
    {
        UnitState& state = stateOf(unit);
        if (state.unsharded >= 0)
            return;
        if (!sizesOf(unit).sharded()) {
            copyIn(unit, phase);
            return;
        }
        gather(unit, phase);
        const OpId copiedOut = copy(Stream::Compute, phase, sizesOf(unit).copyOut);
        builder().wait(state.arrived);
        // In forward later gathers wait for the copy-out before this one, whose output goes; in backward for this one.
        if (inForward) {
            m_gatherGate = std::max(m_gatherGate, m_forwardCopyOut);
            m_forwardCopyOut = copiedOut;
            drop(m_lastGather);
        } else {
            m_gatherGate = copiedOut;
        }
        state.unsharded = builder().allocate(sizesOf(unit).unsharded, unshardedContent(unit));
        builder().act(Verb::Move, {state.gathered}, {state.unsharded});
        drop(state.postForward);
        if (inForward)
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
        UnitState& state = stateOf(unit);
        BufferId upload = -1; // torch's go one by one; shardrun's as one
        if (offload()) {
            uploaded = op(OpKind::CopyToDevice, Stream::HostToDevice, phase);
            builder().move(sizes.uploadCopy);
            builder().wait(m_gatherGate);
            upload = builder().allocate(sizes.upload, trained(unit, Quantity::Parameters));
            builder().act(Verb::Move, {state.parameters}, {upload});
            if (!builder().records())
                drop(upload);
        }
        copy(Stream::Compute, phase, sizes.copyWhole);
        builder().wait(uploaded);
        if (!m_rules.m_options.pinMemory)
            builder().blockHost(uploaded);
        state.unsharded = builder().allocate(sizes.unsharded, unshardedContent(unit));
        builder().act(Verb::Move, {upload >= 0 ? upload : state.parameters}, {state.unsharded});
        drop(upload);
        if (!builder().records())
            builder().free(builder().allocate(sizes.cast));
    }

    /// Whether trainable shards are cast to be gathered. torch asks of all, and shardrun trains all.
    bool converts() { return builder().records() ? shape().compute != shape().trained : m_rules.casts(); }
    /// The copy of a shard that is cast; shardrun has none where nothing is cast.
    BufferId castShard(bool casts, BufferClassId bufferClass, ContentId content)
    {
        return builder().records() && !casts ? -1 : builder().allocate(bufferClass, content);
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
                m_rules.m_accumulated[static_cast<std::size_t>(type)][static_cast<std::size_t>(gradient.module)],
                gradientContent(gradient.layer, gradient.module, shape().reduce));
            builder().act(Verb::Move, {gradient.buffer}, {wide});
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
        m_lastReduceInput = builder().allocate(sizes.reduceInput, allShards(unit, Quantity::Gradients, shape().reduce));
        builder().act(Verb::Move, gradientBuffers(unit), {m_lastReduceInput});
        freeGradients(unit);
        state.wide = false;
        const bool casts = shape().reduce != shape().trained;
        const bool addsUp = state.gradientShard >= 0;
        const bool becomesGradient = !casts && !addsUp && !offload();
        m_lastScatter = op(sizes.sharded() ? OpKind::ReduceScatter : OpKind::Copy, Stream::Reduce, Phase::Backward);
        builder().wait(copiedIn);
        BufferId output = builder().allocate(becomesGradient ? sizes.gradientShard : sizes.reduceOutput,
                                             shard(unit, Quantity::Gradients, shape().reduce));
        if (sizes.sharded()) {
            builder().send(sizes.scatter, sizes.group);
            collect(builder(), Verb::ReduceScatter, sizes.group, {m_lastReduceInput}, {output});
            takeTurn(unit, m_lastScatter);
        } else {
            builder().move(sizes.reduceAlone);
            builder().act(Verb::Move, {m_lastReduceInput}, {output});
        }
        const bool replicated = shape().replicas.ranks > 1;
        const Stream after = replicated ? Stream::Replicate : Stream::Reduce; // collectives post_reduce_stream
        if (replicated) {
            op(OpKind::AllReduce, Stream::Replicate, Phase::Backward);
            builder().wait(m_lastScatter);
            builder().send(sizes.replicate, shape().replicaGroup);
            collect(builder(), Verb::AllReduce, shape().replicaGroup, {}, {output});
        }
        if (becomesGradient) {
            state.gradientShard = output;
        } else {
            if (casts || addsUp)
                copy(after, Phase::Backward, addsUp && !offload() ? sizes.settleAdding : sizes.settle);
            const BufferId converted =
                casts ? builder().allocate(sizes.gradientShard, trained(unit, Quantity::Gradients)) : -1;
            if (casts)
                builder().act(Verb::Move, {output}, {converted});
            if (offload())
                download(unit, casts ? converted : output, after);
            else if (addsUp)
                builder().act(Verb::Add, {casts ? converted : output}, {state.gradientShard});
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

    void download(int unit, BufferId gradient, Stream stream)
    {
        UnitState& state = stateOf(unit);
        const OpId downloaded = op(OpKind::CopyToHost, stream, Phase::Backward);
        builder().move(sizesOf(unit).downloadCopy);
        builder().act(state.onHost ? Verb::Add : Verb::Move, {gradient}, {state.hostGradient});
        state.onHost = true;
        if (m_rules.m_options.pinMemory)
            return;
        op(OpKind::Release, stream, Phase::Backward);
        builder().blockHost(downloaded);
    }

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

Schedule Fsdp2Rules::emit() const
{
    return Fsdp2Emission(*this).run();
}

} // namespace shardwright
