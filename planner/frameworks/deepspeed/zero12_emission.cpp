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

    /// A later part of the same gradient (another micro-step, a tied weight's other use) is added in place.
    void addTo(Held& held, Held fresh, const Zero12Rules::GradientClasses& classes)
    {
        if (m_rules.separateAccumulation()) {
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
            m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward, layer);
            const Zero12Rules::GradientClasses& classes = classesOf(layer, module);
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
        m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward, layer);
        m_builder.free(going.bucketed);
    }

    void reduce(std::int32_t flush)
    {
        const auto index = static_cast<std::size_t>(flush);
        const DeepSpeedOptions& options = m_rules.m_options;
        const bool toOwner = options.reduceScatter && !options.useMultiRankBucketAllreduce && m_rules.contiguous();
        m_builder.op(toOwner ? OpKind::Reduce : OpKind::AllReduce, m_reduceStream, Phase::Backward);
        BufferId flat = m_builder.allocate(m_rules.m_flatten[index]);
        BufferId cast = m_builder.allocate(m_rules.m_cast[index]);
        m_builder.send(m_rules.m_reduce[index], m_rules.m_world);
        drop(cast);
        drop(flat);
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
        m_reducing = m_rules.m_options.stage == 2 || (m_rules.overlaps() && step.last);
        m_arrival = 0;
        m_tiedSeen = false;
        m_walk.beginMicroStep(m_builder);
        for (int layer = 0; layer < layers; ++layer)
            m_walk.forward(m_builder, layer, *this);
        m_walk.loss(m_builder);
        for (int layer = layers - 1; layer >= 0; --layer)
            m_walk.backward(m_builder, layer, *this);
        const BucketPlan& plan = m_reducing ? m_rules.m_inBackward : m_rules.m_inOrder;
        if (!m_reducing && step.last)
            for (const BucketArrival& arrival : plan.arrivals)
                arrive(arrival);
        if (m_reducing || step.last) {
            for (std::int32_t flush = plan.firstRemaining(); flush < static_cast<std::int32_t>(plan.flushes.size());
                 ++flush)
                reduce(flush);
            epilogue(step);
        }
        m_walk.endMicroStep(m_builder);
    }

    /// stage_1_and_2.py independent_gradient_partition_epilogue: the first micro-step's copy stays to be added to,
    /// later ones go.
    void epilogue(const MicroStep& step)
    {
        if (m_rules.offload())
            offloadGradients(step);
        m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward);
        for (BufferId& bucket : m_buckets)
            drop(bucket);
        m_buckets.clear();
        if (m_averaged < 0)
            std::swap(m_averaged, m_touched);
        drop(m_touched);
    }

    void offloadGradients(const MicroStep& step)
    {
        if (m_rules.m_options.stage == 2 && m_rules.m_training.gradientAccumulation > 1) {
            if (!step.first) {
                m_builder.op(OpKind::CopyToDevice, Stream::HostToDevice, Phase::Backward);
                m_builder.move(m_rules.m_accumulateUp);
            }
            if (!step.last) {
                m_builder.op(OpKind::CopyToHost, Stream::DeviceToHost, Phase::Backward);
                m_builder.move(m_rules.m_accumulateDown);
            }
        }
        if (!step.last)
            return;
        m_builder.op(OpKind::CopyToHost, Stream::DeviceToHost, Phase::Backward);
        BufferId norm = m_builder.allocate(m_rules.m_norm);
        drop(norm);
        BufferId cast = m_builder.allocate(m_rules.m_offloadCast);
        m_builder.move(m_rules.m_gradientDown);
        drop(cast);
    }

    void optimizerStep()
    {
        if (m_rules.offload()) {
            m_builder.op(OpKind::HostOptimizerStep, Stream::Host, Phase::Optimizer);
            m_builder.op(OpKind::CopyToDevice, Stream::HostToDevice, Phase::Optimizer);
            m_builder.move(m_rules.m_parametersUp);
        } else {
            m_builder.op(OpKind::Copy, Stream::Compute, Phase::Optimizer);
            BufferId overflow = m_builder.allocate(m_rules.m_overflow);
            drop(overflow);
            BufferId norm = m_builder.allocate(m_rules.m_norm);
            drop(norm);
            dropAccumulated();
            BufferId flat = m_builder.allocate(m_rules.m_flatGradient);
            BufferId cast = -1;
            if (m_rules.m_dtypes.accumulate != m_rules.m_dtypes.master) {
                cast = m_builder.allocate(m_rules.m_castGradient);
                drop(flat);
            }
            drop(m_averaged);
            m_builder.op(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer);
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
    bool m_reducing = false;
    bool m_tiedSeen = false;
};

Schedule Zero12Rules::emit() const
{
    return Zero12Emission(*this).run();
}

} // namespace shardwright
