// What becomes of gradients under ZeRO-3, from backward to the shards that are kept.

#include "planner/frameworks/deepspeed/zero3_emission.hpp"

#include <algorithm>

namespace shardwright {

namespace {

constexpr std::size_t kMostOngoingReductions = 2; // stage3.py max_param_reduce_events

} // namespace

const Zero3Rules::GradientClasses& Zero3Emission::gradientClasses(int layer, int module) const
{
    const auto type = static_cast<std::size_t>(m_rules.m_model.layers[static_cast<std::size_t>(layer)]);
    return m_rules.m_gradients[type][static_cast<std::size_t>(module)];
}

GradientBuffers Zero3Emission::allocateGradient(int layer, int module)
{
    return m_record.allocateGradients(gradientClasses(layer, module), m_rules.m_dtypes.model, m_rules.m_order, layer,
                                      module, m_rules.bucketLimit());
}

void Zero3Emission::makeGradient(int layer, int module)
{
    const Zero3Rules::GradientClasses& classes = gradientClasses(layer, module);
    if (classes.none())
        return;
    if (m_fresh.none())
        m_fresh = allocateGradient(layer, module);
    GradientBuffers fresh = std::exchange(m_fresh, {});
    if (isTiedModule(m_rules.m_model, layer, module)) {
        if (m_tied.none()) {
            m_tied = std::move(fresh); // complete when the embedding's part is added in place
            return;
        }
        copy(OpKind::Copy, Stream::Compute, Phase::Backward, classes.tiedSum);
        m_record.add(fresh.all(), m_tied.all());
        for (const BufferId buffer : fresh.all())
            m_builder.free(buffer);
        fresh = std::exchange(m_tied, {});
    }
    m_made.push_back(std::move(fresh));
    ++m_complete;
}

void Zero3Emission::arrive(const BucketArrival& arrival)
{
    const auto [layer, module] = arrival.module;
    GradientBuffers gradient = m_made[m_arrival];
    const ModuleGradient tensors = moduleGradient(m_rules.m_order, layer, module, m_rules.bucketLimit());
    for (std::size_t i = 0; i < gradient.large.size(); ++i)
        m_pending.push_back(
            {m_rules.m_buckets.flushOf[arrival.firstTensor + tensors.largePlaces[i]], gradient.large[i]});
    for (std::int32_t flush = arrival.firstFlush; flush < arrival.endFlush; ++flush)
        reduce(flush, records() && splits(tensors, flush) ? gradient.bucketed : -1);
    if (gradient.bucketed < 0)
        return;
    const OpId made = markGradients();
    copy(OpKind::Copy, m_reduceStream, Phase::Backward, gradientClasses(layer, module).toBucket);
    m_builder.wait(made);
    if (records())
        m_record.move({gradient.bucketed}, {bucketFor(arrival.endFlush)});
    drop(gradient.bucketed);
}

const BucketFlush& Zero3Emission::flushAt(std::int32_t index) const
{
    return m_rules.m_buckets.flushes[static_cast<std::size_t>(index)];
}

Zero3Emission::Tensors Zero3Emission::tensorsOfFlush(std::int32_t index) const
{
    return tensorsOf(m_rules.m_buckets.tensors, flushAt(index).firstTensor, flushAt(index).endTensor);
}

bool Zero3Emission::splits(const ModuleGradient& arriving, std::int32_t flush) const
{
    const Tensors own = tensorsOf(arriving.bucketed, 0, arriving.bucketed.size());
    const Tensors out = tensorsOfFlush(flush);
    return std::find_first_of(out.begin(), out.end(), own.begin(), own.end()) != out.end();
}

Layout Zero3Emission::layoutBefore(std::int32_t flush) const
{
    const Zero3Rules::FlushClasses& classes = m_rules.m_flushes[static_cast<std::size_t>(flushAt(flush).kind)];
    const bool itself = classes.asItIs && m_rules.m_options.reduceScatter;
    return itself ? gathered(tensorsOfFlush(flush)) : wholeLayout(tensorsOfFlush(flush));
}

BufferId Zero3Emission::bucketFor(std::int32_t flush)
{
    if (m_bucketFlush != flush) {
        m_bucketFlush = flush;
        Layout layout = layoutBefore(flush);
        layout.room = m_rules.m_options.reduceBucketSize;
        m_record.hold(m_bucket, Quantity::Gradients, m_rules.m_dtypes.model, layout,
                      layout.allParts ? m_rules.m_shardGroup : -1);
    }
    return m_bucket;
}

Zero3Emission::Buffers Zero3Emission::gradientsOf(std::int32_t flush, BufferId arriving)
{
    Buffers gradients;
    for (const Pending& pending : m_pending)
        if (pending.flush == flush)
            gradients.push_back(pending.buffer);
    if (gradients.empty()) {
        gradients.push_back(bucketFor(flush));
        m_record.move({arriving}, gradients);
        return gradients;
    }
    if (gradients.size() == 1 && m_rules.m_shardRanks > 1 && layoutBefore(flush).allParts)
        m_record.hold(gradients[0], Quantity::Gradients, m_rules.m_dtypes.model, layoutBefore(flush),
                      m_rules.m_shardGroup);
    return gradients;
}

OpId Zero3Emission::markGradients()
{
    return m_reduceStream == Stream::Compute ? -1
                                             : m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward, m_layer);
}

void Zero3Emission::reduce(std::int32_t index, BufferId arriving)
{
    const BucketFlush& flush = m_rules.m_buckets.flushes[static_cast<std::size_t>(index)];
    const Zero3Rules::FlushClasses& classes = m_rules.m_flushes[static_cast<std::size_t>(flush.kind)];
    const DeepSpeedOptions& options = m_rules.m_options;
    // Of the reductions before, at most two are under way when this one is issued.
    const OpId oldest = m_reductions.size() > kMostOngoingReductions ? m_reductions.front() : -1;
    if (oldest >= 0)
        m_reductions.pop_front();
    const OpId made = markGradients();
    copy(OpKind::Copy, m_reduceStream, Phase::Backward, classes.prepare);
    m_builder.wait(made);
    m_builder.blockHost(oldest);
    Buffers reduced = records() ? gradientsOf(index, arriving) : Buffers{};
    BufferId cast = -1;
    BufferId input = -1;
    Buffers outputs;
    if (options.quantizedGradients) {
        cast = m_record.allocate(classes.cast, Quantity::Gradients, m_rules.m_dtypes.wire,
                                 wholeLayout(records() ? tensorsOfFlush(index) : Tensors{}));
        if (records() && m_record.exists(classes.cast)) {
            m_record.move(reduced, {cast});
            reduced = {cast};
        }
        outputs = reduceInTwoHops(flush, reduced);
    } else {
        const OpId reducing = m_builder.op(options.reduceScatter ? OpKind::ReduceScatter : OpKind::AllReduce,
                                           m_reduceStream, Phase::Backward, m_layer);
        Layout all;
        if (records())
            all = options.reduceScatter ? gathered(tensorsOfFlush(index)) : wholeLayout(tensorsOfFlush(index));
        for (auto [buffer, bufferClass] : {std::pair{&cast, classes.cast}, std::pair{&input, classes.input}}) {
            *buffer = m_record.allocate(bufferClass, Quantity::Gradients, m_rules.m_dtypes.wire, all,
                                        all.allParts ? m_rules.m_shardGroup : -1);
            if (records() && m_record.exists(bufferClass)) {
                m_record.move(reduced, {*buffer});
                reduced = {*buffer};
            }
        }
        m_builder.send(classes.scatter, m_rules.m_shardGroup);
        takeTurn(reducing);
        if (options.reduceScatter)
            m_record.collective(Verb::ReduceScatter, m_rules.m_shardGroup, reduced, reduced);
        else if (records())
            m_record.collective(
                Verb::AllReduce, m_rules.m_shardGroup, {}, reduced,
                m_builder.content({Quantity::Gradients, m_rules.m_dtypes.wire, wholeLayout(tensorsOfFlush(index))}));
    }
    m_lastReduced = m_rules.offloadsOptimizer() ? offload(index, classes, reduced) : keep(classes, reduced);
    // The shards are views of what was scattered.
    drop(cast);
    drop(input);
    for (BufferId& output : outputs)
        drop(output);
    if (m_last && options.micsShardSize > 0)
        replicate(index, classes);
    m_reductions.push_back(m_lastReduced);
    const auto gone = std::stable_partition(m_pending.begin(), m_pending.end(),
                                            [index](const Pending& pending) { return pending.flush != index; });
    for (auto it = gone; it != m_pending.end(); ++it)
        m_builder.free(it->buffer);
    m_pending.erase(gone, m_pending.end());
}

OpId Zero3Emission::keep(const Zero3Rules::FlushClasses& classes, const Buffers& reduced)
{
    const OpId kept = copy(OpKind::Copy, m_reduceStream, Phase::Backward, m_first ? classes.keep : classes.addUp);
    if (m_first)
        m_record.move(reduced, {m_gradientShards});
    else
        m_record.add(reduced, {m_gradientShards});
    return kept;
}

void Zero3Emission::replicate(std::int32_t flush, const Zero3Rules::FlushClasses& classes)
{
    const OpId replicating = m_builder.op(OpKind::AllReduce, Stream::Replicate, Phase::Backward, m_layer);
    m_builder.send(classes.replicate, m_rules.m_replicaGroup);
    m_builder.wait(m_lastReduced);
    if (records())
        m_record.collective(Verb::AllReduce, m_rules.m_replicaGroup, {}, {m_gradientShards},
                            m_builder.content({Quantity::Gradients, m_rules.m_dtypes.accumulate,
                                               shardsOf(tensorsOfFlush(flush)), m_rules.m_shardGroup}));
    m_lastReduced = m_builder.op(OpKind::Release, m_reduceStream, Phase::Backward, m_layer);
    m_builder.wait(replicating);
}

OpId Zero3Emission::offload(std::int32_t flush, const Zero3Rules::FlushClasses& classes, const Buffers& reduced)
{
    OpId last = -1;
    const auto down = [&] {
        last = copy(OpKind::CopyToHost, m_reduceStream, Phase::Backward, classes.narrowCopy);
        m_record.move(reduced, {m_hostNarrow});
        waitUnlessPinned(last);
    };
    const auto up = [&] {
        last = copy(OpKind::CopyToDevice, m_reduceStream, Phase::Backward, classes.narrowCopy);
        if (m_first)
            m_record.move({m_hostNarrow}, reduced);
        else
            m_record.add({m_hostNarrow}, reduced);
        once(classes.offload);
        waitUnlessPinned(last);
    };
    if (m_first) {
        down();
        up();
    } else {
        up();
        last = copy(OpKind::Copy, m_reduceStream, Phase::Backward, classes.addUp);
        down();
    }
    if (!m_last)
        return last;
    PayloadId wide = classes.wideCopy;
    if (m_rules.stepsInTwoPlaces()) {
        const Zero3Rules::WideMoves& moves = m_rules.m_wideMoves[static_cast<std::size_t>(flush)];
        wide = moves.down;
        copy(OpKind::Copy, m_reduceStream, Phase::Backward, moves.keep);
        if (records() && flushTouches(flush, m_onGpu))
            m_record.move(reduced, {m_wideGradients});
    }
    // fp32_grad_tensor.copy_() without non_blocking
    last = copy(OpKind::CopyToHost, m_reduceStream, Phase::Backward, wide);
    if (records() && flushTouches(flush, m_onHost))
        m_record.move(reduced, {m_hostWide});
    const BufferId landed = landGradients(flush, reduced);
    block(last, Phase::Backward);
    if (m_rules.optimizerOn(OffloadDevice::Nvme) && (!records() || landed >= 0)) {
        copy(OpKind::NvmeWrite, Stream::Nvme, Phase::Backward, classes.wideCopy);
        m_record.move({landed}, {m_nvme.gradient});
    }
    return last;
}

bool Zero3Emission::flushTouches(std::int32_t flush, const Tensors& tensors) const
{
    const Tensors going = tensorsOfFlush(flush);
    return std::find_first_of(going.begin(), going.end(), tensors.begin(), tensors.end()) != going.end();
}

BufferId Zero3Emission::landGradients(std::int32_t flush, const Buffers& reduced)
{
    BufferId landed = -1;
    const Tensors out = records() ? tensorsOfFlush(flush) : Tensors{};
    for (const Zero3Rules::SubGroup& group : m_rules.m_subGroups) {
        Tensors going;
        for (const std::int32_t tensor : group.onNvme&& records() ? tensorsOfGroup(group) : Tensors{})
            if (std::find(out.begin(), out.end(), tensor) != out.end())
                going.push_back(tensor);
        if (going.empty())
            continue;
        if (landed >= 0)
            m_record.move({landed}, {m_nvme.gradient});
        landed = m_swaps[0].gradient;
        Layout layout = shardsOf(std::move(going));
        layout.room = m_rules.largestSwap();
        m_record.hold(landed, Quantity::Gradients, m_rules.m_dtypes.master, layout, m_rules.m_shardGroup);
        m_record.move(reduced, {landed});
    }
    return landed;
}

void Zero3Emission::waitUnlessPinned(OpId op)
{
    if (!m_rules.m_options.pinMemory)
        block(op, Phase::Backward);
}

} // namespace shardwright
