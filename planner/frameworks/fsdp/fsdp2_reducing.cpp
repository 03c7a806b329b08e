// What becomes of gradients under FSDP2, from backward to the shards that are kept.

#include "planner/frameworks/fsdp/fsdp2_emission.hpp"

namespace shardwright {

void Fsdp2Emission::postBackward(int unit, const MicroStep& step)
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

void Fsdp2Emission::reduceChunk(const std::vector<int>& units)
{
    for (const int unit : units) {
        op(OpKind::Release, Stream::Compute, Phase::Backward);
        drop(stateOf(unit).unsharded);
        if (sizesOf(unit).trainable > 0)
            reduce(unit);
    }
}

void Fsdp2Emission::leaveBackward()
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

void Fsdp2Emission::dropGradients()
{
    for (UnitState& state : m_states)
        drop(state.gradientShard);
}

void Fsdp2Emission::keepWithoutReduction(int unit)
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

void Fsdp2Emission::reduce(int unit)
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

void Fsdp2Emission::download(int unit, BufferId gradient, Stream stream)
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

} // namespace shardwright
