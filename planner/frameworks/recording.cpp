#include "planner/frameworks/recording.hpp"

namespace shardwright {

Tensors ModuleTensors::ofModule(int layer, int module) const
{
    const int type = m_activations->model().layers[static_cast<std::size_t>(layer)];
    Tensors tensors;
    for (const int parameter : m_activations->modules(type)[static_cast<std::size_t>(module)].parameters)
        tensors.push_back(at(layer, parameter));
    return tensors;
}

Content wholeContent(Quantity quantity, DType dtype, const Tensors& tensors)
{
    Content content;
    content.quantity = quantity;
    content.dtype = dtype;
    content.layout.tensors = tensors;
    return content;
}

void clip(ScheduleBuilder& builder, const Training& training, GroupId group, const Stepped& stepped)
{
    if (training.gradientClipping)
        collect(builder, Verb::Clip, group, {}, stepped.gradients);
}

void update(ScheduleBuilder& builder, const Stepped& stepped)
{
    std::vector<BufferId> writes = stepped.parameters;
    writes.insert(writes.end(), stepped.moments.begin(), stepped.moments.end());
    builder.act(Verb::Update, stepped.gradients, writes);
}

} // namespace shardwright
