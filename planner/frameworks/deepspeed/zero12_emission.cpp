// The schedule of ZeRO-1 and ZeRO-2.

#include <algorithm>

#include "planner/frameworks/deepspeed/recording.hpp"
#include "planner/frameworks/deepspeed/zero12.hpp"

namespace shardwright {

class Zero12Emission final : public StageObserver {
public:
    explicit Zero12Emission(const Zero12Rules& rules)
        : m_rules(rules), m_builder(rules.m_sizes, rules.recording()), m_record(m_builder), m_walk(rules.m_activations),
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

    Schedule run()
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

    BufferId gradientBuffer(int layer, int module) override
    {
        m_fresh = makeGradient(layer, module);
        return m_fresh.none() ? -1 : m_fresh.all().front();
    }

    void afterStage(Pass pass, int layer, int module) override
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

private:
    struct Held : GradientBuffers {
        BufferId accumulated = -1;
    };
    using Buffers = std::vector<BufferId>;
    using Tensors = std::vector<std::int32_t>;
    struct Pending {
        std::int32_t flush;
        BufferId buffer;
    };
    struct Bucket {
        BufferId buffer;
        std::int32_t flush; // whose tensors it holds
    };

    const Zero12Rules::GradientClasses& classesOf(int layer, int module) const
    {
        const auto type = static_cast<std::size_t>(m_rules.m_model.layers[static_cast<std::size_t>(layer)]);
        return m_rules.m_gradients[type][static_cast<std::size_t>(module)];
    }
    Held& heldOf(int layer, int module)
    {
        return m_held[static_cast<std::size_t>(layer)][static_cast<std::size_t>(module)];
    }

    Held makeGradient(int layer, int module)
    {
        const Zero12Rules::GradientClasses& classes = classesOf(layer, module);
        Held made;
        if (classes.none())
            return made;
        setUpBuckets();
        static_cast<GradientBuffers&>(made) = m_record.allocateGradients(
            classes, m_rules.m_dtypes.model, m_rules.m_order, layer, module, m_rules.bucketLimit());
        return made;
    }
    /// Of the whole model, or of this rank's part of it.
    BufferId allocateState(BufferClassId bufferClass, Quantity quantity, DType dtype, const Layout& layout)
    {
        return m_record.allocate(bufferClass, quantity, dtype, layout, m_rules.m_world);
    }

    void drop(BufferId& buffer)
    {
        if (buffer >= 0)
            m_builder.free(buffer);
        buffer = -1;
    }

    void dropAll(const GradientBuffers& gradients)
    {
        for (const BufferId buffer : gradients.all())
            m_builder.free(buffer);
    }

    OpId copy(OpKind kind, Stream stream, Phase phase, PayloadId payload)
    {
        const OpId id = m_builder.op(kind, stream, phase, m_layer);
        m_builder.move(payload);
        return id;
    }
    /// The host waits for `op` here: a copy that is not page-locked, a synchronize(), an item().
    void block(OpId op, Phase phase)
    {
        m_builder.op(OpKind::Release, Stream::Compute, phase, m_layer);
        m_builder.blockHost(op);
    }
    void transfer(OpKind kind, PayloadId payload, Verb verb, const Buffers& from, const Buffers& to)
    {
        const OpId id = copy(kind, m_reduceStream, Phase::Backward, payload);
        if (verb == Verb::Add)
            m_record.add(from, to);
        else
            m_record.move(from, to);
        if (!m_rules.m_options.pinMemory)
            block(id, Phase::Backward);
    }

    /// A later part of the same gradient (another micro-step, a tied weight's other use) is added in place.
    void addTo(int layer, int module, Held fresh)
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

    void initialise()
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

    void setUpBuckets()
    {
        if (!m_buckets.empty() || !m_rules.contiguous())
            return;
        for (int i = 0; i < (m_rules.overlaps() ? 2 : 1); ++i)
            m_buckets.push_back({m_record.allocateScratch(m_rules.m_bucket), -1});
    }

    /// What goes out together stands in the order of arrival.
    Layout layoutOf(std::int32_t flush) const
    {
        const BucketPlan& plan = m_rules.flushPlan();
        const BucketFlush& flushed = plan.flushes[static_cast<std::size_t>(flush)];
        return wholeLayout(tensorsOf(plan.tensors, flushed.firstTensor, flushed.endTensor));
    }

    /// The bucket that the flush empties, as it holds that one's tensors; with two they take turns.
    BufferId bucketOf(std::int32_t flush)
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

    /// Where the gradients of a flush lie before it. `arriving`: of a module that completes meanwhile, those for the
    /// bucket, some of which still go out with it.
    Buffers gradientsOf(std::int32_t flush, BufferId arriving)
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

    void arrive(const BucketArrival& arrival)
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

    /// Whether some of the arriving module's own tensors go out of the bucket with a flush that its others cause.
    bool splits(const ModuleGradient& arriving, std::int32_t flush) const
    {
        const Tensors out = layoutOf(flush).tensors;
        return std::any_of(arriving.bucketed.begin(), arriving.bucketed.end(), [&](const FlatTensor& tensor) {
            return std::find(out.begin(), out.end(), tensor.tensor) != out.end();
        });
    }

    void reduce(std::int32_t flush, BufferId arriving = -1)
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
            m_touched =
                allocateState(m_rules.m_touchedGradients, Quantity::Gradients, m_rules.m_dtypes.model, m_touching);
        if (!m_rules.offload())
            m_record.move(gradients, {m_touched});
        const auto gone = std::stable_partition(m_pending.begin(), m_pending.end(),
                                                [flush](const Pending& pending) { return pending.flush != flush; });
        for (auto it = gone; it != m_pending.end(); ++it)
            m_builder.free(it->buffer);
        m_pending.erase(gone, m_pending.end());
    }

    /// average_tensor: the reduction stream waits for the compute stream, and that for the reductions before. Gradients
    /// that are in no bucket come by buffered_reduce_fallback instead, whose allreduce_and_copy makes the host wait for
    /// both (synchronize()).
    OpId joinStreams()
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

    void allReduce(std::int32_t flush, const Buffers& gradients)
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

    /// allreduce_no_retain to each owner in turn. allreduce_and_copy first lets the device come to rest where
    /// reductions have a stream of their own (synchronize()): only the last of a bucket overlaps with anything.
    void reduceToOwners(std::int32_t flush, const Buffers& gradients)
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

    /// DeepSpeed sends a tensor larger than the bucket and a partition piece by piece, through a copy of a piece; the
    /// executor reduces it where it lies.
    bool copiesWhole(std::int32_t flush) const
    {
        const auto index = static_cast<std::size_t>(flush);
        const BufferClassId flatten = m_rules.m_reductions[index].front().flatten;
        const Bytes copy = m_rules.m_sizes.buffers[static_cast<std::size_t>(flatten)].bytes;
        return copy == bytesOf(m_rules.flushPlan().flushes[index].elements, m_rules.m_dtypes.model);
    }
    BufferId allocateCopy(BufferClassId bufferClass, DType dtype, std::int32_t flush)
    {
        if (!m_record.records() || (dtype == m_rules.m_dtypes.model && !copiesWhole(flush)))
            return m_record.allocateScratch(bufferClass);
        return m_record.allocate(bufferClass, Quantity::Gradients, dtype, layoutOf(flush));
    }

    void microStep(const MicroStep& step)
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

    void beginBackward(const MicroStep& step)
    {
        m_first = step.first;
        m_last = step.last;
        m_lastReduced = -1;
        m_reducing = m_rules.m_options.stage == 2 || (m_rules.overlaps() && step.last);
        m_arrival = 0;
        m_tiedSeen = false;
    }

    void endBackward(const MicroStep& step)
    {
        const BucketPlan& plan = m_reducing ? m_rules.m_inBackward : m_rules.m_inOrder;
        if (!m_reducing && step.last)
            for (const BucketArrival& arrival : plan.arrivals)
                arrive(arrival);
        if (!m_reducing && !step.last)
            return;
        for (std::int32_t flush = plan.firstRemaining(); flush < static_cast<std::int32_t>(plan.flushes.size());
             ++flush)
            reduce(flush);
        epilogue(step);
    }

    /// stage_1_and_2.py independent_gradient_partition_epilogue: the first micro-step's copy stays to be added to,
    /// later ones go.
    void epilogue(const MicroStep& step)
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

    void accumulate()
    {
        copy(OpKind::Copy, m_reduceStream, Phase::Backward, m_rules.m_accumulate);
        m_record.add({m_touched}, {m_averaged});
    }

    /// The gradients that this rank keeps of a bucket go down as soon as it is reduced: asynchronously, in its stream.
    OpId offloadGradients(const Zero12Rules::FlushCopies& copies, const Buffers& gradients)
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

    void optimizerStep()
    {
        m_layer = -1;
        if (m_rules.offload())
            stepOnHost();
        else
            stepOnGpu();
        m_builder.op(OpKind::AllGather, Stream::Compute, Phase::Optimizer);
        m_builder.send(m_rules.m_gather, m_rules.m_world);
        m_record.collective(Verb::AllGather, m_rules.m_world, {m_flat}, {m_flat});
        m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
        dropAccumulated();
    }

    void clip(BufferId gradient)
    {
        if (m_rules.m_training.gradientClipping)
            m_record.clip(m_rules.m_world, {gradient});
    }

    void stepOnHost()
    {
        // step waits for the copies (synchronize()), then the host steps itself
        const OpId ready = m_builder.op(OpKind::Release, Stream::Compute, Phase::Optimizer);
        const OpId stepped = copy(OpKind::HostOptimizerStep, Stream::Host, Phase::Optimizer, m_rules.m_step);
        m_builder.blockHost(ready);
        clip(m_hostGradient);
        m_record.update({m_hostGradient}, {m_master, m_moments});
        m_record.move({m_master}, {m_staging});
        m_builder.op(OpKind::CopyToDevice, Stream::Compute, Phase::Optimizer);
        m_builder.move(m_rules.m_parametersUp);
        m_builder.blockHost(stepped);
        m_record.move({m_staging}, {m_flat});
    }

    void stepOnGpu()
    {
        const DeepSpeedDtypes& dtypes = m_rules.m_dtypes;
        const OpId checked = copy(OpKind::Copy, Stream::Compute, Phase::Optimizer, m_rules.m_check);
        BufferId overflow = m_record.allocateScratch(m_rules.m_overflow);
        drop(overflow);
        BufferId norm = m_record.allocateScratch(m_rules.m_norm);
        drop(norm);
        copy(OpKind::Copy, Stream::Compute, Phase::Optimizer, m_rules.m_prepare);
        m_builder.blockHost(checked); // overflow and norm are read on the host: item()
        dropAccumulated();
        BufferId flat = allocateState(m_rules.m_flatGradient, Quantity::Gradients, dtypes.accumulate, m_part);
        m_record.move({m_averaged}, {flat});
        BufferId gradient = flat;
        BufferId cast = -1;
        if (dtypes.accumulate != dtypes.master) {
            gradient = cast = allocateState(m_rules.m_castGradient, Quantity::Gradients, dtypes.master, m_part);
            m_record.move({flat}, {cast});
            drop(flat);
        }
        clip(gradient);
        drop(m_averaged);
        copy(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer, m_rules.m_step);
        BufferId foreach = m_record.allocateScratch(m_rules.m_foreach);
        drop(foreach);
        m_record.update({gradient}, {m_master, m_moments});
        m_record.move({m_master}, {m_flat});
        drop(cast);
        drop(flat);
    }

    void dropAccumulated()
    {
        for (std::vector<Held>& layer : m_held)
            for (Held& held : layer)
                drop(held.accumulated);
    }

    const Zero12Rules& m_rules;
    ScheduleBuilder m_builder;
    ContentRecorder m_record;
    ActivationWalk m_walk;
    Stream m_reduceStream;
    std::vector<std::vector<Held>> m_held; // by layer and module
    std::vector<Pending> m_pending;
    std::vector<Bucket> m_buckets;
    Held m_fresh; // of the module whose backward runs
    Layout m_part, m_whole, m_touching;
    BufferId m_flat = -1, m_master = -1, m_moments = -1;
    BufferId m_hostGradient = -1, m_staging = -1, m_accumulators = -1;
    BufferId m_touched = -1;  // this micro-step's gradients of the partition
    BufferId m_averaged = -1; // those of the micro-steps before
    std::size_t m_arrival = 0;
    OpId m_lastReduced = -1;
    int m_layer = -1;
    bool m_first = true;
    bool m_last = true;
    bool m_reducing = false;
    bool m_tiedSeen = false;
};

Schedule Zero12Rules::emit() const
{
    return Zero12Emission(*this).run();
}

} // namespace shardwright
