// Megatron-LM's step as one rank runs it.

#include "planner/frameworks/megatron/megatron_rules.hpp"

namespace shardwright {

class MegatronEmission final : public StageObserver {
public:
    explicit MegatronEmission(const MegatronRules& rules)
        : m_rules(rules), m_builder(rules.m_sizes), m_gathered(rules.m_buckets.size(), -1),
          m_shape(pipelineShape(rules.m_parallelism, rules.m_training.gradientAccumulation))
    {
    }

    Schedule run()
    {
        m_builder.beginSegment("initialisation");
        m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
        for (const auto& part : m_rules.m_parts)
            for (const BufferClassId persistent : {part.parameters, part.gradients, part.master, part.moments})
                m_builder.allocate(persistent);
        const PipelineProgram program = pipelineProgram(m_shape, m_rules.m_slice.stage);
        m_lastMicroBatch = program.lastMicroBatch;
        for (const PipelineStretch& stretch : program.stretches) {
            m_builder.beginSegment(stretch.name, stretch.repeat);
            if (stretch.first == 0)
                zeroGradients();
            for (std::size_t i = stretch.first; i < stretch.end; ++i)
                act(program.actions[i]);
        }
        m_builder.beginSegment("optimizer step");
        optimizerStep();
        return m_builder.finish();
    }

    void afterStage(Pass pass, int layer, int module) override
    {
        if (pass != Pass::Backward)
            return;
        const auto type = static_cast<std::size_t>(m_rules.m_model.layers[static_cast<std::size_t>(layer)]);
        const BufferClassId temporary = m_rules.m_gradientTemporaries[type][static_cast<std::size_t>(module)];
        if (temporary >= 0)
            m_builder.free(m_builder.allocate(temporary));
    }

private:
    const StageChunk& chunkOf(const PipelineAction& action) const
    {
        return m_rules.m_slice.chunks[static_cast<std::size_t>(action.chunk)];
    }
    bool distributed() const { return m_rules.m_options.distributedOptimizer && m_rules.m_ranks > 1; }

    void zeroGradients()
    {
        for (const auto& part : m_rules.m_parts)
            if (part.elements > 0) {
                m_builder.op(OpKind::Copy, Stream::Compute, Phase::Forward);
                m_builder.move(part.zero);
            }
    }

    void act(const PipelineAction& action)
    {
        if (action.forward)
            forward(action);
        else
            backward(action);
    }

    void forward(const PipelineAction& action)
    {
        const auto [at, fresh] = m_walks.try_emplace(action.microBatch, m_rules.m_activations);
        ActivationWalk& walk = at->second;
        if (fresh)
            walk.beginMicroStep(m_builder);
        const StageChunk& chunk = chunkOf(action);
        if (chunk.receivesInput)
            walk.receiveInput(m_builder);
        for (int layer = chunk.first; layer < chunk.end; ++layer) {
            if (action.microBatch == 0)
                gatherFor(layer, action.chunk);
            walk.forward(m_builder, layer, *this);
        }
        if (chunk.sendsOutput)
            walk.sendOutput(m_builder);
        else
            walk.lossForward(m_builder);
    }

    void backward(const PipelineAction& action)
    {
        ActivationWalk& walk = m_walks.at(action.microBatch);
        const StageChunk& chunk = chunkOf(action);
        if (chunk.sendsOutput)
            walk.receiveGradient(m_builder);
        else
            walk.lossBackward(m_builder);
        for (int layer = chunk.end - 1; layer >= chunk.first; --layer) {
            walk.backward(m_builder, layer, *this);
            if (action.microBatch == m_lastMicroBatch && m_rules.m_options.overlapGradReduce)
                reduceClosed(layer, action.chunk);
        }
        if (chunk.receivesInput)
            walk.sendGradient(m_builder);
        if (action.chunk == 0) { // the first layers of a micro-batch are the last in backward
            walk.endMicroStep(m_builder);
            m_walks.erase(action.microBatch);
        }
    }

    void reduce(const MegatronRules::Bucket& bucket, Phase phase, int layer)
    {
        const auto& part = m_rules.m_parts[bucket.part];
        if (part.ranks == 1)
            return;
        const OpId made = m_builder.op(OpKind::Release, Stream::Compute, phase);
        m_builder.op(m_rules.m_options.distributedOptimizer ? OpKind::ReduceScatter : OpKind::AllReduce, Stream::Reduce,
                     phase, layer);
        m_builder.wait(made);
        m_builder.send(bucket.reduce, part.group);
        m_lastReduce = m_builder.lastOp();
    }

    void reduceClosed(int layer, int chunk)
    {
        for (const auto& bucket : m_rules.m_buckets)
            if (bucket.chunk == chunk && bucket.closes == layer)
                reduce(bucket, Phase::Backward, layer);
    }

    void gather(std::size_t index, Phase phase)
    {
        const auto& bucket = m_rules.m_buckets[index];
        if (m_gathered[index] >= 0)
            return;
        // c10d's stream waits for what computing has been issued: of the first, the optimizer step before.
        const OpId issued = m_builder.op(OpKind::Release, Stream::Compute, phase);
        m_gathered[index] = m_builder.op(OpKind::AllGather, Stream::AllGather, phase, bucket.closes);
        m_builder.wait(issued);
        m_builder.send(bucket.gather, m_rules.m_parts[bucket.part].group);
    }

    /// overlap_param_gather: a bucket is waited for where its first parameters are used; the one behind it is on its
    /// way then (param_and_grad_buffer.py finish_param_sync).
    void gatherFor(int layer, int chunk)
    {
        if (!distributed() || !m_rules.m_options.overlapParamGather)
            return;
        OpId needed = -1;
        for (std::size_t index = m_rules.m_buckets.size(); index-- > 0;) {
            const auto& bucket = m_rules.m_buckets[index];
            if (bucket.chunk != chunk || layer < bucket.closes || layer > bucket.opens ||
                m_rules.m_parts[bucket.part].ranks == 1)
                continue;
            if (m_gathered[index] >= 0 && layer != bucket.closes)
                continue;
            gather(index, Phase::Forward);
            needed = std::max(needed, m_gathered[index]);
            const bool another = index > 0 && m_rules.m_buckets[index - 1].chunk == chunk &&
                                 m_rules.m_parts[m_rules.m_buckets[index - 1].part].ranks > 1;
            if (another)
                gather(index - 1, Phase::Forward);
        }
        if (needed < 0)
            return;
        m_builder.op(OpKind::Release, Stream::Compute, Phase::Forward, layer);
        m_builder.wait(needed);
    }

    void optimizerStep()
    {
        if (!m_rules.m_options.overlapGradReduce)
            for (const auto& bucket : m_rules.m_buckets)
                reduce(bucket, Phase::Optimizer, -1);
        if (m_rules.m_slice.tiedAcrossStages) {
            const OpId before = m_lastReduce;
            m_lastReduce = m_builder.op(OpKind::AllReduce, Stream::Reduce, Phase::Optimizer);
            m_builder.wait(before);
            m_builder.send(m_rules.m_tied, m_rules.m_embeddingGroup);
        }
        for (const auto& part : m_rules.m_parts) {
            if (part.elements == 0)
                continue;
            m_builder.op(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer);
            m_builder.wait(m_lastReduce);
            m_builder.free(m_builder.allocate(part.mainGradients));
            m_builder.move(part.step);
        }
        if (!distributed() || m_rules.m_options.overlapParamGather)
            return;
        OpId last = -1;
        for (std::size_t index = m_rules.m_buckets.size(); index-- > 0;)
            if (m_rules.m_parts[m_rules.m_buckets[index].part].ranks > 1) {
                gather(index, Phase::AfterStep);
                last = m_gathered[index];
            }
        m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
        m_builder.wait(last);
    }

    const MegatronRules& m_rules;
    ScheduleBuilder m_builder;
    std::vector<OpId> m_gathered; // by bucket
    PipelineShape m_shape;
    std::map<std::int64_t, ActivationWalk> m_walks; // micro-batches in flight
    std::int64_t m_lastMicroBatch = 0;
    OpId m_lastReduce = -1;
};

std::vector<Op> MegatronRules::collectivesOfStep() const
{
    std::vector<Op> collectives;
    const auto add = [&](OpKind kind, Stream stream, PayloadId payload, GroupId group) {
        Op op;
        op.kind = kind;
        op.stream = stream;
        op.phase = Phase::Optimizer;
        op.payload = payload;
        op.group = group;
        collectives.push_back(op);
    };
    for (const Bucket& bucket : m_buckets) {
        const Part& part = m_parts[bucket.part];
        if (part.ranks == 1)
            continue;
        add(m_options.distributedOptimizer ? OpKind::ReduceScatter : OpKind::AllReduce, Stream::Reduce, bucket.reduce,
            part.group);
        if (m_options.distributedOptimizer && m_ranks > 1)
            add(OpKind::AllGather, Stream::AllGather, bucket.gather, part.group);
    }
    if (m_slice.tiedAcrossStages)
        add(OpKind::AllReduce, Stream::Reduce, m_tied, m_embeddingGroup);
    return collectives;
}

Schedule MegatronRules::emit() const
{
    return MegatronEmission(*this).run();
}

} // namespace shardwright
