// What becomes of gradients under ZeRO-1 and ZeRO-2, from backward to what a rank keeps of them.

#include "planner/frameworks/deepspeed/zero12_emission.hpp"

#include <algorithm>

namespace shardwright {

BufferId Zero12Emission::gradientBuffer(int layer, int module)
{
    m_fresh = makeGradient(layer, module);
    return m_fresh.none() ? -1 : m_fresh.all().front();
}

void Zero12Emission::afterStage(Pass pass, int layer, int module)
{
    if (pass != Pass::Backward)
        return;
    const Zero12Rules::GradientClasses& classes = classesOf(layer, module);
    if (classes.none())
        return;
    if (m_fresh.none())
        m_fresh = makeGradient(layer, module);
    Held fresh = std::exchange(m_fresh, {});
    m_layer = layer;
    addTo(layer, module, std::move(fresh));
    if (isTiedModule(m_rules.m_model, layer, module) && !m_tiedSeen) {
        m_tiedSeen = true;
        return;
    }
    if (m_reducing)
        arrive(m_rules.m_inBackward.arrivals[m_arrival++]);
}

Zero12Emission::Held Zero12Emission::makeGradient(int layer, int module)
{
    const Zero12Rules::GradientClasses& classes = classesOf(layer, module);
    Held made;
    if (classes.none())
        return made;
    setUpBuckets();
    static_cast<GradientBuffers&>(made) = m_record.allocateGradients(classes, m_rules.m_dtypes.model, m_rules.m_order,
                                                                     layer, module, m_rules.bucketLimit());
    return made;
}

void Zero12Emission::dropAll(const GradientBuffers& gradients)
{
    for (const BufferId buffer : gradients.all())
        m_builder.free(buffer);
}

void Zero12Emission::transfer(OpKind kind, PayloadId payload, Verb verb, const Buffers& from, const Buffers& to)
{
    const OpId id = copy(kind, m_reduceStream, Phase::Backward, payload);
    if (verb == Verb::Add)
        m_record.add(from, to);
    else
        m_record.move(from, to);
    if (!m_rules.m_options.pinMemory)
        block(id, Phase::Backward);
}

void Zero12Emission::addTo(int layer, int module, Held fresh)
{
    Held& held = heldOf(layer, module);
    const Zero12Rules::GradientClasses& classes = classesOf(layer, module);
    if (m_rules.separateAccumulation()) {
        copy(OpKind::Copy, Stream::Compute, Phase::Backward, classes.addUp);
        if (held.accumulated < 0) {
            held.accumulated = m_record.allocate(
                classes.accumulated, Quantity::Gradients, m_rules.m_dtypes.accumulate,
                wholeLayout(m_record.records() ? tensorsOf(m_rules.m_order, layer, module) : Tensors{}));
            m_record.move(fresh.all(), {held.accumulated});
        } else {
            m_record.add(fresh.all(), {held.accumulated});
        }
        dropAll(fresh);
        return;
    }
    if (held.none()) {
        held = std::move(fresh);
        return;
    }
    copy(OpKind::Copy, Stream::Compute, Phase::Backward, classes.addUp);
    m_record.add(fresh.all(), held.all());
    dropAll(fresh);
}

void Zero12Emission::setUpBuckets()
{
    if (!m_buckets.empty() || !m_rules.contiguous())
        return;
    for (int i = 0; i < (m_rules.overlaps() ? 2 : 1); ++i)
        m_buckets.push_back({m_record.allocateScratch(m_rules.m_bucket), -1});
}

Layout Zero12Emission::layoutOf(std::int32_t flush) const
{
    const BucketPlan& plan = m_rules.flushPlan();
    const BucketFlush& flushed = plan.flushes[static_cast<std::size_t>(flush)];
    return wholeLayout(tensorsOf(plan.tensors, flushed.firstTensor, flushed.endTensor));
}

BufferId Zero12Emission::bucketOf(std::int32_t flush)
{
    Bucket& bucket = m_buckets[static_cast<std::size_t>(flush) % m_buckets.size()];
    if (bucket.flush != flush) {
        bucket.flush = flush;
        Layout layout = layoutOf(flush);
        layout.room = m_rules.m_options.reduceBucketSize;
        m_record.hold(bucket.buffer, Quantity::Gradients, m_rules.m_dtypes.model, layout);
    }
    return bucket.buffer;
}

Zero12Emission::Buffers Zero12Emission::gradientsOf(std::int32_t flush, BufferId arriving)
{
    Buffers gradients;
    for (const Pending& pending : m_pending)
        if (pending.flush == flush)
            gradients.push_back(pending.buffer);
    if (gradients.empty()) {
        gradients.push_back(bucketOf(flush));
        m_record.move({arriving}, gradients);
    }
    return gradients;
}

void Zero12Emission::arrive(const BucketArrival& arrival)
{
    const auto [layer, module] = arrival.module;
    Held& held = heldOf(layer, module);
    Held going = held;
    if (m_rules.separateAccumulation()) {
        // get_gradient_for_reduction casts the accumulated gradient back; that one itself stays until the step
        const Zero12Rules::GradientClasses& classes = classesOf(layer, module);
        m_layer = layer;
        copy(OpKind::Copy, Stream::Compute, Phase::Backward, classes.castBack);
        const BufferId accumulated = held.accumulated;
        going = makeGradient(layer, module);
        m_record.move({accumulated}, going.all());
    } else {
        held = {};
    }
    const ModuleGradient tensors = moduleGradient(m_rules.m_order, layer, module, m_rules.bucketLimit());
    for (std::size_t i = 0; i < going.large.size(); ++i)
        m_pending.push_back(
            {m_rules.flushPlan().flushOf[arrival.firstTensor + tensors.largePlaces[i]], going.large[i]});
    for (std::int32_t flush = arrival.firstFlush; flush < arrival.endFlush; ++flush)
        reduce(flush, m_record.records() && splits(tensors, flush) ? going.bucketed : -1);
    if (going.bucketed < 0)
        return;
    m_layer = layer;
    copy(OpKind::Copy, Stream::Compute, Phase::Backward, classesOf(layer, module).toBucket);
    if (m_record.records())
        m_record.move({going.bucketed}, {bucketOf(arrival.endFlush)});
    m_builder.free(going.bucketed);
}

bool Zero12Emission::splits(const ModuleGradient& arriving, std::int32_t flush) const
{
    const Tensors out = layoutOf(flush).tensors;
    return std::any_of(arriving.bucketed.begin(), arriving.bucketed.end(), [&](const FlatTensor& tensor) {
        return std::find(out.begin(), out.end(), tensor.tensor) != out.end();
    });
}

void Zero12Emission::reduce(std::int32_t flush, BufferId arriving)
{
    const Zero12Rules::FlushCopies& copies = m_rules.m_flushCopies[static_cast<std::size_t>(flush)];
    m_layer = -1;
    const OpId ready = m_rules.overlaps() ? joinStreams() : -1;
    copy(OpKind::Copy, m_reduceStream, Phase::Backward, copies.prepare);
    m_builder.wait(ready);
    const Buffers gradients = m_record.records() ? gradientsOf(flush, arriving) : Buffers{};
    if (m_rules.reducesToOwners())
        reduceToOwners(flush, gradients);
    else
        allReduce(flush, gradients);
    if (m_rules.offload())
        m_lastReduced = offloadGradients(copies, gradients);
    if (!m_rules.offload() && m_touched < 0)
        m_touched = allocateState(m_rules.m_touchedGradients, Quantity::Gradients, m_rules.m_dtypes.model, m_touching);
    if (!m_rules.offload())
        m_record.move(gradients, {m_touched});
    const auto gone = std::stable_partition(m_pending.begin(), m_pending.end(),
                                            [flush](const Pending& pending) { return pending.flush != flush; });
    for (auto it = gone; it != m_pending.end(); ++it)
        m_builder.free(it->buffer);
    m_pending.erase(gone, m_pending.end());
}

OpId Zero12Emission::joinStreams()
{
    const OpId ready = m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward);
    m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward);
    if (m_rules.contiguous()) {
        m_builder.wait(m_lastReduced);
        return ready;
    }
    m_builder.blockHost(ready);
    m_builder.blockHost(m_lastReduced);
    return ready;
}

void Zero12Emission::allReduce(std::int32_t flush, const Buffers& gradients)
{
    const auto index = static_cast<std::size_t>(flush);
    const Zero12Rules::Reduction& reduction = m_rules.m_reductions[index].front();
    const DeepSpeedDtypes& dtypes = m_rules.m_dtypes;
    BufferId flat = allocateCopy(reduction.flatten, dtypes.model, flush);
    BufferId cast = allocateCopy(reduction.cast, dtypes.wire, flush);
    const BufferId copied = dtypes.wire != dtypes.model ? cast : copiesWhole(flush) ? flat : -1;
    m_record.move(gradients, {copied});
    m_builder.op(OpKind::AllReduce, m_reduceStream, Phase::Backward);
    m_builder.send(reduction.payload, m_rules.m_world);
    if (m_record.records())
        m_record.collective(Verb::AllReduce, m_rules.m_world, {}, copied >= 0 ? Buffers{copied} : gradients,
                            m_builder.content({Quantity::Gradients, dtypes.wire, layoutOf(flush)}));
    m_lastReduced = copy(OpKind::Copy, m_reduceStream, Phase::Backward, m_rules.m_flushCopies[index].copyBack);
    m_record.move({copied}, gradients);
    drop(cast);
    drop(flat);
}

void Zero12Emission::reduceToOwners(std::int32_t flush, const Buffers& gradients)
{
    const auto index = static_cast<std::size_t>(flush);
    const DeepSpeedDtypes& dtypes = m_rules.m_dtypes;
    const ContentId owners =
        m_record.records() ? m_builder.content({Quantity::Gradients, dtypes.wire, m_part, m_rules.m_world}) : -1;
    for (const Zero12Rules::Reduction& reduction : m_rules.m_reductions[index]) {
        const OpId before = m_builder.lastOp();
        m_builder.op(OpKind::Reduce, m_reduceStream, Phase::Backward);
        if (m_rules.overlaps())
            m_builder.blockHost(before);
        BufferId flat = m_record.allocateScratch(reduction.flatten);
        BufferId cast = m_record.allocateScratch(reduction.cast);
        m_builder.send(reduction.payload, m_rules.m_world, reduction.count);
        if (m_record.records()) {
            m_builder.cover(static_cast<std::size_t>(reduction.firstOwner));
            m_builder.cover(static_cast<std::size_t>(reduction.firstOwner + reduction.count - 1));
            m_record.collective(Verb::ReduceTo, m_rules.m_world, {}, gradients, owners);
        }
        drop(cast);
        drop(flat);
    }
    m_lastReduced = copy(OpKind::Copy, m_reduceStream, Phase::Backward, m_rules.m_flushCopies[index].copyBack);
}

bool Zero12Emission::copiesWhole(std::int32_t flush) const
{
    const auto index = static_cast<std::size_t>(flush);
    const BufferClassId flatten = m_rules.m_reductions[index].front().flatten;
    const Bytes copy = m_rules.m_sizes.buffers[static_cast<std::size_t>(flatten)].bytes;
    return copy == bytesOf(m_rules.flushPlan().flushes[index].elements, m_rules.m_dtypes.model);
}

BufferId Zero12Emission::allocateCopy(BufferClassId bufferClass, DType dtype, std::int32_t flush)
{
    if (!m_record.records() || (dtype == m_rules.m_dtypes.model && !copiesWhole(flush)))
        return m_record.allocateScratch(bufferClass);
    return m_record.allocate(bufferClass, Quantity::Gradients, dtype, layoutOf(flush));
}

OpId Zero12Emission::offloadGradients(const Zero12Rules::FlushCopies& copies, const Buffers& gradients)
{
    if (m_rules.m_options.stage == 2 && m_rules.m_training.gradientAccumulation > 1) {
        if (!m_first)
            transfer(OpKind::CopyToDevice, copies.accumulateUp, Verb::Add, {m_accumulators}, gradients);
        if (!m_last)
            transfer(OpKind::CopyToHost, copies.accumulateDown, Verb::Move, gradients, {m_accumulators});
    }
    if (m_last)
        transfer(OpKind::CopyToHost, copies.down, Verb::Move, gradients, {m_hostGradient});
    return m_builder.lastOp();
}

} // namespace shardwright
