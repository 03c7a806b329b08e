#pragma once

// One micro-step of a model, replayed for the tests of its activations.

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "planner/activations/activation_model.hpp"

namespace shardwright {

class MicroStep {
public:
    explicit MicroStep(const Model& model, const Training& training, const ActivationVariant& variant = {})
        : m_layers(model.layers.size()), m_saved(m_layers), m_savedNames(m_layers), m_recomputed(m_layers)
    {
        const ActivationModel activations(model, training, DType::Bf16, variant);
        SizeTable sizes;
        activations.defineSizes(sizes, training);
        ScheduleBuilder builder(sizes);
        ActivationWalk walk(activations);
        StageObserver observer;
        builder.beginSegment("micro-step");
        walk.beginMicroStep(builder);
        for (std::size_t layer = 0; layer < m_layers; ++layer)
            walk.forward(builder, static_cast<int>(layer), observer);
        walk.loss(builder);
        for (std::size_t layer = m_layers; layer-- > 0;)
            walk.backward(builder, static_cast<int>(layer), observer);
        walk.endMicroStep(builder);
        replay(builder.finish());
    }

    /// GPU bytes that stand when the loss begins and belong to a layer.
    std::int64_t saved(std::size_t layer) const { return m_saved[layer]; }
    bool keepsInput(std::size_t layer) const { return m_savedNames[layer].count("hidden states between layers") > 0; }
    /// Bytes that the recomputation of a layer left behind.
    std::int64_t recomputed(std::size_t layer) const { return m_recomputed[layer]; }
    /// Highest live bytes in the loss, without what the layers before it keep.
    std::int64_t lossForward = 0;
    std::int64_t lossBackward = 0;
    std::int64_t peak = 0; // GPU, token ids included
    std::int64_t hostAtLoss = 0;
    std::vector<std::string> left; // names of the buffers still alive at the end
    bool consistent = true;        // only live buffers are freed, none is made twice

private:
    void replay(const Schedule& schedule)
    {
        struct Live {
            const BufferClass* bufferClass;
            std::size_t layer;
        };
        std::map<BufferId, Live> live;
        std::int64_t bytes = 0;
        std::int64_t beforeLoss = 0;
        for (const Op& op : schedule.ops) {
            if (op.kind == OpKind::LossForward) {
                beforeLoss = bytes;
                for (const auto& [id, held] : live) {
                    const BufferSpec& spec = *held.bufferClass->spec;
                    if (spec.place != Place::Gpu)
                        hostAtLoss += held.bufferClass->bytes.count();
                    else if (spec.name == "logits")
                        beforeLoss -= held.bufferClass->bytes.count();
                    if (spec.place == Place::Gpu && held.layer < m_layers) {
                        m_saved[held.layer] += held.bufferClass->bytes.count();
                        m_savedNames[held.layer].insert({std::string(spec.name), 1});
                    }
                }
            }
            const std::int64_t before = bytes;
            for (std::uint32_t i = op.firstEvent; i < op.firstEvent + op.eventCount; ++i) {
                const BufferEvent& event = schedule.events[i];
                const auto id = static_cast<std::size_t>(schedule.buffers[static_cast<std::size_t>(event.buffer)]);
                const BufferClass& bufferClass = schedule.sizes.buffers[id];
                const std::int64_t onGpu = bufferClass.spec->place == Place::Gpu ? bufferClass.bytes.count() : 0;
                if (event.change == BufferChange::Allocate) {
                    // A layer's output is kept, if at all, by the layer that reads it; ids belong to none.
                    const bool boundary = id == 0;
                    const std::size_t owner =
                        op.layer < 0 ? m_layers : static_cast<std::size_t>(op.layer) + (boundary ? 1 : 0);
                    consistent = consistent && live.insert({event.buffer, {&bufferClass, owner}}).second;
                    bytes += onGpu;
                } else {
                    consistent = consistent && live.erase(event.buffer) == 1;
                    bytes -= onGpu;
                }
                peak = std::max(peak, bytes);
                if (op.kind == OpKind::LossForward)
                    lossForward = std::max(lossForward, bytes - beforeLoss);
                if (op.kind == OpKind::LossBackward)
                    lossBackward = std::max(lossBackward, bytes - beforeLoss);
            }
            if (op.kind == OpKind::Recompute)
                m_recomputed[static_cast<std::size_t>(op.layer)] += bytes - before;
        }
        for (const auto& [id, held] : live)
            left.push_back(std::string(held.bufferClass->spec->name));
    }

    std::size_t m_layers;
    std::vector<std::int64_t> m_saved;
    std::vector<std::map<std::string, int>> m_savedNames;
    std::vector<std::int64_t> m_recomputed;
};

} // namespace shardwright
