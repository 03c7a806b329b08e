// How parameters are gathered under FSDP2, used and let go.

#include "planner/frameworks/fsdp/fsdp2_emission.hpp"

#include <algorithm>

namespace shardwright {

void Fsdp2Emission::preForward(int unit, Pass pass)
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

void Fsdp2Emission::postForward(int unit, Pass pass)
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

void Fsdp2Emission::releaseLastGather(Phase phase)
{
    if (m_lastGather < 0)
        return;
    op(OpKind::Release, Stream::Compute, phase);
    m_gatherGate = std::max(m_gatherGate, m_forwardCopyOut);
    drop(m_lastGather);
}

void Fsdp2Emission::preBackward(int unit)
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

ContentId Fsdp2Emission::padded(int unit, std::int64_t parts, GroupId group, bool allParts)
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

int Fsdp2Emission::blockAfter(int unit) const
{
    int next = afterInForward(unit);
    while (next >= 0 && isExperts(next))
        next = afterInForward(next);
    return next;
}

int Fsdp2Emission::blockBefore(int unit) const
{
    int next = beforeInForward(unit);
    while (next >= 0 && isExperts(next))
        next = beforeInForward(next);
    return next;
}

void Fsdp2Emission::prefetch(int unit, Phase phase, bool withExperts)
{
    if (unit < 0)
        return;
    gather(unit, phase);
    const int experts = afterInForward(unit);
    if (withExperts && experts >= 0 && isExperts(experts))
        gather(experts, phase);
}

bool Fsdp2Emission::staysUnsharded(int unit) const
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

void Fsdp2Emission::gather(int unit, Phase phase)
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
    state.gathered = builder().allocate(
        sizes.gathered, fromFewer ? fewerShard(unit, true) : allShards(unit, Quantity::Parameters, shape().compute));
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

void Fsdp2Emission::unshard(int unit, Phase phase, bool inForward)
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

void Fsdp2Emission::copyIn(int unit, Phase phase)
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

ContentId Fsdp2Emission::fewerShard(int unit, bool allParts)
{
    return padded(unit, m_rules.m_options.reshardGroup, m_rules.m_fewer, allParts);
}

BufferId Fsdp2Emission::castShard(bool casts, BufferClassId bufferClass, ContentId content)
{
    return builder().records() && !casts ? -1 : builder().allocate(bufferClass, content);
}

} // namespace shardwright
