// What ZeRO-3 gathers, ahead of its use or at it, and lets go of.

#include "planner/frameworks/deepspeed/zero3_emission.hpp"

#include <algorithm>

namespace shardwright {

namespace {

constexpr std::size_t kMostOngoingFetches = 2; // coordinator __max_ongoing_fetch_events

} // namespace

void Zero3Emission::play(std::uint32_t end)
{
    for (; m_command < end; ++m_command) {
        const GatherCommand& command = m_trace->commands[m_command];
        const auto index = static_cast<std::size_t>(command.index);
        switch (command.kind) {
        case GatherCommand::Kind::Gather: gather(index); break;
        case GatherCommand::Kind::Wait: wait(index); break;
        case GatherCommand::Kind::DropFlat: dropFlat(index); break;
        case GatherCommand::Kind::Free: freePiece(index); break;
        case GatherCommand::Kind::MakeSecondary: makeSecondary(index); break;
        }
    }
}

const Zero3Rules::CallClasses& Zero3Emission::classesOf(std::size_t call) const
{
    return m_rules.m_calls[static_cast<std::size_t>(m_trace->calls[call].kind)];
}

void Zero3Emission::gather(std::size_t index)
{
    const GatherCall& call = m_trace->calls[index];
    const Zero3Rules::CallClasses& classes = classesOf(index);
    BufferId upload = -1;
    BufferId flat = -1;
    OpId read = -1;
    if (!call.secondary && m_rules.paramOn(OffloadDevice::Nvme))
        read = readShards(index);
    if (!m_rules.paramOn(OffloadDevice::None)) {
        const Zero3Rules::GatherClasses& sizes = classes.of(call);
        m_lastFetch = copy(OpKind::CopyToDevice, m_fetchStream, m_phase, sizes.uploadCopy);
        m_builder.wait(m_begun);
        m_builder.wait(read);
        upload = m_record.allocate(sizes.upload, Quantity::Parameters, m_rules.m_dtypes.model,
                                   records() ? partsOf(call, false) : Layout{}, groupOf(call));
        // A coalesced gather copies the shards straight into its flat buffer.
        if (classes.coalesced && !quantized())
            flat = allocateFlat(call, classes);
        m_record.move(call.secondary ? secondariesOf(call) : hostSources(), {upload, flat});
        forgetShards(call);
        if (!m_rules.m_options.paramPinMemory)
            block(m_lastFetch, m_phase);
    }
    BufferId input = -1;
    if (quantized())
        input = quantise(call, classes, upload);
    // The communicator has a stream of its own, which waits for the stream that the gather is issued in.
    const OpId issuedIn = m_fetchStream == Stream::Compute ? m_builder.lastOp() : m_lastFetch;
    const OpId gathering = m_builder.op(OpKind::AllGather, Stream::AllGather, m_phase, m_layer);
    m_gatherOps[index] = gathering;
    m_builder.wait(issuedIn);
    if (!call.secondary)
        takeTurn(gathering);
    if (flat < 0)
        flat = allocateFlat(call, classes);
    m_builder.send(classes.of(call).gather, groupOf(call));
    if (records())
        fill(call, classes, flat, input, upload);
    drop(input);
    drop(upload);
    if (classes.coalesced || quantized())
        m_flats[index] = flat;
    else
        m_pieces[static_cast<std::size_t>(call.firstPiece)] = flat; // the parameter is a view of it
}

Zero3Emission::Tensors Zero3Emission::tensorsOfCall(const GatherCall& call) const
{
    Tensors tensors;
    for (std::int32_t i = call.firstPiece; i < call.endPiece; ++i) {
        const Tensors& more = m_trace->pieces[static_cast<std::size_t>(i)].tensors;
        tensors.insert(tensors.end(), more.begin(), more.end());
    }
    return tensors;
}

Layout Zero3Emission::partsOf(const GatherCall& call, bool all) const
{
    if (call.secondary)
        return secondaryOf(tensorsOfCall(call), all);
    return all ? gathered(tensorsOfCall(call)) : shardsOf(tensorsOfCall(call));
}

Zero3Emission::Buffers Zero3Emission::ownParts(const GatherCall& call, BufferId upload) const
{
    if (!m_rules.paramOn(OffloadDevice::None))
        return {upload};
    return call.secondary ? secondariesOf(call) : Buffers{m_shards};
}

Zero3Emission::Buffers Zero3Emission::secondariesOf(const GatherCall& call) const
{
    Buffers own;
    for (std::int32_t i = call.firstPiece; i < call.endPiece; ++i)
        own.push_back(m_secondaries[static_cast<std::size_t>(m_trace->pieces[static_cast<std::size_t>(i)].unit)]);
    return own;
}

BufferId Zero3Emission::quantise(const GatherCall& call, const Zero3Rules::CallClasses& classes, BufferId& upload)
{
    const Zero3Rules::GatherClasses& sizes = classes.of(call);
    m_lastFetch = copy(OpKind::Quantize, m_fetchStream, m_phase, sizes.quantise);
    m_builder.wait(m_begun);
    Buffers own = ownParts(call, upload);
    const Layout parts = records() ? partsOf(call, false) : Layout{};
    BufferId joined =
        m_record.allocate(sizes.joined, Quantity::Parameters, m_rules.m_dtypes.model, parts, groupOf(call));
    if (m_record.exists(sizes.joined)) {
        m_record.move(own, {joined});
        own = {joined};
        drop(upload);
    }
    const BufferId input = m_record.allocate(sizes.quantized, quantizedContent(parts, groupOf(call)));
    m_record.move(own, {input});
    drop(joined);
    drop(upload);
    return input;
}

Content Zero3Emission::quantizedContent(Layout layout, GroupId group) const
{
    Content content;
    content.dtype = m_rules.m_dtypes.model;
    content.layout = std::move(layout);
    content.group = group;
    content.codec = Codec::Int8Blockwise;
    content.block = Zero3Rules::kQuantizedGroup;
    return content;
}

BufferId Zero3Emission::allocateFlat(const GatherCall& call, const Zero3Rules::CallClasses& classes)
{
    if (!records())
        return m_builder.allocate(classes.of(call).flat);
    if (quantized())
        return m_record.allocate(classes.of(call).flat, quantizedContent(partsOf(call, true), groupOf(call)));
    return m_record.allocate(classes.of(call).flat, Quantity::Parameters, m_rules.m_dtypes.model, partsOf(call, true),
                             groupOf(call));
}

Layout Zero3Emission::secondaryOf(Tensors tensors, bool all) const
{
    const std::int64_t ranks = m_rules.m_options.hpzPartitionSize;
    return {std::move(tensors), Cut::EachFlat, ranks, m_rules.m_shardRanks / ranks, all};
}

OpId Zero3Emission::readShards(std::size_t index)
{
    if (!records())
        return copy(OpKind::NvmeRead, Stream::Nvme, m_phase, classesOf(index).nvmeRead);
    const std::vector<PayloadId>& reads =
        m_trace == &m_rules.m_gathers.first ? m_rules.m_firstReads : m_rules.m_laterReads;
    const OpId read = copy(OpKind::NvmeRead, Stream::Nvme, m_phase, reads[index]);
    Layout layout = shardsOf(onNvme(tensorsOfCall(m_trace->calls[index])));
    if (layout.tensors.empty())
        return read;
    layout.room = checkedMultiply(m_rules.m_options.paramBufferSize, m_rules.m_options.paramBufferCount);
    m_record.hold(m_paramBuffers, Quantity::Parameters, m_rules.m_dtypes.model, layout, m_rules.m_shardGroup);
    m_record.move({m_nvmeShards}, {m_paramBuffers});
    return read;
}

Zero3Emission::Tensors Zero3Emission::onNvme(const Tensors& tensors) const
{
    Tensors kept;
    for (const std::int32_t tensor : tensors)
        if (std::binary_search(m_nvmeParameters.begin(), m_nvmeParameters.end(), tensor))
            kept.push_back(tensor);
    return kept;
}

Zero3Emission::Buffers Zero3Emission::hostHomesOf(const Tensors& tensors) const
{
    Buffers homes;
    for (const auto& [kept, buffer] :
         {std::pair(&m_flatParameters, m_hostShards), std::pair(&m_ownParameters, m_hostOwn)})
        if (std::any_of(tensors.begin(), tensors.end(), [&kept = kept](std::int32_t tensor) {
                return std::binary_search(kept->begin(), kept->end(), tensor);
            }))
            homes.push_back(buffer);
    return homes;
}

void Zero3Emission::forgetShards(const GatherCall& call)
{
    if (!records() || call.secondary || onNvme(tensorsOfCall(call)).empty())
        return;
    Layout nothing;
    nothing.room = checkedMultiply(m_rules.m_options.paramBufferSize, m_rules.m_options.paramBufferCount);
    m_record.hold(m_paramBuffers, Quantity::Parameters, m_rules.m_dtypes.model, nothing);
}

void Zero3Emission::fill(const GatherCall& call, const Zero3Rules::CallClasses& classes, BufferId flat, BufferId input,
                         BufferId upload)
{
    if (quantized()) {
        if (m_rules.m_shardRanks == 1)
            m_record.move({input}, {flat});
        m_record.collective(Verb::AllGather, groupOf(call), {input}, {flat});
        return;
    }
    if (m_rules.paramOn(OffloadDevice::None) || m_record.exists(classes.of(call).upload))
        m_record.move(ownParts(call, upload), {flat});
    m_record.collective(Verb::AllGather, groupOf(call), {flat}, {flat});
}

void Zero3Emission::wait(std::size_t index)
{
    const GatherCall& call = m_trace->calls[index];
    const Zero3Rules::CallClasses& classes = classesOf(index);
    const bool copies = classes.coalesced || quantized();
    const OpId oldest = m_fetches.size() > kMostOngoingFetches ? m_fetches.front() : -1;
    if (oldest >= 0)
        m_fetches.pop_front();
    m_lastFetch = m_builder.op(!copies       ? OpKind::Release
                               : quantized() ? OpKind::Dequantize
                                             : OpKind::Copy,
                               m_fetchStream, m_phase, m_layer);
    m_builder.wait(m_gatherOps[index]);
    m_builder.blockHost(oldest);
    m_fetches.push_back(m_lastFetch);
    if (!copies)
        return;
    m_builder.move(classes.copyOut);
    BufferId source = m_flats[index];
    if (quantized() && classes.coalesced) {
        m_widened[index] = m_record.allocate(classes.widened, Quantity::Parameters, m_rules.m_dtypes.model,
                                             partsOf(call, true), groupOf(call));
        m_record.move({source}, {m_widened[index]});
        source = m_widened[index];
    }
    for (std::int32_t i = call.firstPiece; i < call.endPiece; ++i) {
        const auto piece = static_cast<std::size_t>(i);
        const auto kind = static_cast<std::size_t>(m_trace->pieces[piece].kind);
        BufferId narrow =
            quantized() && !classes.coalesced ? m_record.allocateScratch(m_rules.m_narrowPieces[kind]) : -1;
        m_pieces[piece] = m_record.allocate(m_rules.m_pieces[kind], Quantity::Parameters, m_rules.m_dtypes.model,
                                            wholeLayout(m_trace->pieces[piece].tensors));
        m_record.move({source}, {m_pieces[piece]});
        drop(narrow);
    }
}

void Zero3Emission::awaitFetches()
{
    if (m_fetches.empty() || m_fetches.back() == m_awaited || m_fetchStream == Stream::Compute)
        return;
    m_awaited = m_fetches.back();
    m_builder.op(OpKind::Release, Stream::Compute, m_phase, m_layer);
    m_builder.wait(m_awaited);
}

void Zero3Emission::dropFlat(std::size_t call)
{
    if (m_flats[call] < 0)
        return;
    m_builder.op(OpKind::Release, m_fetchStream, m_phase, m_layer);
    drop(m_flats[call]);
    drop(m_widened[call]);
}

void Zero3Emission::freePiece(std::size_t piece)
{
    m_builder.op(OpKind::Release, Stream::Compute, m_phase, m_layer);
    drop(m_pieces[piece]);
}

void Zero3Emission::makeSecondary(std::size_t unit)
{
    const auto type = static_cast<std::size_t>(m_rules.m_gathers.units[unit].type);
    const bool here = m_rules.paramOn(OffloadDevice::None);
    const OpId copied =
        copy(here ? OpKind::Copy : OpKind::CopyToHost, Stream::Compute, m_phase, m_rules.m_secondaryCopies[type]);
    Buffers whole;
    Tensors tensors;
    for (std::size_t i = 0; records() && i < m_trace->pieces.size(); ++i)
        if (static_cast<std::size_t>(m_trace->pieces[i].unit) == unit && m_pieces[i] >= 0) {
            const Tensors& more = m_trace->pieces[i].tensors;
            tensors.insert(tensors.end(), more.begin(), more.end());
            whole.push_back(m_pieces[i]);
        }
    m_secondaries[unit] = m_record.allocate(m_rules.m_secondaries[type], Quantity::Parameters, m_rules.m_dtypes.model,
                                            secondaryOf(std::move(tensors), false), m_rules.m_secondaryGroup);
    m_record.move(whole, {m_secondaries[unit]});
    if (!here)
        block(copied, m_phase); // copy_() without non_blocking
}

} // namespace shardwright
