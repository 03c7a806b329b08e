#include "planner/frameworks/deepspeed/tensor_order.hpp"

#include <algorithm>

namespace shardwright {

namespace {

class Recorder final : public StageObserver {
public:
    void beforeStage(Pass pass, int layer, int module) override { m_visits.push_back({pass, layer, module}); }
    std::vector<Visit> take() { return std::move(m_visits); }

private:
    std::vector<Visit> m_visits;
};

const LeafModule& moduleAt(const ActivationModel& activations, int layer, int module)
{
    const int type = activations.model().layers[static_cast<std::size_t>(layer)];
    return activations.modules(type)[static_cast<std::size_t>(module)];
}

} // namespace

std::vector<Visit> recordVisits(const ActivationModel& activations, const SizeTable& sizes)
{
    ScheduleBuilder builder(sizes);
    ActivationWalk walk(activations);
    Recorder recorder;
    const int layers = static_cast<int>(activations.model().layers.size());
    builder.beginSegment("trace");
    walk.beginMicroStep(builder);
    for (int layer = 0; layer < layers; ++layer)
        walk.forward(builder, layer, recorder);
    walk.loss(builder);
    for (int layer = layers - 1; layer >= 0; --layer)
        walk.backward(builder, layer, recorder);
    walk.endMicroStep(builder);
    return recorder.take();
}

bool isTiedModule(const Model& model, int layer, int module)
{
    return module == 0 && model.layer(static_cast<std::size_t>(layer)).kind == LayerKind::Embedding &&
           model.layer(model.layers.size() - 1).kind == LayerKind::Head &&
           model.layer(model.layers.size() - 1).parameters.empty();
}

std::vector<GradientArrival> arrivalsInBackward(const ActivationModel& activations, const std::vector<Visit>& visits)
{
    std::vector<GradientArrival> arrivals;
    bool tiedSeen = false;
    for (const Visit& visit : visits) {
        if (visit.pass != Pass::Backward || moduleAt(activations, visit.layer, visit.module).trainable == 0)
            continue;
        if (isTiedModule(activations.model(), visit.layer, visit.module) && !tiedSeen) {
            tiedSeen = true; // autograd adds the head's part to the embedding's before the gradient is complete
            continue;
        }
        arrivals.push_back({visit.layer, visit.module});
    }
    return arrivals;
}

std::vector<GradientArrival> arrivalsInForwardOrder(const ActivationModel& activations)
{
    std::vector<GradientArrival> arrivals;
    const Model& model = activations.model();
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
        const std::vector<LeafModule>& modules = activations.modules(model.layers[layer]);
        for (std::size_t module = 0; module < modules.size(); ++module)
            if (modules[module].trainable > 0)
                arrivals.push_back({static_cast<int>(layer), static_cast<int>(module)});
    }
    return arrivals;
}

FlatOrder::FlatOrder(const ActivationModel& activations)
{
    const Model& model = activations.model();
    std::int32_t base = 0; // of the layer in listParameters
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
        const LayerType& type = model.layer(layer);
        m_ranges.emplace_back();
        for (const LeafModule& module : activations.modules(model.layers[layer])) {
            const std::size_t first = m_tensors.size();
            for (const int index : module.parameters) {
                const ParameterSpec& parameter = type.parameters[static_cast<std::size_t>(index)];
                if (!parameter.trainable)
                    continue;
                const std::int64_t side =
                    parameter.shape.size() < 2 ? 0 : std::max(parameter.shape[0], parameter.shape[1]);
                for (std::int64_t i = 0; i < parameter.repeat; ++i) {
                    m_tensors.push_back({m_elements, parameter.numel, side, base + index});
                    m_elements = checkedAdd(m_elements, parameter.numel);
                }
                m_largest = std::max(m_largest, parameter.numel);
            }
            m_ranges.back().emplace_back(first, m_tensors.size());
        }
        base += static_cast<std::int32_t>(type.parameters.size());
    }
}

std::int64_t FlatOrder::mostTouched(std::int64_t partition) const
{
    std::int64_t most = 0;
    std::int64_t current = 0; // partition that is being summed
    std::int64_t touched = 0;
    for (const FlatTensor& tensor : m_tensors) {
        const std::int64_t first = tensor.offset / partition;
        const std::int64_t last = (tensor.offset + tensor.numel - 1) / partition;
        touched = first == current ? checkedAdd(touched, tensor.numel) : tensor.numel;
        most = std::max(most, touched);
        if (last > first)
            touched = tensor.numel;
        current = last;
    }
    return most;
}

} // namespace shardwright
