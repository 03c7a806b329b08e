// The step under DistributedDataParallel: the order in which its reducer and autocast work.

#include "planner/frameworks/ddp/ddp_rules.hpp"

namespace shardwright {

class DdpEmission final : public StageObserver {
public:
    explicit DdpEmission(const DdpRules& rules)
        : m_rules(rules), m_builder(rules.m_sizes, recordingOf(rules.m_training)), m_walk(rules.m_activations),
          m_tensors(rules.m_activations), m_parameters(rules.m_model.layers.size(), -1),
          m_moments(rules.m_model.layers.size(), -1), m_bucketBuffers(rules.m_model.layers.size())
    {
        for (const int type : rules.m_model.layers) {
            const std::size_t modules = rules.m_types[static_cast<std::size_t>(type)].gradients.size();
            m_gradients.emplace_back(modules, -1);
            m_casts.emplace_back(modules, -1);
        }
    }

    Schedule run()
    {
        m_builder.beginSegment("initialisation");
        m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
        for (int layer = 0; layer < static_cast<int>(m_gradients.size()); ++layer)
            initialise(layer);
        m_walk.carryOver(m_builder);
        for (const MicroStep& step : microSteps(m_rules.m_training.gradientAccumulation)) {
            m_builder.beginSegment(step.name, step.repeat);
            microStep(step);
        }
        m_builder.beginSegment("optimizer step");
        m_builder.op(OpKind::Copy, Stream::Compute, Phase::Optimizer);
        m_builder.move(m_rules.m_clip);
        clip(m_builder, m_rules.m_training, -1, stepped());
        m_builder.op(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer);
        m_builder.move(m_rules.m_step);
        if (!m_builder.records())
            m_builder.free(m_builder.allocate(m_rules.m_foreach));
        update(m_builder, stepped());
        m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
        for (std::vector<BufferId>& layer : m_gradients)
            for (BufferId& gradient : layer)
                if (gradient >= 0)
                    m_builder.free(gradient);
        return m_builder.finish();
    }

    void beforeStage(Pass pass, int layer, int module) override
    {
        if (const BufferClassId unpacked = at(layer).unpacked[static_cast<std::size_t>(module)]; unpacked >= 0) {
            m_builder.op(OpKind::Dequantize, Stream::Compute, pass == Pass::Forward ? Phase::Forward : Phase::Backward,
                         layer);
            m_builder.move(at(layer).unpackings[static_cast<std::size_t>(module)]);
            m_unpacked = m_builder.allocate(unpacked);
        }
        BufferId& cast = m_casts[static_cast<std::size_t>(layer)][static_cast<std::size_t>(module)];
        const BufferClassId castClass = at(layer).casts[static_cast<std::size_t>(module)];
        if (castClass < 0 || cast >= 0)
            return;
        m_builder.op(OpKind::Copy, Stream::Compute, pass == Pass::Forward ? Phase::Forward : Phase::Backward, layer);
        m_builder.move(at(layer).castCopies[static_cast<std::size_t>(module)]);
        cast = m_builder.allocate(castClass,
                                  content(Quantity::Parameters, m_rules.m_compute, m_tensors.ofModule(layer, module)));
        m_builder.act(Verb::Move, {m_parameters[static_cast<std::size_t>(layer)]}, {cast});
    }

    /// In the dtype of the parameters, whatever the kernel computes in.
    BufferId gradientBuffer(int layer, int module) override
    {
        const BufferClassId gradientClass = at(layer).gradients[static_cast<std::size_t>(module)];
        if (gradientClass >= 0 && m_fresh < 0)
            m_fresh = m_builder.allocate(
                gradientClass, content(Quantity::Gradients, m_rules.m_trained, m_tensors.ofModule(layer, module)));
        return m_fresh;
    }

    void afterStage(Pass pass, int layer, int module) override
    {
        if (m_unpacked >= 0)
            m_builder.free(m_unpacked);
        m_unpacked = -1;
        if (pass != Pass::Backward)
            return;
        if (at(layer).gradients[static_cast<std::size_t>(module)] < 0)
            return;
        BufferId& gradient = m_gradients[static_cast<std::size_t>(layer)][static_cast<std::size_t>(module)];
        const BufferId fresh = gradientBuffer(layer, module);
        m_fresh = -1;
        if (gradient < 0) {
            gradient = fresh;
            return;
        }
        m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward, layer);
        m_builder.move(at(layer).accumulations[static_cast<std::size_t>(module)]);
        m_builder.act(Verb::Add, {fresh}, {gradient});
        m_builder.free(fresh);
    }

private:
    const DdpRules::TypeSizes& typeSizes(int type) const { return m_rules.m_types[static_cast<std::size_t>(type)]; }
    const DdpRules::TypeSizes& at(int layer) const
    {
        return typeSizes(m_rules.m_model.layers[static_cast<std::size_t>(layer)]);
    }

    ContentId content(Quantity quantity, DType dtype, const Tensors& tensors)
    {
        return m_builder.records() ? m_builder.content(wholeContent(quantity, dtype, tensors)) : -1;
    }

    void initialise(int layer)
    {
        const Tensors tensors = m_tensors.ofLayer(layer);
        if (m_builder.records() && tensors.empty())
            return; // a tied head
        const auto position = static_cast<std::size_t>(layer);
        m_parameters[position] =
            m_builder.allocate(at(layer).parameters, content(Quantity::Parameters, m_rules.m_trained, tensors));
        if (!m_builder.records())
            m_builder.allocate(at(layer).buckets);
        for (const DdpRules::Bucket& bucket : m_rules.m_buckets[position])
            if (bucket.buffer >= 0)
                m_bucketBuffers[position].push_back(
                    m_builder.allocate(bucket.buffer, content(Quantity::Gradients, m_rules.m_trained, bucket.tensors)));
        if (!m_builder.records() || m_rules.m_training.optimizer != Optimizer::Sgd)
            m_moments[position] =
                m_builder.allocate(at(layer).moments, content(Quantity::Moments, m_rules.m_trained, tensors));
        std::vector<BufferId> made = m_bucketBuffers[position];
        made.push_back(m_parameters[position]);
        made.push_back(m_moments[position]);
        m_builder.act(Verb::Initialize, {}, made);
    }

    Stepped stepped() const
    {
        Stepped all;
        all.gradients = everyGradient();
        all.parameters = m_parameters;
        all.moments = m_moments;
        return all;
    }
    std::vector<BufferId> everyGradient() const
    {
        std::vector<BufferId> gradients;
        for (const std::vector<BufferId>& layer : m_gradients)
            gradients.insert(gradients.end(), layer.begin(), layer.end());
        return gradients;
    }
    std::vector<BufferId> everyBucket() const
    {
        std::vector<BufferId> buckets;
        for (const std::vector<BufferId>& layer : m_bucketBuffers)
            buckets.insert(buckets.end(), layer.begin(), layer.end());
        return buckets;
    }

    void microStep(const MicroStep& step)
    {
        const int layers = static_cast<int>(m_rules.m_model.layers.size());
        m_walk.beginMicroStep(m_builder);
        for (int layer = 0; layer < layers; ++layer)
            m_walk.forward(m_builder, layer, *this);
        m_walk.loss(m_builder);
        for (int layer = layers - 1; layer >= 0; --layer) {
            m_walk.backward(m_builder, layer, *this);
            dropCasts(layer);
            if (step.last)
                allReduce(layer);
        }
        if (step.last) {
            m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward);
            m_builder.move(m_rules.m_copyBack);
            m_builder.wait(m_lastReduced); // reducer finalize_backward: of every bucket
            if (const std::vector<BufferId> buckets = everyBucket(); !buckets.empty())
                m_builder.act(Verb::Move, buckets, everyGradient());
        }
        m_walk.endMicroStep(m_builder);
    }

    void dropCasts(int layer)
    {
        const bool tied = m_rules.m_model.layer(static_cast<std::size_t>(layer)).parameters.empty();
        if (tied)
            return;
        m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward, layer);
        m_builder.move(at(layer).castBack);
        for (BufferId& cast : m_casts[static_cast<std::size_t>(layer)])
            if (cast >= 0) {
                m_builder.free(cast);
                cast = -1;
            }
    }

    void allReduce(int layer)
    {
        m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward, layer);
        m_builder.move(at(layer).copyIn);
        const auto position = static_cast<std::size_t>(layer);
        if (const std::vector<BufferId> buckets = everyBucket(); !buckets.empty() && at(layer).gradients.size() > 0)
            m_builder.act(Verb::Move, m_gradients[position], buckets); // each to where it belongs
        const OpId filled = m_builder.lastOp();
        const std::vector<DdpRules::Bucket>& buckets = m_rules.m_buckets[position];
        for (std::size_t i = 0; i < buckets.size(); ++i) {
            m_lastReduced = m_builder.op(OpKind::AllReduce, Stream::Reduce, Phase::Backward, layer);
            m_builder.send(buckets[i].payload, m_rules.m_world);
            m_builder.wait(filled);
            reduceBucket(buckets[i], buckets[i].buffer >= 0 ? m_bucketBuffers[position][i] : -1);
        }
    }

    /// Where gradients lie in buckets, a bucket is some tensors of their buffers.
    void reduceBucket(const DdpRules::Bucket& bucket, BufferId buffer)
    {
        Action action;
        action.verb = Verb::AllReduce;
        action.group = m_rules.m_world;
        action.content = buffer >= 0 ? -1 : content(Quantity::Gradients, m_rules.m_trained, bucket.tensors);
        m_builder.act(action, {}, buffer >= 0 ? std::vector<BufferId>{buffer} : everyGradient());
    }

    const DdpRules& m_rules;
    ScheduleBuilder m_builder;
    ActivationWalk m_walk;
    ModuleTensors m_tensors;
    std::vector<BufferId> m_parameters; // by layer, and so all that follow
    std::vector<BufferId> m_moments;
    std::vector<std::vector<BufferId>> m_bucketBuffers; // as DdpRules::m_buckets
    std::vector<std::vector<BufferId>> m_gradients;     // by module
    BufferId m_fresh = -1;                              // gradient of the module in backward
    std::vector<std::vector<BufferId>> m_casts;
    BufferId m_unpacked = -1;
    OpId m_lastReduced = -1;
};

Schedule DdpRules::emit() const
{
    return DdpEmission(*this).run();
}

} // namespace shardwright
