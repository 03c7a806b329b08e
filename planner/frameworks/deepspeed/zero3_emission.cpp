// The schedule of ZeRO-3.

#include <algorithm>
#include <deque>

#include "planner/frameworks/deepspeed/zero3.hpp"

namespace shardwright {

namespace {

constexpr std::size_t kMostOngoingFetches = 2;    // coordinator __max_ongoing_fetch_events
constexpr std::size_t kMostOngoingReductions = 2; // stage3.py max_param_reduce_events

} // namespace

class Zero3Emission final : public StageObserver {
public:
    explicit Zero3Emission(const Zero3Rules& rules)
        : m_rules(rules), m_builder(rules.m_sizes), m_walk(rules.m_activations),
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
        awaitFetches();
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
    OpId copy(OpKind kind, Stream stream, Phase phase, PayloadId payload)
    {
        const OpId id = m_builder.op(kind, stream, phase, m_layer);
        m_builder.move(payload);
        return id;
    }
    /// The host waits for `op` here: a copy from or to memory that is not page-locked, a synchronize().
    void block(OpId op, Phase phase)
    {
        m_builder.op(OpKind::Release, Stream::Compute, phase, m_layer);
        m_builder.blockHost(op);
    }
    /// Collectives of one communicator run in the order of issue.
    void takeTurn(OpId collective)
    {
        m_builder.wait(m_lastCollective);
        m_lastCollective = collective;
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
        OpId read = -1;
        if (!call.secondary && m_rules.paramOn(OffloadDevice::Nvme))
            read = copy(OpKind::NvmeRead, Stream::Nvme, m_phase, classes.nvmeRead);
        if (!call.secondary && !m_rules.paramOn(OffloadDevice::None)) {
            m_lastFetch = copy(OpKind::CopyToDevice, m_fetchStream, m_phase, classes.uploadCopy);
            m_builder.wait(m_begun);
            m_builder.wait(read);
            upload = m_builder.allocate(classes.upload);
            if (!m_rules.m_options.paramPinMemory)
                block(m_lastFetch, m_phase);
        }
        BufferId input = -1;
        if (quantized()) {
            m_lastFetch = copy(OpKind::Quantize, m_fetchStream, m_phase, classes.quantise);
            m_builder.wait(m_begun);
            input = m_builder.allocate(classes.quantized);
            drop(upload);
        }
        // The communicator has a stream of its own, which waits for the stream that the gather is issued in.
        const OpId issuedIn = m_fetchStream == Stream::Compute ? m_builder.lastOp() : m_lastFetch;
        const OpId gathering = m_builder.op(OpKind::AllGather, Stream::AllGather, m_phase, m_layer);
        m_gatherOps[index] = gathering;
        m_builder.wait(issuedIn);
        if (!call.secondary)
            takeTurn(gathering);
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

    /// coordinator fetch_sub_module: the compute stream waits for all that the fetch stream has waited for.
    void awaitFetches()
    {
        if (m_fetches.empty() || m_fetches.back() == m_awaited || m_fetchStream == Stream::Compute)
            return;
        m_awaited = m_fetches.back();
        m_builder.op(OpKind::Release, Stream::Compute, m_phase, m_layer);
        m_builder.wait(m_awaited);
    }

    void dropFlat(std::size_t call)
    {
        if (m_flats[call] < 0)
            return;
        m_builder.op(OpKind::Release, m_fetchStream, m_phase, m_layer);
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
        copy(OpKind::Copy, Stream::Compute, m_phase,
             m_rules.m_secondaryCopies[static_cast<std::size_t>(m_rules.m_gathers.units[unit].type)]);
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
            copy(OpKind::Copy, Stream::Compute, Phase::Backward, classes.tiedSum);
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
        const OpId made = markGradients();
        const auto [layer, module] = arrival.module;
        const auto type = static_cast<std::size_t>(m_rules.m_model.layers[static_cast<std::size_t>(layer)]);
        copy(OpKind::Copy, m_reduceStream, Phase::Backward,
             m_rules.m_gradients[type][static_cast<std::size_t>(module)].toBucket);
        m_builder.wait(made);
        drop(gradient.bucketed);
    }

    /// What the reduction stream waits for: the compute stream as it stands.
    OpId markGradients()
    {
        return m_reduceStream == Stream::Compute
                   ? -1
                   : m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward, m_layer);
    }

    void reduce(std::int32_t index)
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
        const bool plain = !options.quantizedGradients || !classes.compressesAll;
        if (options.quantizedGradients)
            reduceCompressed(classes);
        if (plain) {
            const OpId reducing = m_builder.op(options.reduceScatter ? OpKind::ReduceScatter : OpKind::AllReduce,
                                               m_reduceStream, Phase::Backward, m_layer);
            BufferId cast = m_builder.allocate(classes.cast);
            BufferId input = m_builder.allocate(classes.input);
            m_builder.send(classes.scatter, m_rules.m_shardGroup);
            takeTurn(reducing);
            drop(cast);
            drop(input);
        }
        if (m_last && options.micsShardSize > 0) {
            const OpId scattered = m_builder.lastOp();
            const OpId replicating = m_builder.op(OpKind::AllReduce, Stream::Replicate, Phase::Backward, m_layer);
            m_builder.send(classes.replicate, m_rules.m_replicaGroup);
            m_builder.wait(scattered);
            m_builder.op(OpKind::Release, m_reduceStream, Phase::Backward, m_layer);
            m_builder.wait(replicating);
        }
        m_lastReduced = m_rules.offloadsOptimizer() ? offload(classes)
                                                    : copy(OpKind::Copy, m_reduceStream, Phase::Backward,
                                                           m_first ? classes.keep : classes.addUp);
        m_reductions.push_back(m_lastReduced);
        const auto gone = std::stable_partition(m_pending.begin(), m_pending.end(),
                                                [index](const Pending& pending) { return pending.flush != index; });
        for (auto it = gone; it != m_pending.end(); ++it)
            m_builder.free(it->buffer);
        m_pending.erase(gone, m_pending.end());
    }

    /// qgZ: quantise, all-to-all inside the node, reduce, quantise, all-to-all between nodes, reduce.
    void reduceCompressed(const Zero3Rules::FlushClasses& classes)
    {
        copy(OpKind::Quantize, m_reduceStream, Phase::Backward, classes.quantise);
        BufferId sent = m_builder.allocate(classes.compressed);
        m_builder.op(OpKind::AllToAll, m_reduceStream, Phase::Backward, m_layer);
        BufferId received = m_builder.allocate(classes.compressed);
        m_builder.send(classes.inside, m_rules.m_insideGroup);
        drop(sent);
        copy(OpKind::Quantize, m_reduceStream, Phase::Backward, classes.requantise);
        m_builder.op(OpKind::AllToAll, m_reduceStream, Phase::Backward, m_layer);
        m_builder.send(classes.between, m_rules.m_betweenGroup);
        copy(OpKind::Dequantize, m_reduceStream, Phase::Backward, classes.dequantise);
        drop(received);
    }

    /// stage3.py partition_grads: the accumulated 16-bit shard lives on the host and comes to the GPU to be added to;
    /// at the boundary it goes back in fp32.
    OpId offload(const Zero3Rules::FlushClasses& classes)
    {
        const bool pinned = m_rules.m_options.pinMemory;
        const OpId down = copy(OpKind::CopyToHost, m_reduceStream, Phase::Backward, classes.narrowCopy);
        if (!pinned)
            block(down, Phase::Backward);
        OpId last = copy(OpKind::CopyToDevice, m_reduceStream, Phase::Backward, classes.narrowCopy);
        once(classes.offload);
        if (!pinned)
            block(last, Phase::Backward);
        if (!m_first)
            last = copy(OpKind::Copy, m_reduceStream, Phase::Backward, classes.addUp);
        if (!m_last)
            return last;
        // fp32_grad_tensor.copy_() without non_blocking
        last = copy(OpKind::CopyToHost, m_reduceStream, Phase::Backward, classes.wideCopy);
        block(last, Phase::Backward);
        if (m_rules.optimizerOn(OffloadDevice::Nvme))
            copy(OpKind::NvmeWrite, Stream::Nvme, Phase::Backward, classes.wideCopy);
        return last;
    }

    void microStep(const MicroStep& step)
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

    void optimizerStep()
    {
        m_layer = -1;
        const OpId checked = copy(OpKind::Copy, Stream::Compute, Phase::Optimizer, m_rules.m_check);
        once(m_rules.m_overflow);
        once(m_rules.m_norm);
        block(checked, Phase::Optimizer); // overflow and norm are read on the host: item()
        for (std::size_t group = 0; group < m_rules.m_subGroups.size(); ++group)
            stepGroup(group);
        if (!m_rules.paramOn(OffloadDevice::None) && m_rules.onGpuElements() > 0)
            block(copy(OpKind::CopyToHost, Stream::Compute, Phase::Optimizer, m_rules.m_parametersDown),
                  Phase::Optimizer);
        if (m_rules.paramOn(OffloadDevice::Nvme)) {
            block(m_lastStateWrite, Phase::Optimizer);
            block(copy(OpKind::NvmeWrite, Stream::Nvme, Phase::Optimizer, m_rules.m_nvmeParameterWrite),
                  Phase::Optimizer);
        }
        const OpId updated = m_builder.op(OpKind::Release, Stream::Compute, Phase::Optimizer);
        const OpId gathering = m_builder.op(OpKind::AllGather, Stream::AllGather, Phase::Optimizer);
        m_builder.send(m_rules.m_persistentGather, m_rules.m_shardGroup);
        m_builder.wait(updated);
        m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
        m_builder.wait(gathering);
        m_builder.blockHost(m_lastStateWrite);
        for (BufferId& secondary : m_secondaries)
            drop(secondary); // stage3.py invalidate_secondary_tensor
    }

    void stepGroup(std::size_t index)
    {
        const Zero3Rules::SubGroup& group = m_rules.m_subGroups[index];
        if (!group.onGpu) {
            stepOnHost(index);
            return;
        }
        copy(OpKind::Copy, Stream::Compute, Phase::Optimizer, group.prepare);
        BufferId flat = m_builder.allocate(group.flat);
        BufferId wide = -1;
        if (m_rules.m_dtypes.accumulate != m_rules.m_dtypes.master) {
            wide = m_builder.allocate(group.wide);
            drop(flat);
        }
        copy(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer, group.step);
        once(group.foreach);
        drop(wide);
        drop(flat);
    }

    /// The host steps itself. From NVMe: swap_tensor/partitioned_optimizer_swapper.py reads, steps and writes one
    /// sub-group after the other; pipelined_optimizer_swapper.py reads the next sub-group (pipeline_read) and writes
    /// the last (pipeline_write) meanwhile.
    void stepOnHost(std::size_t index)
    {
        const std::vector<Zero3Rules::SubGroup>& groups = m_rules.m_subGroups;
        const Zero3Rules::SubGroup& group = groups[index];
        const bool nvme = m_rules.optimizerOn(OffloadDevice::Nvme);
        OpId read = -1;
        if (nvme) {
            read = m_nextRead >= 0 ? std::exchange(m_nextRead, -1) : readStates(group);
            if (m_rules.m_options.pipelineRead && index + 1 < groups.size()) {
                block(read, Phase::Optimizer);
                m_nextRead = readStates(groups[index + 1]);
            }
        }
        const OpId stepped = copy(OpKind::HostOptimizerStep, Stream::Host, Phase::Optimizer, group.step);
        m_builder.blockHost(read);
        block(stepped, Phase::Optimizer);
        if (nvme) {
            if (m_rules.m_options.pipelineWrite)
                block(m_lastStateWrite, Phase::Optimizer);
            m_lastStateWrite = copy(OpKind::NvmeWrite, Stream::Nvme, Phase::Optimizer, group.stateWrite);
            if (!m_rules.m_options.pipelineWrite)
                block(m_lastStateWrite, Phase::Optimizer);
        }
        // fp16_partitioned_groups_flat.copy_(): master weights are not page-locked
        if (m_rules.paramOn(OffloadDevice::None))
            block(copy(OpKind::CopyToDevice, Stream::Compute, Phase::Optimizer, group.parametersUp), Phase::Optimizer);
    }
    OpId readStates(const Zero3Rules::SubGroup& group)
    {
        return copy(OpKind::NvmeRead, Stream::Nvme, Phase::Optimizer, group.stateRead);
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
    bool m_first = true;
    bool m_last = true;

    // coordinator __allgather_stream and stage3.py reduce_and_partition_stream: the default stream without
    // overlap_comm. The fetch stream uploads, quantises and copies out; gathers themselves run in the communicator's
    // stream.
    Stream m_fetchStream;
    Stream m_reduceStream;
    std::vector<OpId> m_gatherOps; // by gather call
    std::deque<OpId> m_fetches;    // handles waited for in the fetch stream, oldest first
    std::deque<OpId> m_reductions; // oldest first
    OpId m_begun = -1;             // where the compute stream stood when the micro-step began
    OpId m_lastFetch = -1;         // last operation of the fetch stream
    OpId m_awaited = -1;           // the last of m_fetches that the compute stream waits for
    OpId m_lastCollective = -1;    // of the shard group
    OpId m_lastReduced = -1;
    OpId m_nextRead = -1;
    OpId m_lastStateWrite = -1;
};

Schedule Zero3Rules::emit() const
{
    return Zero3Emission(*this).run();
}

} // namespace shardwright
