#pragma once

// What rules need to say what buffers hold, where a schedule is recorded for execution.

#include <vector>

#include "core/layout.hpp"
#include "core/schedule.hpp"
#include "planner/activations/activation_model.hpp"

namespace shardwright {

using Tensors = std::vector<std::int32_t>;

/// Indices into listParameters(model), by layer and by module. Of models whose parameters do not repeat (no experts).
class ModuleTensors {
public:
    explicit ModuleTensors(const ActivationModel& activations)
        : m_activations(&activations), m_index(activations.model())
    {
    }

    Tensors ofLayer(int layer) const { return m_index.ofLayer(static_cast<std::size_t>(layer)); }
    Tensors ofModule(int layer, int module) const;
    std::int32_t at(int layer, int parameter) const
    {
        return m_index.at(static_cast<std::size_t>(layer), static_cast<std::size_t>(parameter));
    }

private:
    const ActivationModel* m_activations;
    TensorIndex m_index;
};

/// Tensors one after another, whole.
Content wholeContent(Quantity quantity, DType dtype, const Tensors& tensors);

/// The same elements as another quantity or in another dtype.
inline Content as(Content content, Quantity quantity, DType dtype)
{
    content.quantity = quantity;
    content.dtype = dtype;
    return content;
}

/// All parts instead of one.
inline Content allPartsOf(Content content)
{
    content.layout.allParts = true;
    return content;
}

/// The current op is that collective, once for each pair of buffers.
inline void collect(ScheduleBuilder& builder, Verb verb, GroupId group, const std::vector<BufferId>& reads,
                    const std::vector<BufferId>& writes)
{
    Action action;
    action.verb = verb;
    action.group = group;
    builder.act(action, reads, writes);
}

/// What the optimizer steps.
struct Stepped {
    std::vector<BufferId> gradients;
    std::vector<BufferId> parameters;
    std::vector<BufferId> moments;
};

/// The current op clips the gradients, whose norm sums over `group` (-1: every rank has them whole); nothing where the
/// training does not clip.
void clip(ScheduleBuilder& builder, const Training& training, GroupId group, const Stepped& stepped);
/// The current op is the optimizer's step.
void update(ScheduleBuilder& builder, const Stepped& stepped);

} // namespace shardwright
