// The schedule of ZeRO-3: initialisation and micro-steps.

#include "planner/frameworks/deepspeed/zero3_emission.hpp"

#include <algorithm>

namespace shardwright {

Zero3Emission::Zero3Emission(const Zero3Rules& rules)
    : ZeroEmission(rules.m_sizes, rules.recording(), rules.m_activations), m_rules(rules),
      m_secondaries(rules.m_gathers.units.size(), -1),
      m_fetchStream(overlapsCommunication(rules.m_options) ? Stream::HostToDevice : Stream::Compute),
      m_reduceStream(overlapsCommunication(rules.m_options) ? Stream::Reduce : Stream::Compute)
{
    const std::size_t calls = std::max(rules.m_gathers.first.calls.size(), rules.m_gathers.later.calls.size());
    const std::size_t pieces = std::max(rules.m_gathers.first.pieces.size(), rules.m_gathers.later.pieces.size());
    m_flats.assign(calls, -1);
    m_widened.assign(calls, -1);
    m_gatherOps.assign(calls, -1);
    m_pieces.assign(pieces, -1);
}

Schedule Zero3Emission::run()
{
    initialise();
    for (const MicroStep& step : microSteps(m_rules.m_training.gradientAccumulation)) {
        m_builder.beginSegment(step.name, step.repeat);
        microStep(step);
    }
    m_builder.beginSegment("optimizer step");
    optimizerStep();
    return m_builder.finish();
}

void Zero3Emission::beforeStage(Pass pass, int layer, int)
{
    m_phase = pass == Pass::Forward ? Phase::Forward : Phase::Backward;
    m_layer = layer;
    play(m_trace->beforeEnd[m_visit]);
    awaitFetches();
}

BufferId Zero3Emission::gradientBuffer(int layer, int module)
{
    m_fresh = allocateGradient(layer, module);
    return m_fresh.none() ? -1 : m_fresh.all().front();
}

void Zero3Emission::afterStage(Pass pass, int layer, int module)
{
    if (pass == Pass::Backward)
        makeGradient(layer, module);
    // The gradients of a z3 leaf module are reduced when all of its backward is done (stage3.py
    // reduce_leaf_module_grads).
    if (pass == Pass::Backward && m_rules.m_gathers.endsUnit[m_visit])
        for (; m_arrival < m_complete; ++m_arrival)
            arrive(m_rules.m_buckets.arrivals[m_arrival]);
    play(m_trace->afterEnd[m_visit]);
    ++m_visit;
}

void Zero3Emission::takeTurn(OpId collective)
{
    m_builder.wait(m_lastCollective);
    m_lastCollective = collective;
}

Layout Zero3Emission::gathered(Tensors tensors) const
{
    Layout layout = shardsOf(std::move(tensors));
    layout.allParts = true;
    return layout;
}

BufferId Zero3Emission::allocateShards(BufferClassId bufferClass, Quantity quantity, DType dtype,
                                       const Tensors& tensors)
{
    return m_record.allocate(bufferClass, quantity, dtype, shardsOf(tensors), m_rules.m_shardGroup);
}

Zero3Emission::Tensors Zero3Emission::tensorsOfGroup(const Zero3Rules::SubGroup& group) const
{
    return tensorsOf(m_rules.m_order.tensors(), group.firstTensor, group.endTensor);
}

void Zero3Emission::initialise()
{
    m_builder.beginSegment("initialisation");
    m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
    const DType model = m_rules.m_dtypes.model;
    const Tensors all = records() ? tensorsOf(m_rules.m_order) : Tensors{};
    const Tensors& persistent = m_rules.m_gathers.persistentTensors;
    const auto keptIn = [&](Zero3Rules::Home home) {
        Tensors kept;
        for (std::size_t i = 0; i < all.size(); ++i)
            if (m_rules.m_homes[i] == home)
                kept.push_back(all[i]);
        return kept;
    };
    m_flatParameters = keptIn(Zero3Rules::Home::Flat);
    m_ownParameters = keptIn(Zero3Rules::Home::Host);
    m_nvmeParameters = keptIn(Zero3Rules::Home::Nvme);
    const BufferId whole = m_record.allocate(m_rules.m_wholeModule, Quantity::Parameters, model, wholeLayout(all));
    m_record.initialize({whole});
    const auto parameters = [&](BufferClassId bufferClass, const Tensors& tensors, std::int64_t room = 0) {
        if (records() && tensors.empty())
            return m_record.allocateScratch(bufferClass);
        Layout layout = shardsOf(tensors);
        layout.room = room;
        const BufferId buffer =
            m_record.allocate(bufferClass, Quantity::Parameters, model, layout, m_rules.m_shardGroup);
        if (m_record.exists(m_rules.m_wholeModule))
            m_record.move({whole}, {buffer});
        else
            m_record.initialize({buffer});
        return buffer;
    };
    m_shards = parameters(m_rules.m_shards, m_rules.paramOn(OffloadDevice::None) ? all : persistent);
    m_record.allocateScratch(m_rules.m_frozenShards); // the executor trains all parameters
    m_hostShards =
        parameters(m_rules.m_hostShards, m_flatParameters,
                   m_rules.paramOn(OffloadDevice::Nvme) ? std::min(m_rules.m_options.maxInCpu, m_rules.m_shard) : 0);
    m_hostOwn = parameters(m_rules.m_hostOwn, m_ownParameters);
    m_paramBuffers = m_record.allocateScratch(m_rules.m_paramBuffers);
    m_landing = m_record.allocateScratch(m_rules.m_landing);
    m_nvmeShards = parameters(m_rules.m_nvmeParameters, m_nvmeParameters);
    for (Tensors* kept : {&m_flatParameters, &m_ownParameters, &m_nvmeParameters})
        std::sort(kept->begin(), kept->end());
    once(m_rules.m_largestTensor);
    m_builder.free(whole);
    m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
    Layout padded = wholeLayout(persistent);
    padded.multiple = m_rules.m_shardRanks;
    m_persistent = m_record.allocate(m_rules.m_persistent, Quantity::Parameters, model, padded);
    m_record.initialize({m_persistent});
    initialiseStates();
    m_walk.carryOver(m_builder);
}

void Zero3Emission::initialiseStates()
{
    const DeepSpeedDtypes& dtypes = m_rules.m_dtypes;
    using Part = Zero3Rules::SubGroup;
    m_onGpu = tensorsWhere([](const Part& group) { return group.onGpu; });
    m_onHost = tensorsWhere([](const Part& group) { return !group.onGpu && !group.onNvme; });
    m_onNvme = tensorsWhere([](const Part& group) { return group.onNvme; });
    const Tensors all = records() ? tensorsOf(m_rules.m_order) : Tensors{};
    const auto master = [&](BufferClassId bufferClass, const Tensors& tensors) {
        const BufferId buffer = allocateShards(bufferClass, Quantity::Parameters, dtypes.master, tensors);
        // Several of them hold the same elements: one after the other, so that every element is read once.
        for (const BufferId source : {m_shards, m_hostShards, m_hostOwn, m_nvmeShards})
            m_record.move({source}, {buffer});
        return buffer;
    };
    const auto zeros = [&](BufferClassId bufferClass, Quantity quantity, DType dtype, const Tensors& tensors) {
        const BufferId buffer = allocateShards(bufferClass, quantity, dtype, tensors);
        m_record.initialize({buffer});
        return buffer;
    };
    m_master = master(m_rules.m_master, m_onGpu);
    m_gradientShards = zeros(m_rules.m_gradientShards, Quantity::Gradients, dtypes.accumulate, all);
    m_bucket = m_record.allocateScratch(m_rules.m_bucket);
    m_moments = zeros(m_rules.m_moments, Quantity::Moments, dtypes.states, m_onGpu);
    m_wideGradients = zeros(m_rules.m_wideGradients, Quantity::Gradients, dtypes.master, m_onGpu);
    m_hostMaster = master(m_rules.m_hostMaster, m_onHost);
    m_hostNarrow = zeros(m_rules.m_hostNarrowGradients, Quantity::Gradients, dtypes.accumulate, all);
    m_hostWide = zeros(m_rules.m_hostWideGradients, Quantity::Gradients, dtypes.master, m_onHost);
    m_hostMoments = zeros(m_rules.m_hostMoments, Quantity::Moments, dtypes.states, m_onHost);
    for (std::int64_t set = 0; set < m_rules.swapSets(); ++set)
        m_swaps.push_back({m_record.allocateScratch(m_rules.m_swapMaster),
                           m_record.allocateScratch(m_rules.m_swapGradient),
                           m_record.allocateScratch(m_rules.m_swapMoments)});
    m_record.allocateScratch(m_rules.m_swapBuffers);
    m_nvme.master = master(m_rules.m_nvmeMaster, m_onNvme);
    m_nvme.gradient = zeros(m_rules.m_nvmeGradients, Quantity::Gradients, dtypes.master, m_onNvme);
    m_nvme.moments = zeros(m_rules.m_nvmeMoments, Quantity::Moments, dtypes.states, m_onNvme);
}

void Zero3Emission::microStep(const MicroStep& step)
{
    const int layers = static_cast<int>(m_rules.m_model.layers.size());
    m_trace = step.first ? &m_rules.m_gathers.first : &m_rules.m_gathers.later;
    m_first = step.first;
    m_last = step.last;
    m_visit = 0;
    m_command = 0;
    m_arrival = 0;
    m_complete = 0;
    m_made.clear();
    m_walk.beginMicroStep(m_builder);
    m_begun = m_lastFetch = m_builder.lastOp();
    m_awaited = m_lastCollective = m_lastReduced = -1;
    m_fetches.clear();
    m_reductions.clear();
    m_bucketFlush = -1;
    for (int layer = 0; layer < layers; ++layer)
        m_walk.forward(m_builder, layer, *this);
    m_walk.loss(m_builder);
    for (int layer = layers - 1; layer >= 0; --layer)
        m_walk.backward(m_builder, layer, *this);
    m_layer = -1;
    const BucketPlan& buckets = m_rules.m_buckets;
    for (std::int32_t flush = buckets.firstRemaining(); flush < static_cast<std::int32_t>(buckets.flushes.size());
         ++flush)
        reduce(flush);
    // independent_gradient_partition_epilogue: reduce_and_partition_stream.synchronize()
    block(m_lastReduced, Phase::Backward);
    m_walk.endMicroStep(m_builder);
}

Schedule Zero3Rules::emit() const
{
    return Zero3Emission(*this).run();
}

} // namespace shardwright
