// The schedule of ZeRO-3.

#include <algorithm>

#include "planner/frameworks/deepspeed/zero3.hpp"

namespace shardwright {

class Zero3Emission final : public StageObserver {
public:
    explicit Zero3Emission(const Zero3Rules& rules)
        : m_rules(rules), m_builder(rules.m_sizes), m_walk(rules.m_activations),
          m_secondaries(rules.m_gathers.units.size(), -1)
    {
        const std::size_t calls = std::max(rules.m_gathers.first.calls.size(), rules.m_gathers.later.calls.size());
        const std::size_t pieces = std::max(rules.m_gathers.first.pieces.size(), rules.m_gathers.later.pieces.size());
        m_flats.assign(calls, -1);
        m_widened.assign(calls, -1);
        m_pieces.assign(pieces, -1);
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

    void beforeStage(Pass pass, int layer, int) override
    {
        m_phase = pass == Pass::Forward ? Phase::Forward : Phase::Backward;
        m_layer = layer;
        play(m_trace->beforeEnd[m_visit]);
    }

    void afterStage(Pass pass, int layer, int module) override
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

private:
    struct Gradient {
        BufferId bucketed = -1;
        BufferId large = -1;
    };
    struct Pending {
        std::int32_t flush;
        BufferId buffer;
    };

    void drop(BufferId& buffer)
    {
        if (buffer >= 0)
            m_builder.free(buffer);
        buffer = -1;
    }
    void once(BufferClassId bufferClass) { m_builder.free(m_builder.allocate(bufferClass)); }
    void copy(OpKind kind, Stream stream, Phase phase, PayloadId payload)
    {
        m_builder.op(kind, stream, phase, m_layer);
        m_builder.move(payload);
    }

    void initialise()
    {
        m_builder.beginSegment("initialisation");
        m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
        const BufferId whole = m_builder.allocate(m_rules.m_wholeModule);
        for (const BufferClassId shards : {m_rules.m_shards, m_rules.m_frozenShards, m_rules.m_hostShards,
                                           m_rules.m_paramBuffers, m_rules.m_nvmeParameters})
            m_builder.allocate(shards);
        once(m_rules.m_largestTensor);
        m_builder.free(whole);
        m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
        for (const BufferClassId state :
             {m_rules.m_persistent, m_rules.m_master, m_rules.m_gradientShards, m_rules.m_bucket, m_rules.m_moments,
              m_rules.m_hostMaster, m_rules.m_hostNarrowGradients, m_rules.m_hostWideGradients, m_rules.m_hostMoments,
              m_rules.m_swapBuffers, m_rules.m_nvmeStates})
            m_builder.allocate(state);
        m_walk.carryOver(m_builder);
    }

    void play(std::uint32_t end)
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

    bool quantized() const { return m_rules.m_options.quantizedWeights; }
    const Zero3Rules::CallClasses& classesOf(std::size_t call) const
    {
        return m_rules.m_calls[static_cast<std::size_t>(m_trace->calls[call].kind)];
    }

    void gather(std::size_t index)
    {
        const GatherCall& call = m_trace->calls[index];
        const Zero3Rules::CallClasses& classes = classesOf(index);
        BufferId upload = -1;
        if (!call.secondary && m_rules.paramOn(OffloadDevice::Nvme))
            copy(OpKind::NvmeRead, Stream::Nvme, m_phase, classes.nvmeRead);
        if (!call.secondary && !m_rules.paramOn(OffloadDevice::None)) {
            copy(OpKind::CopyToDevice, Stream::HostToDevice, m_phase, classes.uploadCopy);
            upload = m_builder.allocate(classes.upload);
        }
        BufferId input = -1;
        if (quantized()) {
            m_builder.op(OpKind::Quantize, Stream::AllGather, m_phase, m_layer);
            input = m_builder.allocate(classes.quantized);
            drop(upload);
        }
        m_builder.op(OpKind::AllGather, Stream::AllGather, m_phase, m_layer);
        const BufferId flat = m_builder.allocate(classes.flat);
        m_builder.send(classes.gather, call.secondary ? m_rules.m_secondaryGroup : m_rules.m_shardGroup);
        drop(input);
        drop(upload);
        if (classes.coalesced || quantized())
            m_flats[index] = flat;
        else
            m_pieces[static_cast<std::size_t>(call.firstPiece)] = flat; // the parameter is a view of it
    }

    /// The first of a call's parameters is needed: all of them are made.
    void wait(std::size_t index)
    {
        const GatherCall& call = m_trace->calls[index];
        const Zero3Rules::CallClasses& classes = classesOf(index);
        if (!classes.coalesced && !quantized())
            return;
        m_builder.op(quantized() ? OpKind::Dequantize : OpKind::Copy, Stream::AllGather, m_phase, m_layer);
        if (quantized() && classes.coalesced)
            m_widened[index] = m_builder.allocate(classes.widened);
        for (std::int32_t i = call.firstPiece; i < call.endPiece; ++i) {
            const auto piece = static_cast<std::size_t>(i);
            const auto kind = static_cast<std::size_t>(m_trace->pieces[piece].kind);
            BufferId narrow = quantized() && !classes.coalesced ? m_builder.allocate(m_rules.m_narrowPieces[kind]) : -1;
            m_pieces[piece] = m_builder.allocate(m_rules.m_pieces[kind]);
            drop(narrow);
        }
    }

    void dropFlat(std::size_t call)
    {
        if (m_flats[call] < 0)
            return;
        m_builder.op(OpKind::Release, Stream::AllGather, m_phase, m_layer);
        drop(m_flats[call]);
        drop(m_widened[call]);
    }

    void freePiece(std::size_t piece)
    {
        m_builder.op(OpKind::Release, Stream::Compute, m_phase, m_layer);
        drop(m_pieces[piece]);
    }

    void makeSecondary(std::size_t unit)
    {
        m_builder.op(OpKind::Copy, Stream::Compute, m_phase, m_layer);
        m_secondaries[unit] =
            m_builder.allocate(m_rules.m_secondaries[static_cast<std::size_t>(m_rules.m_gathers.units[unit].type)]);
    }

    void makeGradient(int layer, int module)
    {
        const auto type = static_cast<std::size_t>(m_rules.m_model.layers[static_cast<std::size_t>(layer)]);
        const Zero3Rules::GradientClasses& classes = m_rules.m_gradients[type][static_cast<std::size_t>(module)];
        if (classes.bucketed < 0 && classes.large < 0)
            return;
        Gradient fresh;
        if (classes.bucketed >= 0)
            fresh.bucketed = m_builder.allocate(classes.bucketed);
        if (classes.large >= 0)
            fresh.large = m_builder.allocate(classes.large);
        if (isTiedModule(m_rules.m_model, layer, module)) {
            if (m_tied.bucketed < 0 && m_tied.large < 0) {
                m_tied = fresh; // complete when the embedding's part is added in place
                return;
            }
            drop(fresh.bucketed);
            drop(fresh.large);
            fresh = std::exchange(m_tied, {});
        }
        m_made.push_back(fresh);
        ++m_complete;
    }

    void arrive(const BucketArrival& arrival)
    {
        Gradient gradient = m_made[m_arrival];
        if (gradient.large >= 0 && m_rules.m_options.contiguousGradients)
            m_pending.push_back({arrival.largeFlush, gradient.large});
        for (std::int32_t flush = arrival.firstFlush; flush < arrival.endFlush; ++flush)
            reduce(flush);
        if (gradient.large >= 0 && !m_rules.m_options.contiguousGradients)
            m_pending.push_back({arrival.endFlush, gradient.large}); // no bucket: the gradients themselves wait
        if (gradient.bucketed < 0)
            return;
        m_builder.op(OpKind::Copy, Stream::Reduce, Phase::Backward, m_layer);
        drop(gradient.bucketed);
    }

    void reduce(std::int32_t index)
    {
        const BucketFlush& flush = m_rules.m_buckets.flushes[static_cast<std::size_t>(index)];
        const Zero3Rules::FlushClasses& classes = m_rules.m_flushes[static_cast<std::size_t>(flush.kind)];
        const DeepSpeedOptions& options = m_rules.m_options;
        if (options.quantizedGradients)
            reduceCompressed(classes);
        if (!options.quantizedGradients || !classes.compressesAll) {
            m_builder.op(options.reduceScatter ? OpKind::ReduceScatter : OpKind::AllReduce, Stream::Reduce,
                         Phase::Backward, m_layer);
            BufferId cast = m_builder.allocate(classes.cast);
            BufferId input = m_builder.allocate(classes.input);
            m_builder.send(classes.scatter, m_rules.m_shardGroup);
            drop(cast);
            drop(input);
        }
        if (m_last && options.micsShardSize > 0) {
            m_builder.op(OpKind::AllReduce, Stream::Replicate, Phase::Backward, m_layer);
            m_builder.send(classes.replicate, m_rules.m_replicaGroup);
        }
        if (m_rules.offloadsOptimizer())
            offload(classes);
        const auto gone = std::stable_partition(m_pending.begin(), m_pending.end(),
                                                [index](const Pending& pending) { return pending.flush != index; });
        for (auto it = gone; it != m_pending.end(); ++it)
            m_builder.free(it->buffer);
        m_pending.erase(gone, m_pending.end());
    }

    /// qgZ: quantise, all-to-all inside the node, reduce, quantise, all-to-all between nodes, reduce.
    void reduceCompressed(const Zero3Rules::FlushClasses& classes)
    {
        m_builder.op(OpKind::Quantize, Stream::Reduce, Phase::Backward, m_layer);
        BufferId sent = m_builder.allocate(classes.compressed);
        m_builder.op(OpKind::AllToAll, Stream::Reduce, Phase::Backward, m_layer);
        BufferId received = m_builder.allocate(classes.compressed);
        m_builder.send(classes.inside, m_rules.m_insideGroup);
        drop(sent);
        m_builder.op(OpKind::AllToAll, Stream::Reduce, Phase::Backward, m_layer);
        m_builder.send(classes.between, m_rules.m_betweenGroup);
        m_builder.op(OpKind::Dequantize, Stream::Reduce, Phase::Backward, m_layer);
        drop(received);
    }

    /// stage3.py partition_grads: the accumulated 16-bit shard lives on the host and comes to the GPU to be added to;
    /// at the boundary it goes back in fp32.
    void offload(const Zero3Rules::FlushClasses& classes)
    {
        copy(OpKind::CopyToHost, Stream::DeviceToHost, Phase::Backward, classes.narrowCopy);
        copy(OpKind::CopyToDevice, Stream::HostToDevice, Phase::Backward, classes.narrowCopy);
        once(classes.offload);
        if (!m_last)
            return;
        copy(OpKind::CopyToHost, Stream::DeviceToHost, Phase::Backward, classes.wideCopy);
        if (m_rules.optimizerOn(OffloadDevice::Nvme))
            copy(OpKind::NvmeWrite, Stream::Nvme, Phase::Backward, classes.wideCopy);
    }

    void microStep(const MicroStep& step)
    {
        const int layers = static_cast<int>(m_rules.m_model.layers.size());
        m_trace = step.first ? &m_rules.m_gathers.first : &m_rules.m_gathers.later;
        m_last = step.last;
        m_visit = 0;
        m_command = 0;
        m_arrival = 0;
        m_complete = 0;
        m_made.clear();
        m_walk.beginMicroStep(m_builder);
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
        m_walk.endMicroStep(m_builder);
    }

    void optimizerStep()
    {
        m_layer = -1;
        m_builder.op(OpKind::Copy, Stream::Compute, Phase::Optimizer);
        once(m_rules.m_overflow);
        once(m_rules.m_norm);
        for (const Zero3Rules::SubGroup& group : m_rules.m_subGroups)
            stepGroup(group);
        if (!m_rules.paramOn(OffloadDevice::None) && m_rules.onGpuElements() > 0)
            copy(OpKind::CopyToHost, Stream::DeviceToHost, Phase::Optimizer, m_rules.m_parametersDown);
        if (m_rules.paramOn(OffloadDevice::Nvme))
            copy(OpKind::NvmeWrite, Stream::Nvme, Phase::Optimizer, m_rules.m_nvmeParameterWrite);
        m_builder.op(OpKind::AllGather, Stream::AllGather, Phase::Optimizer);
        m_builder.send(m_rules.m_persistentGather, m_rules.m_shardGroup);
        m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
        for (BufferId& secondary : m_secondaries)
            drop(secondary); // stage3.py invalidate_secondary_tensor
    }

    void stepGroup(const Zero3Rules::SubGroup& group)
    {
        if (!group.onGpu) {
            if (m_rules.optimizerOn(OffloadDevice::Nvme))
                copy(OpKind::NvmeRead, Stream::Nvme, Phase::Optimizer, group.stateRead);
            m_builder.op(OpKind::HostOptimizerStep, Stream::Host, Phase::Optimizer);
            if (m_rules.optimizerOn(OffloadDevice::Nvme))
                copy(OpKind::NvmeWrite, Stream::Nvme, Phase::Optimizer, group.stateWrite);
            if (m_rules.paramOn(OffloadDevice::None))
                copy(OpKind::CopyToDevice, Stream::HostToDevice, Phase::Optimizer, group.parametersUp);
            return;
        }
        m_builder.op(OpKind::Copy, Stream::Compute, Phase::Optimizer);
        BufferId flat = m_builder.allocate(group.flat);
        BufferId wide = -1;
        if (m_rules.m_dtypes.accumulate != m_rules.m_dtypes.master) {
            wide = m_builder.allocate(group.wide);
            drop(flat);
        }
        m_builder.op(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer);
        once(group.foreach);
        drop(wide);
        drop(flat);
    }

    const Zero3Rules& m_rules;
    ScheduleBuilder m_builder;
    ActivationWalk m_walk;
    const GatherTrace* m_trace = nullptr;
    std::vector<BufferId> m_flats;   // by gather call
    std::vector<BufferId> m_widened; // by gather call
    std::vector<BufferId> m_pieces;
    std::vector<BufferId> m_secondaries; // by unit
    std::vector<Gradient> m_made;        // in order of completion
    std::vector<Pending> m_pending;
    Gradient m_tied;
    std::size_t m_visit = 0;
    std::uint32_t m_command = 0;
    std::size_t m_arrival = 0;
    std::size_t m_complete = 0;
    Phase m_phase = Phase::Forward;
    int m_layer = -1;
    bool m_last = true;
};

Schedule Zero3Rules::emit() const
{
    return Zero3Emission(*this).run();
}

} // namespace shardwright
