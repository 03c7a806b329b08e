// The order of the textbook schedule's operations.

#include <utility>

#include "planner/frameworks/native/native_rules.hpp"
#include "planner/frameworks/recording.hpp"
#include "planner/frameworks/sharding.hpp"

namespace shardwright {

class NativeEmission final : public StageObserver {
public:
    explicit NativeEmission(const NativeRules& rules)
        : m_rules(rules), m_builder(rules.m_sizes, recordingOf(rules.m_training)), m_walk(rules.m_activations),
          m_tensors(rules.m_activations), m_layers(rules.m_model.layers.size())
    {
        for (std::size_t layer = 0; layer < m_layers.size(); ++layer)
            m_layers[layer].hasGradient.assign(at(static_cast<int>(layer)).freshGradients.size(), false);
    }

    Schedule run()
    {
        m_builder.beginSegment("initialisation");
        m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
        for (int layer = 0; layer < static_cast<int>(m_layers.size()); ++layer)
            initialise(layer);
        m_walk.carryOver(m_builder);
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
        if (!shardsParameters())
            return;
        gather(layer, pass == Pass::Forward ? Phase::Forward : Phase::Backward);
        awaitGather(layer, pass == Pass::Forward ? Phase::Forward : Phase::Backward);
        const int next = pass == Pass::Forward ? layer + 1 : layer - 1;
        const bool inside = next >= 0 && next < static_cast<int>(m_layers.size());
        if (m_rules.m_options.prefetch && inside && layer == m_layer &&
            !(pass == Pass::Backward && next == 0 && tiedHead()))
            gather(next, pass == Pass::Forward ? Phase::Forward : Phase::Backward);
    }

    void afterStage(Pass pass, int layer, int module) override
    {
        if (pass != Pass::Backward)
            return;
        if (at(layer).freshGradients[static_cast<std::size_t>(module)] < 0)
            return;
        const BufferId into = gradientBuffer(layer, module);
        m_fresh = -1;
        std::vector<bool>& known = state(layer).hasGradient;
        if (into == state(layer).gradient) {
            known[static_cast<std::size_t>(module)] = true;
            return;
        }
        m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward, layer);
        m_builder.move(at(layer).accumulations[static_cast<std::size_t>(module)]);
        m_builder.act(Verb::Add, {into}, {state(layer).gradient});
        m_builder.free(into);
    }

    /// Its place in the layer's gradient, or a buffer of its own where there is something to add it to.
    BufferId gradientBuffer(int layer, int module) override
    {
        const BufferClassId fresh = at(layer).freshGradients[static_cast<std::size_t>(module)];
        if (fresh < 0 || m_fresh >= 0)
            return m_fresh;
        LayerState& layerState = state(layer);
        if (layerState.hasGradient[static_cast<std::size_t>(module)]) {
            m_fresh = m_builder.allocate(fresh, moduleGradient(layer, module));
        } else {
            if (layerState.gradient < 0)
                layerState.gradient = m_builder.allocate(at(layer).gradient, wholeGradient(layer));
            m_fresh = layerState.gradient;
        }
        return m_fresh;
    }

private:
    struct LayerState {
        BufferId gathered = -1;
        OpId arriving = -1; // its gather, until the compute stream waits for it
        BufferId parameters = -1;
        BufferId master = -1;
        BufferId moments = -1;
        BufferId gradient = -1; // whole
        BufferId gradientShard = -1;
        std::vector<bool> hasGradient; // by module: in the whole one
    };

    Content part(int layer, Quantity quantity, DType dtype) const
    {
        Content content = wholeContent(quantity, dtype, m_tensors.ofLayer(layer));
        if (stage() == 0)
            return content;
        content.layout.cut = Cut::Flat;
        content.layout.parts = m_rules.m_ranks;
        content.group = m_rules.m_world;
        return content;
    }
    ContentId partContent(int layer, Quantity quantity, DType dtype)
    {
        return m_builder.records() ? m_builder.content(part(layer, quantity, dtype)) : -1;
    }
    ContentId wholeOf(int layer, Quantity quantity)
    {
        if (!m_builder.records())
            return -1;
        const Content content = part(layer, quantity, m_rules.m_compute);
        return m_builder.content(stage() == 0 ? content : allPartsOf(content));
    }
    ContentId wholeGradient(int layer) { return wholeOf(layer, Quantity::Gradients); }
    ContentId moduleGradient(int layer, int module)
    {
        if (!m_builder.records())
            return -1;
        return m_builder.content(
            wholeContent(Quantity::Gradients, m_rules.m_compute, m_tensors.ofModule(layer, module)));
    }

    void initialise(int layer)
    {
        if (at(layer).all == 0)
            return;
        LayerState& kept = state(layer);
        kept.parameters = m_builder.allocate(
            at(layer).parameters, shardsParameters() ? partContent(layer, Quantity::Parameters, m_rules.m_compute)
                                                     : wholeOf(layer, Quantity::Parameters));
        if (m_rules.keepsMaster())
            kept.master = m_builder.allocate(at(layer).master, partContent(layer, Quantity::Parameters, DType::Fp32));
        if (m_rules.keepsMoments())
            kept.moments = m_builder.allocate(at(layer).moments, partContent(layer, Quantity::Moments, DType::Fp32));
        m_builder.act(Verb::Initialize, {}, {kept.parameters, kept.master, kept.moments});
    }

    const NativeRules::TypeSizes& at(int layer) const
    {
        return m_rules.m_types[static_cast<std::size_t>(m_rules.m_model.layers[static_cast<std::size_t>(layer)])];
    }
    LayerState& state(int layer) { return m_layers[static_cast<std::size_t>(layer)]; }
    int stage() const { return m_rules.m_options.stage; }
    bool shardsParameters() const { return stage() >= 3; }
    bool tiedHead() const { return m_rules.m_model.architecture.tiedEmbedding; }
    /// With a tied head the embedding is needed until the head's backward is done.
    bool heldForTying(int layer) const { return tiedHead() && layer == 0; }

    void gather(int layer, Phase phase)
    {
        if (state(layer).gathered >= 0 || at(layer).all == 0)
            return;
        const OpId gathering = m_builder.op(OpKind::AllGather, Stream::AllGather, phase, layer);
        state(layer).gathered = m_builder.allocate(at(layer).gathered, wholeOf(layer, Quantity::Parameters));
        state(layer).arriving = gathering;
        m_builder.send(at(layer).gather, m_rules.m_world);
        collect(m_builder, Verb::AllGather, m_rules.m_world, {state(layer).parameters}, {state(layer).gathered});
        m_builder.wait(m_lastRelease); // it takes the memory that was let go of
        takeTurn(gathering);
    }

    void awaitGather(int layer, Phase phase)
    {
        if (state(layer).arriving < 0)
            return;
        m_builder.op(OpKind::Release, Stream::Compute, phase, layer);
        m_builder.wait(std::exchange(state(layer).arriving, -1));
    }

    /// There is one communicator: collectives run in the order of issue.
    void takeTurn(OpId collective)
    {
        m_builder.wait(m_lastCollective);
        m_lastCollective = collective;
    }

    void release(int layer, Phase phase)
    {
        if (state(layer).gathered < 0)
            return;
        m_lastRelease = m_builder.op(OpKind::Release, Stream::Compute, phase, layer);
        m_builder.free(state(layer).gathered);
        state(layer).gathered = -1;
    }

    void reduce(int layer, const MicroStep& step)
    {
        const NativeRules::TypeSizes& sizes = at(layer);
        if (sizes.trainable == 0 || (stage() <= 1 && !step.last))
            return;
        const OpId made = m_builder.lastOp();
        m_lastReduced = m_builder.op(stage() == 0 ? OpKind::AllReduce : OpKind::ReduceScatter, Stream::Reduce,
                                     Phase::Backward, layer);
        m_builder.send(sizes.reduce, m_rules.m_world);
        m_builder.wait(made);
        takeTurn(m_lastReduced);
        LayerState& reduced = state(layer);
        if (stage() == 0) {
            collect(m_builder, Verb::AllReduce, m_rules.m_world, {}, {reduced.gradient});
            return;
        }
        const bool addsUp = reduced.gradientShard >= 0;
        if (!addsUp)
            reduced.gradientShard =
                m_builder.allocate(sizes.gradientShard, partContent(layer, Quantity::Gradients, m_rules.m_compute));
        collect(m_builder, Verb::ReduceScatter, m_rules.m_world, {reduced.gradient},
                {addsUp ? reduced.gradient : reduced.gradientShard}); // else in place
        if (addsUp) {
            m_lastReduced = m_builder.op(OpKind::Copy, Stream::Reduce, Phase::Backward, layer);
            m_builder.move(sizes.addShard);
            m_builder.act(Verb::Add, {reduced.gradient}, {reduced.gradientShard});
        }
        if (stage() >= 2)
            freeGradient(layer); // stage 1 keeps them whole until the step
    }

    void freeGradient(int layer)
    {
        LayerState& kept = state(layer);
        if (kept.gradient >= 0)
            m_builder.free(kept.gradient);
        kept.gradient = -1;
        kept.hasGradient.assign(kept.hasGradient.size(), false);
    }

    void microStep(const MicroStep& step)
    {
        const int layers = static_cast<int>(m_layers.size());
        m_walk.beginMicroStep(m_builder);
        m_lastRelease = m_builder.lastOp();
        m_lastCollective = -1;
        for (m_layer = 0; m_layer < layers; ++m_layer) {
            m_walk.forward(m_builder, m_layer, *this);
            if (m_layer + 1 < layers && !heldForTying(m_layer)) // the last layer is needed again at once
                release(m_layer, Phase::Forward);
        }
        m_layer = -1;
        m_walk.loss(m_builder);
        for (m_layer = layers - 1; m_layer >= 0; --m_layer) {
            m_walk.backward(m_builder, m_layer, *this);
            release(m_layer, Phase::Backward);
            reduce(m_layer, step);
        }
        m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward);
        m_builder.wait(std::exchange(m_lastReduced, -1));
        m_walk.endMicroStep(m_builder);
    }

    /// What a layer's optimizer steps from, in the compute dtype.
    BufferId reducedGradient(int layer) { return stage() == 0 ? state(layer).gradient : state(layer).gradientShard; }

    void optimizerStep()
    {
        const bool offload = m_rules.m_options.offloadOptimizer;
        std::vector<int> layers; // that are stepped
        Stepped stepped;
        for (int layer = 0; layer < static_cast<int>(m_layers.size()); ++layer)
            if (at(layer).trainable > 0) {
                layers.push_back(layer);
                stepped.gradients.push_back(reducedGradient(layer));
                stepped.parameters.push_back(m_rules.keepsMaster() ? state(layer).master : state(layer).parameters);
                stepped.moments.push_back(state(layer).moments);
            }
        m_builder.op(OpKind::Copy, Stream::Compute, Phase::Optimizer);
        m_builder.move(m_rules.m_clip);
        clip(m_builder, m_rules.m_training, stage() == 0 ? -1 : m_rules.m_world, stepped);
        const OpId clipped = m_builder.lastOp();
        OpId down = -1;
        std::vector<BufferId> hostGradients;
        if (offload) {
            m_builder.op(OpKind::Release, Stream::DeviceToHost, Phase::Optimizer);
            m_builder.wait(clipped);
            for (const int layer : layers) {
                down = m_builder.op(OpKind::CopyToHost, Stream::DeviceToHost, Phase::Optimizer, layer);
                m_builder.move(at(layer).toHost);
                hostGradients.push_back(m_builder.allocate(at(layer).hostGradient,
                                                           partContent(layer, Quantity::Gradients, m_rules.m_compute)));
                m_builder.act(Verb::Move, {reducedGradient(layer)}, {hostGradients.back()});
            }
            stepped.gradients = hostGradients;
        }
        const OpId updating = m_builder.op(offload ? OpKind::HostOptimizerStep : OpKind::OptimizerStep,
                                           offload ? Stream::Host : Stream::Compute, Phase::Optimizer);
        m_builder.move(m_rules.m_step);
        m_builder.blockHost(down); // the host steps itself
        stepParameters(layers, stepped);
        OpId up = -1;
        if (offload) {
            for (const BufferId gradient : hostGradients)
                m_builder.free(gradient);
            m_builder.op(OpKind::Release, Stream::HostToDevice, Phase::Optimizer);
            m_builder.blockHost(updating);
            for (const int layer : layers) {
                up = m_builder.op(OpKind::CopyToDevice, Stream::HostToDevice, Phase::Optimizer, layer);
                m_builder.move(at(layer).toDevice);
                m_builder.act(Verb::Move, {state(layer).master}, {state(layer).parameters});
            }
        }
        m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
        m_builder.wait(up);
        for (int layer = 0; layer < static_cast<int>(m_layers.size()); ++layer) {
            freeGradient(layer);
            if (state(layer).gradientShard >= 0)
                m_builder.free(state(layer).gradientShard);
        }
        if (stage() == 1 || stage() == 2)
            gatherUpdated(layers);
    }

    /// The update, and what it changed in the compute dtype.
    void stepParameters(const std::vector<int>& layers, Stepped& stepped)
    {
        if (m_rules.keepsMaster()) {
            update(m_builder, stepped);
            if (!m_rules.m_options.offloadOptimizer)
                for (const int layer : layers)
                    m_builder.act(Verb::Move, {state(layer).master}, {state(layer).parameters});
            return;
        }
        const bool ownPartOnly = stage() == 1 || stage() == 2;
        if (!ownPartOnly) {
            update(m_builder, stepped);
            return;
        }
        stepped.parameters.clear();
        for (const int layer : layers) {
            stepped.parameters.push_back(m_builder.allocate(
                at(layer).steppedShard, partContent(layer, Quantity::Parameters, m_rules.m_compute)));
            m_builder.act(Verb::Move, {state(layer).parameters}, {stepped.parameters.back()});
        }
        update(m_builder, stepped);
        for (std::size_t i = 0; i < layers.size(); ++i) {
            m_builder.act(Verb::Move, {stepped.parameters[i]}, {state(layers[i]).parameters});
            m_builder.free(stepped.parameters[i]);
        }
    }

    /// Updated parts back to everybody, in place.
    void gatherUpdated(const std::vector<int>& layers)
    {
        const OpId updated = m_builder.lastOp();
        for (const int layer : layers) {
            m_builder.op(OpKind::AllGather, Stream::AllGather, Phase::AfterStep, layer);
            m_builder.send(at(layer).reduce, m_rules.m_world);
            collect(m_builder, Verb::AllGather, m_rules.m_world, {state(layer).parameters}, {state(layer).parameters});
            m_builder.wait(updated);
        }
        const OpId everywhere = m_builder.lastOp();
        m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
        m_builder.wait(everywhere);
    }

    const NativeRules& m_rules;
    ScheduleBuilder m_builder;
    ActivationWalk m_walk;
    ModuleTensors m_tensors;
    std::vector<LayerState> m_layers;
    BufferId m_fresh = -1; // where the gradient of the module in backward goes
    int m_layer = -1;
    OpId m_lastRelease = -1;
    OpId m_lastCollective = -1;
    OpId m_lastReduced = -1;
};

Schedule NativeRules::emit() const
{
    return NativeEmission(*this).run();
}

} // namespace shardwright
