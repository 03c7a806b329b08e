// The schedule of ZeRO-1 and ZeRO-2: what there is, and the order of a step.

#include "planner/frameworks/deepspeed/zero12_emission.hpp"

namespace shardwright {

Zero12Emission::Zero12Emission(const Zero12Rules& rules)
    : ZeroEmission(rules.m_sizes, rules.recording(), rules.m_activations), m_rules(rules),
      m_reduceStream(rules.overlaps() ? Stream::Reduce : Stream::Compute)
{
    for (const int type : rules.m_model.layers)
        m_held.emplace_back(rules.m_gradients[static_cast<std::size_t>(type)].size());
    if (!m_record.records())
        return;
    m_part = {tensorsOf(rules.m_order), Cut::Flat, rules.m_ranks, Zero12Rules::kAlignment};
    m_whole = m_part;
    m_whole.allParts = true;
    m_touching = m_part;
    m_touching.cut = Cut::Touching;
}

Schedule Zero12Emission::run()
{
    initialise();
    if (m_rules.pipelined())
        emitPipeline(m_builder, m_rules.m_activations, *m_rules.m_slice, m_rules.pipeline(), *this,
                     {[this](const MicroStep& step) { beginBackward(step); },
                      [this](const MicroStep& step) { endBackward(step); }});
    else
        for (const MicroStep& step : microSteps(m_rules.m_training.gradientAccumulation)) {
            m_builder.beginSegment(step.name, step.repeat);
            microStep(step);
        }
    m_builder.beginSegment("optimizer step");
    optimizerStep();
    return m_builder.finish();
}

const Zero12Rules::GradientClasses& Zero12Emission::classesOf(int layer, int module) const
{
    const auto type = static_cast<std::size_t>(m_rules.m_model.layers[static_cast<std::size_t>(layer)]);
    return m_rules.m_gradients[type][static_cast<std::size_t>(module)];
}

Zero12Emission::Held& Zero12Emission::heldOf(int layer, int module)
{
    return m_held[static_cast<std::size_t>(layer)][static_cast<std::size_t>(module)];
}

BufferId Zero12Emission::allocateState(BufferClassId bufferClass, Quantity quantity, DType dtype, const Layout& layout)
{
    return m_record.allocate(bufferClass, quantity, dtype, layout, m_rules.m_world);
}

void Zero12Emission::initialise()
{
    const DeepSpeedDtypes& dtypes = m_rules.m_dtypes;
    m_builder.beginSegment("initialisation");
    m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
    Layout unpadded;
    unpadded.tensors = m_whole.tensors;
    const BufferId module = m_record.allocate(m_rules.m_module, Quantity::Parameters, dtypes.model, unpadded);
    m_record.allocateScratch(m_rules.m_frozen); // the executor trains all parameters
    m_flat = allocateState(m_rules.m_flat, Quantity::Parameters, dtypes.model, m_whole);
    if (m_record.exists(m_rules.m_module)) {
        m_record.initialize({module});
        m_record.move({module}, {m_flat});
    } else {
        m_record.initialize({m_flat});
    }
    m_builder.free(module);
    m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
    if (m_rules.offload()) {
        m_record.allocateScratch(m_rules.m_offloadBuffer);
        m_master = allocateState(m_rules.m_hostMaster, Quantity::Parameters, dtypes.master, m_part);
        m_hostGradient = allocateState(m_rules.m_hostGradient, Quantity::Gradients, dtypes.master, m_part);
        m_staging = allocateState(m_rules.m_hostStaging, Quantity::Parameters, dtypes.model, m_part);
        m_record.allocateScratch(m_rules.m_hostLargest);
        m_accumulators = allocateState(m_rules.m_hostAccumulators, Quantity::Gradients, dtypes.model, m_touching);
        m_moments = allocateState(m_rules.m_hostMoments, Quantity::Moments, dtypes.states, m_part);
        m_record.initialize({m_hostGradient, m_staging, m_accumulators, m_moments});
    } else {
        m_master = allocateState(m_rules.m_master, Quantity::Parameters, dtypes.master, m_part);
        const BufferId zeros = allocateState(m_rules.m_firstGradient, Quantity::Gradients, dtypes.master, m_part);
        m_record.initialize({zeros});
        m_builder.free(zeros);
        m_moments = allocateState(m_rules.m_moments, Quantity::Moments, dtypes.states, m_part);
        m_record.initialize({m_moments});
    }
    m_record.move({m_flat}, {m_master});
    m_walk.carryOver(m_builder);
}

void Zero12Emission::microStep(const MicroStep& step)
{
    const int layers = static_cast<int>(m_rules.m_model.layers.size());
    m_walk.beginMicroStep(m_builder);
    for (int layer = 0; layer < layers; ++layer)
        m_walk.forward(m_builder, layer, *this);
    beginBackward(step);
    m_walk.loss(m_builder);
    for (int layer = layers - 1; layer >= 0; --layer)
        m_walk.backward(m_builder, layer, *this);
    endBackward(step);
    m_walk.endMicroStep(m_builder);
}

void Zero12Emission::beginBackward(const MicroStep& step)
{
    m_first = step.first;
    m_last = step.last;
    m_lastReduced = -1;
    m_reducing = m_rules.m_options.stage == 2 || (m_rules.overlaps() && step.last);
    m_arrival = 0;
    m_tiedSeen = false;
}

void Zero12Emission::endBackward(const MicroStep& step)
{
    const BucketPlan& plan = m_reducing ? m_rules.m_inBackward : m_rules.m_inOrder;
    if (!m_reducing && step.last)
        for (const BucketArrival& arrival : plan.arrivals)
            arrive(arrival);
    if (!m_reducing && !step.last)
        return;
    for (std::int32_t flush = plan.firstRemaining(); flush < static_cast<std::int32_t>(plan.flushes.size()); ++flush)
        reduce(flush);
    epilogue(step);
}

void Zero12Emission::epilogue(const MicroStep& step)
{
    m_layer = -1;
    if (m_rules.offload() && step.last) {
        copy(OpKind::Copy, m_reduceStream, Phase::Backward, m_rules.m_check);
        BufferId norm = m_record.allocateScratch(m_rules.m_norm);
        drop(norm);
        BufferId cast = m_record.allocateScratch(m_rules.m_offloadCast);
        drop(cast);
    }
    if (!m_rules.offload() && !step.first && m_rules.m_options.stage == 2)
        accumulate();
    const OpId reduced = m_builder.lastOp();
    m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward);
    if (m_rules.overlaps())
        m_builder.blockHost(reduced); // synchronize()
    for (Bucket& bucket : m_buckets)
        drop(bucket.buffer);
    m_buckets.clear();
    if (m_averaged < 0)
        std::swap(m_averaged, m_touched);
    drop(m_touched);
}

void Zero12Emission::accumulate()
{
    copy(OpKind::Copy, m_reduceStream, Phase::Backward, m_rules.m_accumulate);
    m_record.add({m_touched}, {m_averaged});
}

Schedule Zero12Rules::emit() const
{
    return Zero12Emission(*this).run();
}

} // namespace shardwright
