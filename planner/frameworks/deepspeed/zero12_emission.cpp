// The schedule of ZeRO-1 and ZeRO-2.

#include <algorithm>

#include "planner/frameworks/deepspeed/zero12.hpp"

namespace shardwright {

class Zero12Emission final : public StageObserver {
public:
    explicit Zero12Emission(const Zero12Rules& rules)
        : m_rules(rules), m_builder(rules.m_sizes), m_walk(rules.m_activations),
          m_reduceStream(rules.overlaps() ? Stream::Reduce : Stream::Compute)
    {
        for (const int type : rules.m_model.layers)
            m_held.emplace_back(rules.m_gradients[static_cast<std::size_t>(type)].size());
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

    void afterStage(Pass pass, int layer, int module) override
    {
        if (pass != Pass::Backward)
            return;
        const Zero12Rules::GradientClasses& classes = classesOf(layer, module);
        if (classes.bucketed < 0 && classes.large < 0)
            return;
        setUpBuckets();
        Held fresh;
        if (classes.bucketed >= 0)
            fresh.bucketed = m_builder.allocate(classes.bucketed);
        if (classes.large >= 0)
            fresh.large = m_builder.allocate(classes.large);
        m_layer = layer;
        addTo(heldOf(layer, module), fresh, classes);
        if (isTiedModule(m_rules.m_model, layer, module) && !m_tiedSeen) {
            m_tiedSeen = true;
            return;
        }
        if (m_reducing)
            arrive(m_rules.m_inBackward.arrivals[m_arrival++]);
    }

private:
    struct Held {
        BufferId bucketed = -1;
        BufferId large = -1;
        BufferId accumulated = -1;
    };
    struct Pending {
        std::int32_t flush;
        BufferId buffer;
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

    void drop(BufferId& buffer)
    {
        if (buffer >= 0)
            m_builder.free(buffer);
        buffer = -1;
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
    void transfer(OpKind kind, PayloadId payload)
    {
        const OpId id = copy(kind, m_reduceStream, Phase::Backward, payload);
        if (!m_rules.m_options.pinMemory)
            block(id, Phase::Backward);
    }

    /// A later part of the same gradient (another micro-step, a tied weight's other use) is added in place.
    void addTo(Held& held, Held fresh, const Zero12Rules::GradientClasses& classes)
    {
        if (m_rules.separateAccumulation()) {
            copy(OpKind::Copy, Stream::Compute, Phase::Backward, classes.addUp);
            if (held.accumulated < 0)
                held.accumulated = m_builder.allocate(classes.accumulated);
            drop(fresh.bucketed);
            drop(fresh.large);
            return;
        }
        if (held.bucketed < 0 && held.large < 0) {
            held = fresh;
            return;
        }
        copy(OpKind::Copy, Stream::Compute, Phase::Backward, classes.addUp);
        drop(fresh.bucketed);
        drop(fresh.large);
    }

    void initialise()
    {
        m_builder.beginSegment("initialisation");
        m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
        const BufferId module = m_builder.allocate(m_rules.m_module);
        m_builder.allocate(m_rules.m_frozen);
        m_builder.allocate(m_rules.m_flat);
        m_builder.free(module);
        m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
        if (m_rules.offload()) {
            m_builder.allocate(m_rules.m_offloadBuffer);
            for (const BufferClassId host : {m_rules.m_hostMaster, m_rules.m_hostGradient, m_rules.m_hostStaging,
                                             m_rules.m_hostLargest, m_rules.m_hostAccumulators, m_rules.m_hostMoments})
                m_builder.allocate(host);
        } else {
            m_builder.allocate(m_rules.m_master);
            const BufferId zeros = m_builder.allocate(m_rules.m_firstGradient);
            m_builder.free(zeros);
            m_builder.allocate(m_rules.m_moments);
        }
        m_walk.carryOver(m_builder);
    }

    void setUpBuckets()
    {
        if (!m_buckets.empty() || !m_rules.contiguous())
            return;
        m_buckets.push_back(m_builder.allocate(m_rules.m_bucket));
        if (m_rules.overlaps())
            m_buckets.push_back(m_builder.allocate(m_rules.m_bucket));
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
            going.bucketed = classes.bucketed >= 0 ? m_builder.allocate(classes.bucketed) : -1;
            going.large = classes.large >= 0 ? m_builder.allocate(classes.large) : -1;
        } else {
            held = {};
        }
        if (going.large >= 0)
            m_pending.push_back({arrival.largeFlush, going.large});
        for (std::int32_t flush = arrival.firstFlush; flush < arrival.endFlush; ++flush)
            reduce(flush);
        if (going.bucketed < 0)
            return;
        if (!m_rules.contiguous()) {
            m_pending.push_back({arrival.endFlush, going.bucketed});
            return;
        }
        m_layer = layer;
        copy(OpKind::Copy, Stream::Compute, Phase::Backward, classesOf(layer, module).toBucket);
        m_builder.free(going.bucketed);
    }

    void reduce(std::int32_t flush)
    {
        const auto index = static_cast<std::size_t>(flush);
        const DeepSpeedOptions& options = m_rules.m_options;
        const bool toOwner = options.reduceScatter && !options.useMultiRankBucketAllreduce && m_rules.contiguous();
        const Zero12Rules::FlushCopies& copies = m_rules.m_flushCopies[index];
        m_layer = -1;
        // average_tensor: the reduction stream waits for the compute stream, and that for the reductions before.
        OpId ready = -1;
        if (m_rules.overlaps()) {
            ready = m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward);
            m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward);
            m_builder.wait(m_lastReduced);
        }
        copy(OpKind::Copy, m_reduceStream, Phase::Backward, copies.prepare);
        m_builder.wait(ready);
        BufferId flat = m_builder.allocate(m_rules.m_flatten[index]);
        BufferId cast = m_builder.allocate(m_rules.m_cast[index]);
        m_builder.op(toOwner ? OpKind::Reduce : OpKind::AllReduce, m_reduceStream, Phase::Backward);
        m_builder.send(m_rules.m_reduce[index], m_rules.m_world);
        m_lastReduced = copy(OpKind::Copy, m_reduceStream, Phase::Backward, copies.copyBack);
        drop(cast);
        drop(flat);
        if (m_rules.offload())
            m_lastReduced = offloadGradients(copies);
        if (!m_rules.offload() && m_touched < 0)
            m_touched = m_builder.allocate(m_rules.m_touchedGradients);
        const auto gone = std::stable_partition(m_pending.begin(), m_pending.end(),
                                                [flush](const Pending& pending) { return pending.flush != flush; });
        for (auto it = gone; it != m_pending.end(); ++it)
            m_builder.free(it->buffer);
        m_pending.erase(gone, m_pending.end());
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
            BufferId norm = m_builder.allocate(m_rules.m_norm);
            drop(norm);
            BufferId cast = m_builder.allocate(m_rules.m_offloadCast);
            drop(cast);
        }
        if (!m_rules.offload() && !step.first && m_rules.m_options.stage == 2)
            copy(OpKind::Copy, m_reduceStream, Phase::Backward, m_rules.m_accumulate);
        const OpId reduced = m_builder.lastOp();
        m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward);
        if (m_rules.overlaps())
            m_builder.blockHost(reduced); // synchronize()
        for (BufferId& bucket : m_buckets)
            drop(bucket);
        m_buckets.clear();
        if (m_averaged < 0)
            std::swap(m_averaged, m_touched);
        drop(m_touched);
    }

    /// The gradients that this rank keeps of a bucket go down as soon as it is reduced: asynchronously, in its stream.
    OpId offloadGradients(const Zero12Rules::FlushCopies& copies)
    {
        if (m_rules.m_options.stage == 2 && m_rules.m_training.gradientAccumulation > 1) {
            if (!m_first)
                transfer(OpKind::CopyToDevice, copies.accumulateUp);
            if (!m_last)
                transfer(OpKind::CopyToHost, copies.accumulateDown);
        }
        if (m_last)
            transfer(OpKind::CopyToHost, copies.down);
        return m_builder.lastOp();
    }

    void optimizerStep()
    {
        m_layer = -1;
        if (m_rules.offload()) {
            // step waits for the copies (synchronize()), then the host steps itself
            const OpId ready = m_builder.op(OpKind::Release, Stream::Compute, Phase::Optimizer);
            const OpId stepped = copy(OpKind::HostOptimizerStep, Stream::Host, Phase::Optimizer, m_rules.m_step);
            m_builder.blockHost(ready);
            m_builder.op(OpKind::CopyToDevice, Stream::Compute, Phase::Optimizer);
            m_builder.move(m_rules.m_parametersUp);
            m_builder.blockHost(stepped);
        } else {
            const OpId checked = copy(OpKind::Copy, Stream::Compute, Phase::Optimizer, m_rules.m_check);
            BufferId overflow = m_builder.allocate(m_rules.m_overflow);
            drop(overflow);
            BufferId norm = m_builder.allocate(m_rules.m_norm);
            drop(norm);
            copy(OpKind::Copy, Stream::Compute, Phase::Optimizer, m_rules.m_prepare);
            m_builder.blockHost(checked); // overflow and norm are read on the host: item()
            dropAccumulated();
            BufferId flat = m_builder.allocate(m_rules.m_flatGradient);
            BufferId cast = -1;
            if (m_rules.m_dtypes.accumulate != m_rules.m_dtypes.master) {
                cast = m_builder.allocate(m_rules.m_castGradient);
                drop(flat);
            }
            drop(m_averaged);
            copy(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer, m_rules.m_step);
            BufferId foreach = m_builder.allocate(m_rules.m_foreach);
            drop(foreach);
            drop(cast);
            drop(flat);
        }
        m_builder.op(OpKind::AllGather, Stream::Compute, Phase::Optimizer);
        m_builder.send(m_rules.m_gather, m_rules.m_world);
        m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
        dropAccumulated();
    }

    void dropAccumulated()
    {
        for (std::vector<Held>& layer : m_held)
            for (Held& held : layer)
                drop(held.accumulated);
    }

    const Zero12Rules& m_rules;
    ScheduleBuilder m_builder;
    ActivationWalk m_walk;
    Stream m_reduceStream;
    std::vector<std::vector<Held>> m_held; // by layer and module
    std::vector<Pending> m_pending;
    std::vector<BufferId> m_buckets;
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
